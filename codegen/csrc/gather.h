// out[i] = x[place of i], where some coordinates of x come from index tensors.
//
//   pointers  x, up to three index tensors (null: absent), out, error: one int32, set to 1 if an
//             index is out of range (the element: 0)
//   numbers   0 elements of one task  1 six sizes of out  7 their strides in out  13 in x
//             19 1: a negative index counts from the end
//             20 + 8k: of index tensor k: size and stride of its dimension in x, six strides
//   tasks     ceil(elements / numbers[0])
#pragma once

#include "region.h"

namespace infopt {

constexpr int kPickRank = 6, kPickIndices = 3;

// Calls body(valid, place by the first strides, by the second and the indices, elements) for
// elements begin to end: one at a time, or as many as are neighbours in both places.
template <class Index, class Body>
void each_run(const infopt_call *call, int64_t begin, int64_t end, const Body &body) {
  const int64_t *n = call->numbers, *size = n + 1, *to = n + 7, *from = n + 13;
  bool neighbours = to[kPickRank - 1] == 1 && from[kPickRank - 1] == 1;
  for (int k = 0; k < kPickIndices; ++k)
    neighbours = neighbours && n[20 + 8 * k + 2 + kPickRank - 1] == 0;
  for (int64_t i = begin, run; i < end; i += run) {
    int64_t rest = i, second = 0, first = 0, at[kPickIndices] = {};
    for (int d = kPickRank - 1; d >= 0; --d) {
      if (size[d] == 1) continue;
      const int64_t j = rest % size[d];
      rest /= size[d];
      second += j * from[d], first += j * to[d];
      for (int k = 0; k < kPickIndices; ++k) at[k] += j * n[20 + 8 * k + 2 + d];
    }
    bool valid = true;
    for (int k = 0; k < kPickIndices; ++k) {
      const Index *index = pointer<const Index>(call, 1 + k);
      if (!index) continue;
      const int64_t *m = n + 20 + 8 * k;
      int64_t j = int64_t(index[at[k]]);
      if (n[19] && j < 0) j += m[0];
      valid = valid && j >= 0 && j < m[0];
      second += j * m[1];
    }
    if (!valid) *pointer<int32_t>(call, 5) = 1;
    const int64_t width = size[kPickRank - 1];
    run = neighbours ? least(width - i % width, end - i) : 1;
    body(valid, first, second, run);
  }
}

template <class T, class Index>
void gather(const infopt_call *call, int64_t first, int64_t last) {
  const int64_t *n = call->numbers;
  const T *x = pointer<const T>(call, 0);
  T *out = pointer<T>(call, 4);
  int64_t count = 1;
  for (int d = 0; d < kPickRank; ++d) count *= n[1 + d];
  each_run<Index>(
      call, first * n[0], least(last * n[0], count),
      [&](bool valid, int64_t to, int64_t from, int64_t run) {
        if (!valid) memset(out + to, 0, size_t(run) * sizeof(T));
        else if (run > 1) memcpy(out + to, x + from, size_t(run) * sizeof(T));
        else out[to] = x[from];
      });
}

}  // namespace infopt
