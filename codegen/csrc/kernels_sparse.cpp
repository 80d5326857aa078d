// Exports: activations that are zero at many places, and products that read no weights there.
#include "skip_rows.h"

using namespace infopt;

// infopt_keep_largest: of each row of x the K places of the largest |x| * weight, 0 elsewhere
//   pointers  x [M, W], weight f32 [W] or null, out    numbers  0 W  1 K  2 dtype of x and out
//   tasks     M    scratch  4 * roundup(W, 16) bytes
INFOPT_EXPORT void infopt_keep_largest(const infopt_call *call, int64_t first, int64_t last) {
  const int64_t *n = call->numbers;
  for (int64_t row = first; row < last; ++row)
    with_float_type(n[2], [&](auto type) {
      using T = decltype(type);
      keep_largest(pointer<const T>(call, 0) + row * n[0], pointer<float>(call, 1), n[0], n[1],
                   static_cast<int32_t *>(call->scratch), pointer<T>(call, 2) + row * n[0]);
    });
}

// infopt_skip_rows_<weight type>: infopt_few_rows for w [K][N]; where x is 0 nothing is read
//   pointers, numbers, tasks: as infopt_few_rows, but 3 is the stride between rows of w [K][N]
//   scratch:  8 * (roundup(K, 16) + 16) + 8 * n_chunk
#define INFOPT_SKIP(name, W)                                                                       \
  INFOPT_EXPORT void infopt_skip_rows_##name(const infopt_call *call, int64_t first, int64_t last) { \
    skip_rows<W>(call, first, last);                                                               \
  }
INFOPT_SKIP(f32, float)
INFOPT_SKIP(f16, f16)
INFOPT_SKIP(bf16, bf16)
#undef INFOPT_SKIP
