// out[place of i] = values[i], where some coordinates of out come from index tensors: gather.h the
// other way round. Of several values for one place the last stays, so one thread writes all.
//
//   pointers  values, up to three index tensors (null: absent), out, error: one int32, set to 1 if
//             an index is out of range (nothing is written there)
//   numbers   0 unused  1 six sizes of values, broadcast  7 their strides in values  13 in out
//             19 1: a negative index counts from the end
//             20 + 8k: of index tensor k: size and stride of its dimension in out, six strides
//   tasks     1
#pragma once

#include "gather.h"

namespace infopt {

template <class T, class Index> void scatter(const infopt_call *call, int64_t, int64_t) {
  const int64_t *n = call->numbers;
  const T *values = pointer<const T>(call, 0);
  T *out = pointer<T>(call, 4);
  int64_t count = 1;
  for (int d = 0; d < kPickRank; ++d) count *= n[1 + d];
  each_run<Index>(call, 0, count, [&](bool valid, int64_t in_values, int64_t in_out, int64_t run) {
    if (!valid) return;
    if (run > 1) memcpy(out + in_out, values + in_values, size_t(run) * sizeof(T));
    else out[in_out] = values[in_values];
  });
}

}  // namespace infopt
