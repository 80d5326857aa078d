// Bytes as 16 lanes of four neighbours along k, on every level of vec.h.
//
//   load_quads(p)         64 bytes: lane i holds bytes 4i to 4i + 3
//   broadcast_quad(p)     four signed bytes in every lane
//   dot_quads(acc, x, w)  acc + sum of the four products of x, unsigned, and w, signed; exact
//   dot_small_quads       the same for w from -64 to 64
//   mul(a, b)             the low 32 bits of products
//   load_ints(p)          16 int32
//   sar<n>(v)             arithmetic shift right
//   unpack_halves(p)      32 bytes as 64: the low halves, then the high halves, 8 taken off each
//   load_bytes(p)         16 signed bytes, each in a lane
//   widen_bytes(p)        the same as floats
//   two_halves(p)         of bf16 or floats: p[0] in lanes 0 to 7, p[1] in lanes 8 to 15
//   bytes_as_floats(v, f) byte j of lane i of v as lane i of f[j]
//   halves_as_floats(p, f)  bytes_as_floats of unpack_halves
//   int_sums16(rows)      lane i = the sum of the integers in rows[i]
//   store_codes(p, v)     the 16 lanes as unsigned bytes, 0 or 255 for what is below or above
#pragma once

#include "vec.h"

namespace infopt {

#ifdef INFOPT_AVX512
INFOPT_INLINE IVec load_ints(const int32_t *p) { return {_mm512_loadu_si512(p)}; }
INFOPT_INLINE IVec mul(IVec a, IVec b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
INFOPT_INLINE void store_codes(uint8_t *p, IVec v) {
  const __m512i floor = _mm512_max_epi32(v.v, _mm512_setzero_si512());
  _mm_storeu_si128((__m128i *)p, _mm512_cvtusepi32_epi8(floor));
}
template <int n> INFOPT_INLINE IVec sar(IVec a) { return {_mm512_srai_epi32(a.v, n)}; }
// 32 bytes twice, the second time with their high halves in place of the low ones.
INFOPT_INLINE __m512i halves_in_place(const uint8_t *p) {
  const __m512i both = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)p));
  return _mm512_srlv_epi32(both, _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4));
}
INFOPT_INLINE IVec unpack_halves(const uint8_t *p) {
  const __m512i low = _mm512_and_si512(halves_in_place(p), _mm512_set1_epi8(15));
  return {_mm512_sub_epi8(low, _mm512_set1_epi8(8))};
}
// A permutation looks at 4 bits: the table of all values makes floats of them.
INFOPT_INLINE void halves_as_floats(const uint8_t *p, Vec *part) {
  const __m512 table = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  const __m512i codes = halves_in_place(p);
  part[0] = {_mm512_permutexvar_ps(codes, table)};
  part[1] = {_mm512_permutexvar_ps(_mm512_srli_epi32(codes, 8), table)};
  part[2] = {_mm512_permutexvar_ps(_mm512_srli_epi32(codes, 16), table)};
  part[3] = {_mm512_permutexvar_ps(_mm512_srli_epi32(codes, 24), table)};
}
INFOPT_INLINE IVec load_bytes(const int8_t *p) {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p))};
}
INFOPT_INLINE Vec two_halves(const bf16 *p) {
  int32_t pair;
  memcpy(&pair, p, sizeof pair);
  const __m512i up = _mm512_setr_epi32(16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0);
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_sllv_epi32(_mm512_set1_epi32(pair), up),
                                               _mm512_set1_epi32(int(0xffff0000))))};
}
INFOPT_INLINE Vec two_halves(const float *p) {
  return {_mm512_mask_blend_ps(0xff00, _mm512_set1_ps(p[0]), _mm512_set1_ps(p[1]))};
}
INFOPT_INLINE IVec dot_quads(IVec acc, IVec x, IVec w) {
#ifdef __AVX512VNNI__
  // by hand: around the intrinsic GCC 12 spills accumulators of the micro-kernel, a fifth slower
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc.v) : "v"(x.v), "v"(w.v));
  return acc;
#else
  const __m512i low = _mm512_set1_epi16(0xff);
  const __m512i even = _mm512_madd_epi16(_mm512_and_si512(x.v, low),
                                         _mm512_srai_epi16(_mm512_slli_epi16(w.v, 8), 8));
  const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(x.v, 8), _mm512_srai_epi16(w.v, 8));
  return {_mm512_add_epi32(acc.v, _mm512_add_epi32(even, odd))};
