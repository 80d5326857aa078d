// Places buffers in one arena: two buffers share bytes only if no step needs both.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace infopt __attribute__((visibility("hidden"))) {

constexpr int64_t ALIGNMENT = 64;

inline int64_t aligned(int64_t bytes) { return (bytes + ALIGNMENT - 1) & ~(ALIGNMENT - 1); }

struct Lifetime {
  int64_t first, last;  // steps, both inclusive
};

// Largest first, each at the lowest offset that is free during its life. Returns the arena's size.
inline int64_t place(const std::vector<Lifetime> &lives, const std::vector<int64_t> &bytes,
                     std::vector<int64_t> *offsets) {
  const size_t count = lives.size();
  std::vector<size_t> order(count), placed;
  for (size_t i = 0; i < count; ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return bytes[a] > bytes[b]; });
  offsets->assign(count, 0);
  int64_t total = 0;
  for (size_t i : order) {
    const int64_t size = aligned(bytes[i]);
    if (size == 0) continue;
    int64_t offset = 0;
    size_t position = placed.size();  // `placed` is sorted by offset
    for (size_t p = 0; p < placed.size(); ++p) {
      const size_t other = placed[p];
      if (lives[other].first > lives[i].last || lives[i].first > lives[other].last) continue;
      if ((*offsets)[other] >= offset + size) break;
      offset = std::max(offset, (*offsets)[other] + aligned(bytes[other]));
    }
    for (size_t p = 0; p < placed.size(); ++p) {
      if ((*offsets)[placed[p]] > offset) {
        position = p;
        break;
      }
    }
    (*offsets)[i] = offset;
    placed.insert(placed.begin() + static_cast<int64_t>(position), i);
    total = std::max(total, offset + size);
  }
  return total;
}

}  // namespace infopt
