// Running sums along one dimension: out[o][i] = A(x[o][0]) + ... + A(x[o][i]), one task per o.
//
//   pointers  x, out
//   numbers   0 length, 1 its stride in x, 2 in out  3 four outer sizes  7 strides in x  11 in out
//   tasks     product of the outer sizes
#pragma once

#include "region.h"

namespace infopt {

template <class T, class Out, class A>
void running_sum(const infopt_call *call, int64_t first, int64_t last) {
  const int64_t *n = call->numbers, *size = n + 3;
  for (int64_t o = first; o < last; ++o) {
    int64_t rest = o, source = 0, target = 0;
    for (int d = 3; d >= 0; --d) {
      const int64_t j = rest % size[d];
      rest /= size[d];
      source += j * n[7 + d], target += j * n[11 + d];
    }
    const T *x = pointer<const T>(call, 0) + source;
    Out *out = pointer<Out>(call, 1) + target;
    A total = A(0);
    for (int64_t i = 0; i < n[0]; ++i) {
      total = pw::add(total, A(pw::get(x + i * n[1])));
      if constexpr (std::is_arithmetic<Out>::value) out[i * n[2]] = Out(total);
      else pw::put(out + i * n[2], float(total));
    }
  }
}

}  // namespace infopt