#endif
}
#elif defined(INFOPT_AVX2)
INFOPT_INLINE IVec load_ints(const int32_t *p) {
  return {_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)p + 1)};
}
INFOPT_INLINE IVec mul(IVec x, IVec y) {
  return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)};
}
INFOPT_INLINE void store_codes(uint8_t *p, IVec v) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(v.a, v.b), 0xd8);
  const __m128i low = _mm256_castsi256_si128(words), high = _mm256_extracti128_si256(words, 1);
  _mm_storeu_si128((__m128i *)p, _mm_packus_epi16(low, high));
}
template <int n> INFOPT_INLINE IVec sar(IVec x) {
  return {_mm256_srai_epi32(x.a, n), _mm256_srai_epi32(x.b, n)};
}
INFOPT_INLINE IVec unpack_halves(const uint8_t *p) {
  const __m256i bytes = _mm256_loadu_si256((const __m256i *)p), low = _mm256_set1_epi8(15);
  const __m256i eight = _mm256_set1_epi8(8);
  return {_mm256_sub_epi8(_mm256_and_si256(bytes, low), eight),
          _mm256_sub_epi8(_mm256_and_si256(_mm256_srli_epi16(bytes, 4), low), eight)};
}
INFOPT_INLINE IVec load_bytes(const int8_t *p) {
  const __m128i bytes = _mm_loadu_si128((const __m128i *)p);
  return {_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))};
}
INFOPT_INLINE Vec two_halves(const bf16 *p) {
  return {_mm256_set1_ps(to_float(p[0])), _mm256_set1_ps(to_float(p[1]))};
}
INFOPT_INLINE Vec two_halves(const float *p) {
  return {_mm256_set1_ps(p[0]), _mm256_set1_ps(p[1])};
}
// The compiler would add integers in another order, for which registers do not suffice.
INFOPT_INLINE IVec in_order(__m256i a, __m256i b) {
  __asm__("" : "+x"(a), "+x"(b));
  return {a, b};
}
// Not the instruction that adds products in 16 bits: it saturates.
INFOPT_INLINE __m256i dot_quads(__m256i acc, __m256i x, __m256i w) {
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(x, _mm256_set1_epi16(0xff)),
                                         _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(x, 8), _mm256_srai_epi16(w, 8));
  return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
}
INFOPT_INLINE IVec dot_quads(IVec acc, IVec x, IVec w) {
  return in_order(dot_quads(acc.a, x.a, w.a), dot_quads(acc.b, x.b, w.b));
}

// Sums of two neighbouring products in every half of a lane; they saturate.
INFOPT_INLINE IVec add_halves(IVec acc, IVec x, IVec w) {
  return in_order(_mm256_add_epi16(acc.a, _mm256_maddubs_epi16(x.a, w.a)),
                  _mm256_add_epi16(acc.b, _mm256_maddubs_epi16(x.b, w.b)));
}
// acc + the two halves of every lane, signed
INFOPT_INLINE IVec join_halves(IVec acc, IVec halves) {
  const __m256i ones = _mm256_set1_epi16(1);
  return {_mm256_add_epi32(acc.a, _mm256_madd_epi16(halves.a, ones)),
          _mm256_add_epi32(acc.b, _mm256_madd_epi16(halves.b, ones))};
}
INFOPT_INLINE IVec dot_small_quads(IVec acc, IVec x, IVec w) {
  return join_halves(acc, add_halves(ibroadcast(0), x, w));  // 2 * 255 * 64 < 2^15
}

