// Rows of weights stored as integers with factors (codegen/weight_formats/formats.py), and what they stand for.
//
//   8 bits: int8 [N][K].   4 bits: blocks of 64 along K in 32 bytes; byte j holds integer j + 8 in
//   its low half and integer j + 32, + 8, in its high half; the last block is whole.
//   Floats of 8 bits: bytes [N][K] (codegen/weight_formats/floats.py).
//   Tables (codegen/weight_formats/lookup.py): a row is a table of 2^bits bytes, then blocks of codes.
//   One f32 factor for a row, or a bf16 or f32 factor for every `group` neighbours, a power of two
//   from 32 on.
#pragma once

#include "microkernel.h"
#include "vec_floats.h"
#include "vec_tables.h"

namespace infopt {

constexpr int64_t kBlockDepth = 64;

// How rows lie: 8 or 4, the bits of integers, or one of these.
constexpr int kTable = 16, kTable3 = kTable + 3, kTable4 = kTable + 4, kE4M3 = 43, kE5M2 = 52;
template <int layout> struct Layout {
  static constexpr bool floats = layout == kE4M3 || layout == kE5M2;
  static constexpr int mantissa = layout % 10;  // of floats
  static constexpr bool table = layout == kTable3 || layout == kTable4;
  static constexpr int bits = floats ? 8 : table ? layout - kTable : layout;
  static constexpr int64_t block_bytes = kBlockDepth * bits / 8;
  static constexpr int64_t first_block = table ? 1 << bits : 0;  // bytes in front of it
  static INFOPT_INLINE const uint8_t *block(const uint8_t *row, int64_t b) {
    return row + first_block + b * block_bytes;
  }
};
// f(Constant<layout>()) for a layout known when it runs, one of bytes that products are made of.
template <class F> INFOPT_INLINE void with_byte_layout(int64_t layout, F f) {
  if (layout == 4) f(Constant<4>());
  else if (layout == kTable4) f(Constant<kTable4>());
  else if (layout == kTable3) f(Constant<kTable3>());
  else f(Constant<8>());
}
// The same for any.
template <class F> INFOPT_INLINE void with_layout(int64_t layout, F f) {
  if (layout == kE4M3) f(Constant<kE4M3>());
  else if (layout == kE5M2) f(Constant<kE5M2>());
  else with_byte_layout(layout, f);
}

struct StoredRows {
  const uint8_t *values;
  int64_t stride;  // bytes between rows
  const void *scales;
  int64_t scale_stride, group, k;  // group 0: one factor for a row
  bool wide;                       // factors of groups are f32

