// Blocks of 64 codes of 4 or 3 bits (codegen/weight_formats/lookup.py) into a table of bytes, on every level.
//
//   table_bytes<bits>(p, table)     the 64 bytes, as load_quads gives them
//   FloatTable<bits>(table)         the table, ready for
//   table_floats<bits>(p, t, f)     bytes_as_floats of table_bytes
#pragma once

#include "vec_bytes.h"

namespace infopt {

#ifdef INFOPT_AVX512
// 16 lanes of 4 codes of 3 bits; above them there is anything.
INFOPT_INLINE __m512i lanes_of_codes(const uint8_t *p) {
  int64_t rest;
  memcpy(&rest, p + 16, sizeof rest);
  const __m512i turns = _mm512_setr_epi32(24, 24, 28, 28, 0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20);
  const __m512i high = _mm512_rorv_epi32(_mm512_set1_epi64(rest), turns);
  const __m512i low = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
  return _mm512_ternarylogic_epi32(low, high, _mm512_set1_epi32(~255), 0xf8);  // low | high & ~255
}
template <int bits> INFOPT_INLINE __m128i load_table(const uint8_t *table) {
  if constexpr (bits == 4) return _mm_loadu_si128((const __m128i *)table);
  const __m128i eight = _mm_loadl_epi64((const __m128i *)table);
  return _mm_unpacklo_epi64(eight, eight);  // a fourth bit of a code means nothing
}
template <int bits> INFOPT_INLINE IVec table_bytes(const uint8_t *p, const uint8_t *table) {
  __m512i codes;
  if constexpr (bits == 4) {
    codes = _mm512_and_si512(halves_in_place(p), _mm512_set1_epi8(15));
  } else {
    const __m512i lanes = lanes_of_codes(p);
    codes = _mm512_or_si512(
        _mm512_or_si512(
            _mm512_and_si512(lanes, _mm512_set1_epi32(7)),
            _mm512_and_si512(_mm512_slli_epi32(lanes, 5), _mm512_set1_epi32(0x700))),
        _mm512_or_si512(
            _mm512_and_si512(_mm512_slli_epi32(lanes, 10), _mm512_set1_epi32(0x70000)),
            _mm512_and_si512(_mm512_slli_epi32(lanes, 15), _mm512_set1_epi32(0x7000000))));
  }
  return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(load_table<bits>(table)), codes)};
}
// A permutation looks at the lowest 4 bits of a lane.
template <int bits> struct FloatTable {
  __m512 values;
  FloatTable() = default;
  INFOPT_INLINE explicit FloatTable(const uint8_t *table)
      : values(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_table<bits>(table)))) {}
};
template <int bits>
INFOPT_INLINE void table_floats(const uint8_t *p, const FloatTable<bits> &table, Vec *part) {
  __m512i codes;
  if constexpr (bits == 4) codes = halves_in_place(p);
  else codes = lanes_of_codes(p);
  constexpr int step = bits == 4 ? 8 : 3;
  part[0] = {_mm512_permutexvar_ps(codes, table.values)};
  part[1] = {_mm512_permutexvar_ps(_mm512_srli_epi32(codes, step), table.values)};
  part[2] = {_mm512_permutexvar_ps(_mm512_srli_epi32(codes, 2 * step), table.values)};
  part[3] = {_mm512_permutexvar_ps(_mm512_srli_epi32(codes, 3 * step), table.values)};
}
#else
#ifdef INFOPT_AVX2
// Eight lanes of 4 codes of 3 bits as four bytes each; `place`: of the first lane, 0 or 8.
INFOPT_INLINE __m256i quads_of_codes(const uint8_t *p, int place) {
  int64_t rest;
  memcpy(&rest, p + 16, sizeof rest);
  const __m256i turns = _mm256_add_epi32(_mm256_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12),
                                         _mm256_set1_epi32(place * 2));
  const __m256i high = _mm256_slli_epi32(_mm256_srlv_epi32(_mm256_set1_epi64x(rest), turns), 8);
  const __m256i low = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(p + place)));
  const __m256i lanes = _mm256_or_si256(low, high);
  return _mm256_or_si256(
      _mm256_or_si256(_mm256_and_si256(lanes, _mm256_set1_epi32(7)),
                      _mm256_and_si256(_mm256_slli_epi32(lanes, 5), _mm256_set1_epi32(0x700))),
      _mm256_or_si256(
          _mm256_and_si256(_mm256_slli_epi32(lanes, 10), _mm256_set1_epi32(0x70000)),
          _mm256_and_si256(_mm256_slli_epi32(lanes, 15), _mm256_set1_epi32(0x7000000))));
}
template <int bits> INFOPT_INLINE IVec table_bytes(const uint8_t *p, const uint8_t *table) {
  __m256i low, high;
  __m128i held;
  if constexpr (bits == 4) {
    const __m256i bytes = _mm256_loadu_si256((const __m256i *)p), half = _mm256_set1_epi8(15);
    low = _mm256_and_si256(bytes, half);
    high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), half);
    held = _mm_loadu_si128((const __m128i *)table);
  } else {
    low = quads_of_codes(p, 0), high = quads_of_codes(p, 8);
    held = _mm_loadl_epi64((const __m128i *)table);
  }
  const __m256i twice = _mm256_broadcastsi128_si256(held);
  return {_mm256_shuffle_epi8(twice, low), _mm256_shuffle_epi8(twice, high)};
}
#else
template <int bits> INFOPT_INLINE IVec table_bytes(const uint8_t *p, const uint8_t *table) {
  uint8_t bytes[64];
  if constexpr (bits == 4) {
    for (int i = 0; i < 32; ++i) {
      bytes[i] = table[p[i] & 15];
      bytes[i + 32] = table[p[i] >> 4];
    }
  } else {
    for (int i = 0; i < 16; ++i) {
      const int pair = p[16 + i % 2 * 4 + i / 4], lane = p[i] | (pair >> i / 2 % 2 * 4 & 15) << 8;
      for (int j = 0; j < 4; ++j) bytes[4 * i + j] = table[lane >> 3 * j & 7];
    }
  }
  return load_quads(bytes);
}
#endif
template <int bits> struct FloatTable {
  const uint8_t *bytes;
  FloatTable() = default;
  INFOPT_INLINE explicit FloatTable(const uint8_t *table) : bytes(table) {}
};
template <int bits>
INFOPT_INLINE void table_floats(const uint8_t *p, const FloatTable<bits> &table, Vec *part) {
  bytes_as_floats(table_bytes<bits>(p, table.bytes), part);
}
#endif

}  // namespace infopt
