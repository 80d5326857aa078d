// The exported kernels of linear layers whose weights are stored in few bits (stored_rows.h). One
// library per instruction-set level is built from this.
//
//   pointers: x, w, up or null, bias, up_bias, multiplier, residual, y as infopt_linear, then
//             scales, up_scales, sums[N], up_sums[N] (f32; null where no activations are bytes)
//   numbers:  0 to 14 as infopt_linear, where 3 counts bytes; 15 bits, 16 group or 0,
//             17 elements between rows of scales; few rows also 18 format of x
#include "few_rows_stored.h"
#include "linear_stored.h"

using namespace infopt;

#if defined(__AVX512BF16__) || defined(INFOPT_EMULATE_AMX)
using StepPairs = StepBf16;
#else
using StepPairs = StepWiden;
#endif

// infopt_linear_stored_<panel type>: numbers times decoded rows
//   tasks, scratch: as infopt_linear_<panel type>_<another type>
INFOPT_EXPORT void infopt_linear_stored_f32(const infopt_call *call, int64_t first, int64_t last) {
  if (call->numbers[15] == 4) linear_from<StepF32, DecodedRows<float, 4>>(call, first, last);
  else linear_from<StepF32, DecodedRows<float, 8>>(call, first, last);
}
INFOPT_EXPORT void infopt_linear_stored_bf16(const infopt_call *call, int64_t first, int64_t last) {
  using Row = StepPairs::Row;
  if (call->numbers[15] == 4) linear_from<StepPairs, DecodedRows<Row, 4>>(call, first, last);
  else linear_from<StepPairs, DecodedRows<Row, 8>>(call, first, last);
}

// infopt_linear_stored_bytes: panels of bytes times bytes, with a factor per group
//   scratch: 6144 * panel_chunk * (up ? 2 : 1) + 96 * (min(round_up(K, 64), 4096) + 64)
INFOPT_EXPORT void infopt_linear_stored_bytes(const infopt_call *call, int64_t first,
                                              int64_t last) {
  if (call->numbers[15] == 4) linear_from<StepBytes, GroupedRows<4>>(call, first, last);
  else linear_from<StepBytes, GroupedRows<8>>(call, first, last);
}

// infopt_few_rows_stored_<x>: few tokens (M <= 8 or so), x row-major, taken as numbers or as bytes
//   tasks:   ceil(N / n_chunk)                 (n_chunk a multiple of 16)
//   scratch: 64 + 12 * R + 4 * R * round_up(K, 64),  R = round_up(M, 4)
template <bool as_bytes>
static void few_stored(const infopt_call *call, int64_t first, int64_t last) {
  const bool grouped = call->numbers[16] != 0;
  if (call->numbers[15] == 4) few_rows_stored<4, as_bytes, true>(call, first, last);
  else if (grouped) few_rows_stored<8, as_bytes, true>(call, first, last);
  else few_rows_stored<8, as_bytes, false>(call, first, last);
}
INFOPT_EXPORT void infopt_few_rows_stored_f32(const infopt_call *call, int64_t first,
                                              int64_t last) {
  few_stored<false>(call, first, last);
}
INFOPT_EXPORT void infopt_few_rows_stored_bytes(const infopt_call *call, int64_t first,
                                                int64_t last) {
  few_stored<true>(call, first, last);
}