  INFOPT_INLINE const uint8_t *row(int64_t n) const { return values + n * stride; }
  INFOPT_INLINE float row_scale(int64_t n) const { return ((const float *)scales)[n]; }
  template <class Scale> INFOPT_INLINE const Scale *group_scales(int64_t n) const {
    return (const Scale *)scales + n * scale_stride;
  }
  INFOPT_INLINE float group_scale(int64_t n, int64_t g) const {
    return wide ? group_scales<float>(n)[g] : to_float(group_scales<bf16>(n)[g]);
  }
};

// Block b of a row as 64 bytes, signed integers but for floats; from k on zeros, of tables anything. `whole` promises that k
// is not in it.
template <int layout, bool whole = false>
INFOPT_INLINE IVec stored_block(const uint8_t *row, int64_t b, int64_t k) {
  using L = Layout<layout>;
  if constexpr (L::table) return table_bytes<L::bits>(L::block(row, b), row);
  if constexpr (layout == 4) return unpack_halves(L::block(row, b));
  const int64_t left = k - b * kBlockDepth;
  if (whole || __builtin_expect(left >= kBlockDepth, 1)) return load_quads(row + b * kBlockDepth);
  alignas(64) uint8_t padded[kBlockDepth] = {};
  memcpy(padded, row + b * kBlockDepth, size_t(left));
  return load_quads(padded);
}
// The same as floats: f[j] has byte j of every lane. table: the row's, where it has one.
template <int layout, bool whole, class Table>
INFOPT_INLINE void stored_floats(const uint8_t *row, int64_t b, int64_t k,
                                 [[maybe_unused]] const Table &table, Vec *f) {
  using L = Layout<layout>;
  if constexpr (L::table) table_floats<L::bits>(L::block(row, b), table, f);
  else if constexpr (layout == 4) halves_as_floats(L::block(row, b), f);
  else if constexpr (L::floats)
    bytes_as_small_floats<L::mantissa>(stored_block<layout, whole>(row, b, k), f);
  else bytes_as_floats(stored_block<layout, whole>(row, b, k), f);
}

// 16 neighbours out of a block as floats.
template <int layout> INFOPT_INLINE Vec block_numbers(const int8_t *bytes) {
  using L = Layout<layout>;
  if constexpr (L::floats) return small_floats<L::mantissa>(shl<24>(load_bytes(bytes)));
  return widen_bytes(bytes);
}

// The factors of block b, as lanes of four integers want them. group: 2^group_bits; `pairs`: there
// are two of them.
template <bool whole, bool pairs, class Scale>
INFOPT_INLINE Vec block_scales(const Scale *scales, int64_t b, int group_bits, int64_t groups) {
  const int64_t first = b * kBlockDepth >> group_bits;
  const bool one = !pairs || (!whole && first + 1 == groups);
  return one ? broadcast(to_float(scales[first])) : two_halves(scales + first);
}

// Entries that are added to the stored rows (codegen/weight_formats/remainder.py), in order of their columns.
struct Remainder {
  const int32_t *starts = nullptr, *entries = nullptr;
  Remainder() = default;
  Remainder(const void *held, int64_t rows)
      : starts((const int32_t *)held), entries(starts ? starts + rows + 1 : nullptr) {}
  explicit operator bool() const { return starts; }
  // f(column, value) for the entries of a row
  template <class F> INFOPT_INLINE void each(int64_t n, F f) const {
    for (int32_t e = starts[n]; e < starts[n + 1]; ++e) {
      const uint32_t entry = uint32_t(entries[e]);
      f(int64_t(entry & 0xffff), float_of(entry & 0xffff0000u));
    }
  }
};

// Integers of `count` rows from n on, k of them from `from` (a multiple of the block), as rows of
// bytes, or of 16 bits as StepHalves wants them; elements between rows: the returned stride.
template <int layout, class Row>
INFOPT_INLINE int64_t unpack_rows(const StoredRows &w, int64_t n, int64_t count, int64_t from,
                                  int64_t k, Row *to) {
  const int64_t stride = round_up(k, kBlockDepth) + kBlockDepth;  // not all in one cache set
  for (int64_t r = 0; r < count; ++r)
    for (int64_t b = 0; b * kBlockDepth < k; ++b) {
      const IVec block = stored_block<layout>(w.row(n + r), from / kBlockDepth + b, w.k);
      Row *at = to + r * stride + b * kBlockDepth;
      if constexpr (sizeof(Row) == 1) memcpy(at, &block, sizeof block);
      else store_halves(at, block);
    }
  return stride;
}

// The same as numbers, in the micro-kernel's row type.
template <int layout, class Row>
INFOPT_INLINE int64_t decode_rows(const StoredRows &w, int64_t n, int64_t count, int64_t from,
                                  int64_t k, Row *to) {
  const int64_t stride = round_up(k, 32) + 32;
  for (int64_t r = 0; r < count; ++r) {
    Row *row = to + r * stride;
    for (int64_t b = 0; b * kBlockDepth < k; ++b) {
      alignas(64) int8_t bytes[kBlockDepth];
      const IVec block = stored_block<layout>(w.row(n + r), from / kBlockDepth + b, w.k);
      memcpy(bytes, &block, sizeof block);
      const int64_t column = b * kBlockDepth, depth = least(kBlockDepth, k - column);
      for (int64_t i = 0; i < depth; i += 32) {
        Vec part[2];
        for (int h = 0; h < 2; ++h) {
          const int64_t at = i + h * 16;
          const int64_t place = from + column + least(at, depth - 1);
          const float scale =
              w.group ? w.group_scale(n + r, place / w.group) : w.row_scale(n + r);
          part[h] = block_numbers<layout>(bytes + at) * broadcast(scale);
        }
        const int64_t left = depth - i;
        if constexpr (sizeof(Row) == sizeof(bf16)) {
          if (left >= 32) {
            store_pairs(row + column + i, to_row(part[0], part[1]));
            continue;
          }
        }
        store(row + column + i, part[0], least(16, left));
        if (left > 16) store(row + column + i + 16, part[1], least(16, left - 16));
      }
    }
  }
  return stride;
}

}  // namespace infopt
