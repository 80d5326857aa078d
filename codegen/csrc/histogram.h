// How many elements of x lie in each of equal parts of a range; what lies outside is not counted.
//
//   pointers  x f32, out f32
//   numbers   0 length, 1 its stride  2 bins  3, 4 least and greatest (doubles)
//   tasks     1        scratch  8 * bins
#pragma once

#include "abi.h"

namespace infopt {

inline void histogram(const infopt_call *call, int64_t, int64_t) {
  const int64_t *n = call->numbers, bins = n[2];
  const float low = float(as_double(n[3])), high = float(as_double(n[4]));
  const float *x = pointer<const float>(call, 0);
  int64_t *counts = static_cast<int64_t *>(call->scratch);
  for (int64_t b = 0; b < bins; ++b) counts[b] = 0;
  for (int64_t i = 0; i < n[0]; ++i) {
    const float v = x[i * n[1]];
    if (!(v >= low && v <= high)) continue;
    counts[least(bins - 1, int64_t((v - low) * float(bins) / (high - low)))] += 1;
  }
  for (int64_t b = 0; b < bins; ++b) pointer<float>(call, 1)[b] = float(counts[b]);
}

}  // namespace infopt
