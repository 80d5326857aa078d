// The exported kernels of linear layers for few tokens whose weights are stored in few bits.
//
//   pointers: as infopt_linear_stored_<panel type> (kernels_stored.cpp), but x is row-major
//   numbers:  as there; 19 format of x (6: panels of bytes), 20 how its rows become bytes
//             (RowRounding), 21 and 22 the step (a double) and zero point of a static range
#include "few_rows_stored.h"

using namespace infopt;

// infopt_few_rows_stored_<x>: few tokens (M <= 8 or so), x taken as numbers or as bytes
//   tasks:   ceil(N / n_chunk)                 (n_chunk a multiple of 16)
//   scratch: 64 + 12 * R + 4 * R * round_up(K, 64),  R = round_up(M, 4)
template <bool as_bytes>
static void few_stored(const infopt_call *call, int64_t first, int64_t last) {
  const bool grouped = call->numbers[16] != 0, wide = call->numbers[18] == 4;
  auto run = [&](auto layout) {
    constexpr int L = layout.value;
    constexpr bool table = Layout<L>::table;
    if (grouped && (table || !wide)) return few_rows_stored<L, as_bytes, bf16>(call, first, last);
    if constexpr (!table)
      if (grouped) return few_rows_stored<L, as_bytes, float>(call, first, last);
    if constexpr (L != 4) few_rows_stored<L, as_bytes, void>(call, first, last);
  };
  if constexpr (as_bytes) with_byte_layout(call->numbers[15], run);
  else with_layout(call->numbers[15], run);
}
INFOPT_EXPORT void infopt_few_rows_stored_f32(const infopt_call *call, int64_t first,
                                              int64_t last) {
  few_stored<false>(call, first, last);
}
INFOPT_EXPORT void infopt_few_rows_stored_bytes(const infopt_call *call, int64_t first,
                                                int64_t last) {
  few_stored<true>(call, first, last);
}
