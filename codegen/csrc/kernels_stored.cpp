// The exported kernels of linear layers whose weights are stored in few bits (stored_rows.h), for
// many tokens, and of tables of rows so stored. For few tokens: kernels_stored_few.cpp.
//
//   pointers: x, w, up or null, bias, up_bias, multiplier, residual, y as infopt_linear, then
//             scales, up_scales, sums[N], up_sums[N] (f32; null where no activations are bytes),
//             remainder, up_remainder or null (codegen/weight_formats/remainder.py), factors of the features of a
//             result in bytes or null
//   numbers:  0 to 14 as infopt_linear, where 3 counts bytes; 15 layout (stored_rows.h), 16 group or 0,
//             17 elements between rows of scales, 18 bytes of one of them; 23 and 24 the step (a
//             double) and zero point of a result of format 6, panels of bytes (byte_panels.h)
#include "embedding.h"
#include "linear_stored.h"

using namespace infopt;

// infopt_linear_stored_<panel type>: numbers times decoded rows
//   tasks, scratch: as infopt_linear_<panel type>_<another type>
INFOPT_EXPORT void infopt_linear_stored_f32(const infopt_call *call, int64_t first, int64_t last) {
  with_layout(call->numbers[15], [&](auto layout) {
    linear_from<StepF32, DecodedRows<float, layout.value>>(call, first, last);
  });
}
INFOPT_EXPORT void infopt_linear_stored_bf16(const infopt_call *call, int64_t first, int64_t last) {
  with_layout(call->numbers[15], [&](auto layout) {
    linear_from<StepPairs, DecodedRows<StepPairs::Row, layout.value>>(call, first, last);
  });
}

// infopt_linear_stored_bytes: panels of bytes times bytes out of tables, or with a factor per group
//   scratch: 6144 * panel_chunk * (up ? 2 : 1) + 96 * (min(round_up(K, 64), 4096) + 64)
INFOPT_EXPORT void infopt_linear_stored_bytes(const infopt_call *call, int64_t first,
                                              int64_t last) {
  with_byte_layout(call->numbers[15], [&](auto layout) {
    constexpr int L = layout.value;
    if (call->numbers[16]) return linear_from<StepBytes, GroupedRows<L>>(call, first, last);
    if constexpr (Layout<L>::table)
      linear_from<StepCodes, UnpackedRows<StepCodes::Row, L>>(call, first, last);
  });
}

// infopt_embedding_stored: out[i] = row ids[i] of a table of stored rows, as numbers
//   pointers  ids, values, scales, out, remainder or null, error (as infopt_embedding's)
//   numbers   0 ids M  1 width K  2 R  3 table rows  4 bytes between rows of values  5 out row stride
//             dtypes: 6 ids  7 out   8 layout  9 group or 0  10 elements between rows of scales  11 bytes of one
//   tasks     ceil(M / R)        scratch   4 * (round_up(K, 64) + 64)
INFOPT_EXPORT void infopt_embedding_stored(const infopt_call *call, int64_t first, int64_t last) {
  const int64_t *n = call->numbers;
  const EmbeddingTable table = {pointer<void>(call, 0), pointer<void>(call, 1), n[6], n[3], n[4],
                                kU8};
  const StoredRows stored = {pointer<uint8_t>(call, 1), n[4], pointer<void>(call, 2), n[10], n[9],
                             n[1], n[9] && n[11] == 4};
  const Remainder remainder(call->pointers[4], n[3]);
  float *decoded = static_cast<float *>(call->scratch);
  const int64_t end = least(n[0], last * n[2]);
  for (int64_t i = first * n[2]; i < end; ++i) {
    const uint8_t *found = static_cast<const uint8_t *>(table.row(i));
    if (!found) report(pointer<int32_t>(call, 5));
    else
      with_layout(n[8], [&](auto layout) {
        const int64_t row = (found - stored.values) / n[4];
        decode_rows<layout.value>(stored, row, 1, 0, n[1], decoded);
        if (remainder)
          remainder.each(row, [&](int64_t column, float value) { decoded[column] += value; });
      });
    copy_row(found ? decoded : nullptr, kF32, at(pointer<void>(call, 3), n[7], i * n[5]), n[7],
             n[1]);
  }
}
