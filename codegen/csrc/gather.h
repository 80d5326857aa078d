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

template <class T, class Index>
void gather(const infopt_call *call, int64_t first, int64_t last) {
  constexpr int kRank = 6, kIndices = 3;
  const int64_t *n = call->numbers, *size = n + 1, *to = n + 7, *from = n + 13;
  int64_t count = 1;
  for (int d = 0; d < kRank; ++d) count *= size[d];
  const int64_t end = least(last * n[0], count);
  for (int64_t i = first * n[0]; i < end; ++i) {
    int64_t rest = i, source = 0, target = 0, at[kIndices] = {};
    for (int d = kRank - 1; d >= 0; --d) {
      const int64_t j = rest % size[d];
      rest /= size[d];
      source += j * from[d], target += j * to[d];
      for (int k = 0; k < kIndices; ++k) at[k] += j * n[20 + 8 * k + 2 + d];
    }
    bool valid = true;
    for (int k = 0; k < kIndices; ++k) {
      const Index *index = pointer<const Index>(call, 1 + k);
      if (!index) continue;
      const int64_t *m = n + 20 + 8 * k;
      int64_t j = int64_t(index[at[k]]);
      if (n[19] && j < 0) j += m[0];
      valid = valid && j >= 0 && j < m[0];
      source += j * m[1];
    }
    if (!valid) *pointer<int32_t>(call, 5) = 1;
    pointer<T>(call, 4)[target] = valid ? pointer<const T>(call, 0)[source] : T(0);
  }
}

}  // namespace infopt
