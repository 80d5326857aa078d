// Places buffers in one arena: two buffers share bytes only if no step needs both.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace infopt __attribute__((visibility("hidden"))) {

constexpr int64_t ALIGNMENT = 64;

inline int64_t aligned(int64_t bytes) { return (bytes + ALIGNMENT - 1) & ~(ALIGNMENT - 1); }

struct Lifetime {
  int64_t first, last;  // steps, both inclusive
};

// Each in this order at the lowest offset that is free during its life. Returns the arena's size.
inline int64_t place_in(const std::vector<size_t> &order, const std::vector<Lifetime> &lives,
                        const std::vector<int64_t> &bytes, std::vector<int64_t> *offsets) {
  std::vector<size_t> placed;
  offsets->assign(lives.size(), 0);
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

// Places all buffers, the largest first or those of the longest lives first, whichever needs less
// memory, and returns how much. What lives long leaves gaps between others if it comes late.
inline int64_t place(const std::vector<Lifetime> &lives, const std::vector<int64_t> &bytes,
                     std::vector<int64_t> *offsets) {
  std::vector<size_t> order(lives.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  const auto larger = [&](size_t a, size_t b) { return bytes[a] > bytes[b]; };
  const auto span = [&](size_t i) { return lives[i].last - lives[i].first; };
  std::stable_sort(order.begin(), order.end(), larger);
  const int64_t by_size = place_in(order, lives, bytes, offsets);
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return span(a) > span(b); });
  std::vector<int64_t> others;
  const int64_t by_span = place_in(order, lives, bytes, &others);
  if (by_span >= by_size) return by_size;
  *offsets = std::move(others);
  return by_span;
}

}  // namespace infopt
