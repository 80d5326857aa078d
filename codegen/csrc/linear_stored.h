// Linear layers on token panels whose weights are stored in few bits: rows are decoded, or unpacked
// to bytes, once for all panels of a task.
#pragma once

#include "linear.h"
#include "microkernel_groups.h"
#include "stored_rows.h"

namespace infopt {

// Numbers 15 and on of a call: 15 layout, 16 group, 17 elements between rows of scales, 18 bytes of
// one of them.
inline StoredRows stored_rows(const infopt_call *call, const LinearCall &c, bool up) {
  const int64_t *v = call->numbers;
  return {(const uint8_t *)(up ? c.up : c.w), c.row_stride, call->pointers[up ? 9 : 8], v[17],
          v[16], c.k, v[16] && v[18] == 4};
}

inline Remainder remainder_of(const infopt_call *call, const LinearCall &c, bool up) {
  return {call->pointers[up ? 13 : 12], c.n};
}

// As numbers: the products are those of the micro-kernel's row type.
template <class Row, int layout> struct DecodedRows {
  static constexpr bool kGrouped = false, kInPlace = false;
  StoredRows stored[2];
  Remainder remainder[2];
  DecodedRows(const infopt_call *call, const LinearCall &c)
      : stored{stored_rows(call, c, false), stored_rows(call, c, true)},
        remainder{remainder_of(call, c, false), remainder_of(call, c, true)} {}
  Rows<Row> rows(bool up, int64_t n, int64_t k, int64_t count, int64_t depth, Row *scratch) const {
    const int64_t stride = decode_rows<layout>(stored[up], n, count, k, depth, scratch);
    if (remainder[up])
      for (int64_t r = 0; r < count; ++r)
        remainder[up].each(n + r, [&](int64_t column, float value) {
          if (column < k || column >= k + depth) return;
          Row &at = scratch[r * stride + column - k];
          at = from_float<Row>(to_float(at) + value);
        });
    return {scratch, stride};
  }
};

// As integers with a factor for a row.
template <class Row, int layout> struct UnpackedRows {
  static constexpr bool kGrouped = false, kInPlace = false;
  StoredRows stored[2];  // their values
  UnpackedRows(const infopt_call *, const LinearCall &c)
      : stored{{(const uint8_t *)c.w, c.row_stride, nullptr, 0, 0, c.k, false},
               {(const uint8_t *)c.up, c.row_stride, nullptr, 0, 0, c.k, false}} {}
  Rows<Row> rows(bool up, int64_t n, int64_t k, int64_t count, int64_t depth, Row *scratch) const {
    const int64_t stride = unpack_rows<layout>(stored[up], n, count, k, depth, scratch);
    return {scratch, stride};
  }
};

// As bytes with a factor for every group: a group's products are summed in int32, groups in f32.
template <int layout> struct GroupedRows {
  static constexpr bool kGrouped = true, kInPlace = false;
  const LinearCall &c;
  StoredRows stored[2];
  GroupedRows(const infopt_call *call, const LinearCall &c)
      : c(c), stored{stored_rows(call, c, false), stored_rows(call, c, true)} {}
  Rows<int8_t> rows(bool up, int64_t n, int64_t k, int64_t count, int64_t depth,
                    int8_t *scratch) const {
    const int64_t stride = unpack_rows<layout>(stored[up], n, count, k, depth, scratch);
    return {scratch, stride};
  }
  template <class Session>
  void multiply([[maybe_unused]] const Session &session, bool up, int64_t n, int64_t k,
                Rows<int8_t> r, int64_t rows, const uint8_t *panel, int64_t pair, int64_t depth,
                float *into) const {
    const StoredRows &w = stored[up];
#ifdef INFOPT_AMX
    if (w.group >= kTileDepth<StepBytes>)
      return multiply_tiles(session, w, n, k, r, rows, panel, pair, depth, into);
#endif
    const GroupedBlock block = {r.data, r.stride, &w, n, k / w.group, w.group, depth};
    multiply_groups<layout == 4>(block, rows, panel, c.x_stride, pair, into, kGroup * 16, k > 0);
  }

#ifdef INFOPT_AMX
  // Groups of whole tiles: the integers of one wait in memory to be scaled.
  template <class Session>
  void multiply_tiles(const Session &session, const StoredRows &w, int64_t n, int64_t k,
                      Rows<int8_t> r, int64_t rows, const uint8_t *panel, int64_t pair,
                      int64_t depth, float *into) const {
    alignas(64) float integers[2 * kGroup * 16];
    for (int64_t g = 0; g < depth; g += w.group) {
      Ahead nothing;
      session.multiply(r.data + g, r.stride, rows, panel + g * 16, c.x_stride, pair,
                       least(w.group, depth - g), integers, kGroup * 16, false, int64_t(0),
                       nothing);
      for (int64_t i = 0; i < rows; ++i) {
        const Vec scale = broadcast(w.group_scale(n + i, (k + g) / w.group));
        for (int64_t p = 0; p < pair; ++p) {
          const int64_t at = (p * kGroup + i) * 16;
          const Vec before = k + g > 0 ? load(into + at) : zero();
          store(into + at, fma(to_float(bits(load(integers + at))), scale, before));
        }
      }
    }
  }
#endif
};

}  // namespace infopt