// Four bytes as two pairs of 16 bits, of which dot_halves adds the products with w's.
INFOPT_INLINE IVec even_bytes(IVec x) { return x & ibroadcast(0x00ff00ff); }
INFOPT_INLINE IVec odd_bytes(IVec x) {
  return {_mm256_srli_epi16(x.a, 8), _mm256_srli_epi16(x.b, 8)};
}
INFOPT_INLINE IVec dot_halves(IVec acc, IVec x, IVec w) {
  return in_order(_mm256_add_epi32(acc.a, _mm256_madd_epi16(x.a, w.a)),
                  _mm256_add_epi32(acc.b, _mm256_madd_epi16(x.b, w.b)));
}
// 64 signed bytes as 16 bits each; of every four the order is 0 2 1 3.
INFOPT_INLINE void store_halves(int16_t *to, IVec bytes) {
  for (int i = 0; i < 2; ++i, to += 32) {
    const __m256i v = i ? bytes.b : bytes.a;
    const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8);
    const __m256i odd = _mm256_srai_epi16(v, 8);
    const __m256i low = _mm256_unpacklo_epi32(even, odd), high = _mm256_unpackhi_epi32(even, odd);
    _mm256_storeu_si256((__m256i *)to, _mm256_permute2x128_si256(low, high, 0x20));
    _mm256_storeu_si256((__m256i *)to + 1, _mm256_permute2x128_si256(low, high, 0x31));
  }
}
#else
INFOPT_INLINE IVec load_ints(const int32_t *p) {
  IVec r;
  memcpy(&r, p, sizeof r);
  return r;
}
template <class F> INFOPT_INLINE IVec each_quarter(F f) {
  IVec r;
  for (int i = 0; i < 4; ++i) r.q[i] = f(i);
  return r;
}
template <int n> INFOPT_INLINE IVec sar(IVec a) {
  return each_quarter([&](int i) { return a.q[i] >> n; });
}
INFOPT_INLINE IVec unpack_halves(const uint8_t *p) {
  int8_t bytes[64];
  for (int i = 0; i < 32; ++i) {
    bytes[i] = int8_t((p[i] & 15) - 8);
    bytes[i + 32] = int8_t((p[i] >> 4) - 8);
  }
  return load_ints((const int32_t *)bytes);
}
INFOPT_INLINE IVec load_bytes(const int8_t *p) {
  IVec r;
  for (int i = 0; i < 16; ++i) r.q[i / 4][i % 4] = p[i];
  return r;
}
INFOPT_INLINE Vec two_halves(const bf16 *p) {
  Vec r;
  for (int i = 0; i < 16; ++i) r.q[i / 4][i % 4] = to_float(p[i / 8]);
  return r;
}
INFOPT_INLINE Vec two_halves(const float *p) {
  Vec r;
  for (int i = 0; i < 16; ++i) r.q[i / 4][i % 4] = p[i / 8];
  return r;
}
INFOPT_INLINE IVec mul(IVec a, IVec b) {
  return each_quarter([&](int i) { return a.q[i] * b.q[i]; });
}
INFOPT_INLINE void store_codes(uint8_t *p, IVec v) {
  for (int i = 0; i < 16; ++i) {
    const int32_t lane = v.q[i / 4][i % 4];
    p[i] = uint8_t(lane < 0 ? 0 : lane > 255 ? 255 : lane);
  }
}
INFOPT_INLINE IVec dot_quads(IVec acc, IVec x, IVec w) {
  return each_quarter([&](int i) {
    Int4 sum = acc.q[i];
    for (int place = 0; place < 32; place += 8)
      sum += ((x.q[i] >> place) & 0xff) * ((w.q[i] << (24 - place)) >> 24);
    return sum;
  });
}
#endif

INFOPT_INLINE Vec widen_bytes(const int8_t *p) { return to_float(load_bytes(p)); }
INFOPT_INLINE void bytes_as_floats(IVec bytes, Vec *part) {
  part[0] = to_float(sar<24>(shl<24>(bytes)));
  part[1] = to_float(sar<24>(shl<16>(bytes)));
  part[2] = to_float(sar<24>(shl<8>(bytes)));
  part[3] = to_float(sar<24>(bytes));
}
#ifndef INFOPT_AVX2
INFOPT_INLINE IVec add_halves(IVec acc, IVec x, IVec w) { return dot_quads(acc, x, w); }
INFOPT_INLINE IVec join_halves(IVec acc, IVec halves) { return acc + halves; }
INFOPT_INLINE IVec dot_small_quads(IVec acc, IVec x, IVec w) { return dot_quads(acc, x, w); }
#endif
#ifndef INFOPT_AVX512
INFOPT_INLINE void halves_as_floats(const uint8_t *p, Vec *part) {
  bytes_as_floats(unpack_halves(p), part);
}
#endif

#ifndef INFOPT_AVX2
INFOPT_INLINE IVec int_sums16(const Vec *rows) {
  Vec t[16];
  for (int i = 0; i < 16; ++i) t[i] = rows[i];
  transpose16(t);
  IVec sum = bits(t[0]);
  for (int i = 1; i < 16; ++i) sum = sum + bits(t[i]);
  return sum;
}
#endif
INFOPT_INLINE IVec load_quads(const uint8_t *p) { return load_ints((const int32_t *)p); }
INFOPT_INLINE IVec broadcast_quad(const int8_t *p) {
  int32_t quad;
  memcpy(&quad, p, sizeof quad);
  return ibroadcast(quad);
}

}  // namespace infopt
