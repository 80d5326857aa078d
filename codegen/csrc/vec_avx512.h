// Vec on AVX-512: one zmm register. See vec.h for the contract.
#pragma once

#include <immintrin.h>

#include "half.h"

namespace infopt {

struct Vec { __m512 v; };
struct IVec { __m512i v; };
struct BVec { __m512i v; };
struct Mask { __mmask16 m; };

INFOPT_INLINE Vec zero() { return {_mm512_setzero_ps()}; }
INFOPT_INLINE Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
INFOPT_INLINE Vec iota() {
  return {_mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)};
}
INFOPT_INLINE Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
INFOPT_INLINE Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
INFOPT_INLINE Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
INFOPT_INLINE Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
INFOPT_INLINE Vec operator-(Vec a) { return {_mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f))}; }
INFOPT_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
INFOPT_INLINE Vec fnma(Vec a, Vec b, Vec c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
INFOPT_INLINE Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
INFOPT_INLINE Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
INFOPT_INLINE Vec abs(Vec a) { return {_mm512_andnot_ps(_mm512_set1_ps(-0.0f), a.v)}; }
INFOPT_INLINE Vec sqrt(Vec a) { return {_mm512_sqrt_ps(a.v)}; }
INFOPT_INLINE Vec round_even(Vec a) { return {_mm512_roundscale_ps(a.v, 8)}; }
INFOPT_INLINE Vec floor(Vec a) { return {_mm512_roundscale_ps(a.v, 9)}; }
INFOPT_INLINE Vec copysign(Vec magnitude, Vec sign) {
  const __m512i top = _mm512_set1_epi32(int(0x80000000));
  return {_mm512_castsi512_ps(_mm512_ternarylogic_epi32(
      top, _mm512_castps_si512(sign.v), _mm512_castps_si512(magnitude.v), 0xca))};
}
INFOPT_INLINE Vec scale2(Vec x, Vec n) { return {_mm512_scalef_ps(x.v, n.v)}; }

INFOPT_INLINE Mask lt(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
INFOPT_INLINE Mask le(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
INFOPT_INLINE Mask eq(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
INFOPT_INLINE Mask is_nan(Vec a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
INFOPT_INLINE Mask first_lanes(int64_t n) { return {__mmask16((1u << n) - 1)}; }
INFOPT_INLINE Mask operator&(Mask a, Mask b) { return {__mmask16(a.m & b.m)}; }
INFOPT_INLINE Mask operator|(Mask a, Mask b) { return {__mmask16(a.m | b.m)}; }
INFOPT_INLINE Mask operator~(Mask a) { return {__mmask16(~a.m)}; }
INFOPT_INLINE bool any(Mask a) { return a.m != 0; }
INFOPT_INLINE Vec select(Mask m, Vec yes, Vec no) {
  return {_mm512_mask_blend_ps(m.m, no.v, yes.v)};
}
INFOPT_INLINE Mask mask_bytes(const uint8_t *p, int64_t n) {
  const __m128i bytes = _mm_maskz_loadu_epi8(first_lanes(n).m, p);
  return {_mm_test_epi8_mask(bytes, bytes)};
}

INFOPT_INLINE IVec bits(Vec a) { return {_mm512_castps_si512(a.v)}; }
INFOPT_INLINE Vec float_of_bits(IVec a) { return {_mm512_castsi512_ps(a.v)}; }
INFOPT_INLINE IVec to_int(Vec a) { return {_mm512_cvtps_epi32(a.v)}; }
INFOPT_INLINE Vec to_float(IVec a) { return {_mm512_cvtepi32_ps(a.v)}; }
INFOPT_INLINE IVec ibroadcast(int32_t x) { return {_mm512_set1_epi32(x)}; }
INFOPT_INLINE IVec operator+(IVec a, IVec b) { return {_mm512_add_epi32(a.v, b.v)}; }
INFOPT_INLINE IVec operator-(IVec a, IVec b) { return {_mm512_sub_epi32(a.v, b.v)}; }
INFOPT_INLINE IVec operator&(IVec a, IVec b) { return {_mm512_and_si512(a.v, b.v)}; }
INFOPT_INLINE IVec operator|(IVec a, IVec b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int n> INFOPT_INLINE IVec shl(IVec a) { return {_mm512_slli_epi32(a.v, n)}; }
template <int n> INFOPT_INLINE IVec shr(IVec a) { return {_mm512_srli_epi32(a.v, n)}; }

INFOPT_INLINE __m512 widen_bf16(__m256i h) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
INFOPT_INLINE __m256i narrow_in_integers(__m512 x) {
  const __m512i u = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_add_epi32(_mm512_add_epi32(u, odd), _mm512_set1_epi32(0x7fff));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  r = _mm512_mask_or_epi32(r, nan, u, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
}
#ifdef __AVX512BF16__
// The hardware's conversion takes denormals for zero, as its dot product does; they are rare.
INFOPT_INLINE bool has_denormals(__m512 x) {
  return __builtin_expect(_mm512_fpclass_ps_mask(x, 0x20) != 0, 0);
}
INFOPT_INLINE __m256i narrow_bf16(__m512 x) {
  return has_denormals(x) ? narrow_in_integers(x) : (__m256i)_mm512_cvtneps_pbh(x);
}
#else
INFOPT_INLINE __m256i narrow_bf16(__m512 x) { return narrow_in_integers(x); }
#endif

INFOPT_INLINE Vec load(const float *p) { return {_mm512_loadu_ps(p)}; }
INFOPT_INLINE Vec load(const float *p, int64_t n) {
  return {_mm512_maskz_loadu_ps(first_lanes(n).m, p)};
}
INFOPT_INLINE Vec load(const bf16 *p) {
  return {widen_bf16(_mm256_loadu_si256((const __m256i *)p))};
}
INFOPT_INLINE Vec load(const bf16 *p, int64_t n) {
  return {widen_bf16(_mm256_maskz_loadu_epi16(first_lanes(n).m, p))};
}
INFOPT_INLINE Vec load(const f16 *p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p))};
}
INFOPT_INLINE Vec load(const f16 *p, int64_t n) {
  return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n).m, p))};
}
INFOPT_INLINE void store(float *p, Vec a) { _mm512_storeu_ps(p, a.v); }
INFOPT_INLINE void store(float *p, Vec a, int64_t n) {
  _mm512_mask_storeu_ps(p, first_lanes(n).m, a.v);
}
INFOPT_INLINE void store(bf16 *p, Vec a) {
  _mm256_storeu_si256((__m256i *)p, narrow_bf16(a.v));
}
INFOPT_INLINE void store(bf16 *p, Vec a, int64_t n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n).m, narrow_bf16(a.v));
}
INFOPT_INLINE void store(f16 *p, Vec a) {
  _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
INFOPT_INLINE void store(f16 *p, Vec a, int64_t n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n).m,
                           _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}

INFOPT_INLINE BVec load_pairs(const bf16 *p) { return {_mm512_loadu_si512(p)}; }
INFOPT_INLINE void store_pairs(bf16 *p, BVec a) { _mm512_storeu_si512(p, a.v); }
INFOPT_INLINE BVec broadcast_pair(const bf16 *p) {
  int32_t pair;
  memcpy(&pair, p, sizeof pair);
  return {_mm512_set1_epi32(pair)};
}
INFOPT_INLINE BVec to_pairs(Vec even, Vec odd) {
  const __m512i lo = _mm512_cvtepu16_epi32(narrow_bf16(even.v));
  const __m512i hi = _mm512_cvtepu16_epi32(narrow_bf16(odd.v));
  return {_mm512_or_si512(lo, _mm512_slli_epi32(hi, 16))};
}
#ifdef __AVX512BF16__
// Whether any of these must not be left to the hardware's conversion: asked once for a block, not
// between its stores.
template <int R, int P> INFOPT_INLINE bool has_denormals(const Vec (&t)[R][P]) {
  __mmask16 found = 0;
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) found |= _mm512_fpclass_ps_mask(t[r][p].v, 0x20);
  return __builtin_expect(found != 0, 0);
}
INFOPT_INLINE BVec to_row_without_denormals(Vec first, Vec next) {
  return {(__m512i)_mm512_cvtne2ps_pbh(next.v, first.v)};
}
#endif
INFOPT_INLINE BVec to_row(Vec first, Vec next) {
#ifdef __AVX512BF16__
  if (!has_denormals(first.v) && !has_denormals(next.v))
    return to_row_without_denormals(first, next);
#endif
  return {_mm512_inserti64x4(_mm512_castsi256_si512(narrow_bf16(first.v)), narrow_bf16(next.v), 1)};
}
INFOPT_INLINE Vec even_lanes(BVec b) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(b.v, 16))};
}
INFOPT_INLINE Vec odd_lanes(BVec b) {
  return {_mm512_castsi512_ps(_mm512_and_si512(b.v, _mm512_set1_epi32(int(0xffff0000))))};
}
INFOPT_INLINE Vec dot_pairs(Vec acc, BVec a, BVec b) {
#ifdef __AVX512BF16__
  return {_mm512_dpbf16_ps(acc.v, (__m512bh)a.v, (__m512bh)b.v)};
#else
  return fma(odd_lanes(a), odd_lanes(b), fma(even_lanes(a), even_lanes(b), acc));
#endif
}

INFOPT_INLINE float sum(Vec a) { return _mm512_reduce_add_ps(a.v); }
INFOPT_INLINE float greatest(Vec a) { return _mm512_reduce_max_ps(a.v); }
INFOPT_INLINE float least(Vec a) { return _mm512_reduce_min_ps(a.v); }

// Lane i of the result is sum(rows[i]): a tree of 30 shuffles.
INFOPT_INLINE Vec sums16(const Vec *rows) {
  __m512 s[8], u[4];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    s[i] = _mm512_add_ps(_mm512_unpacklo_ps(rows[2 * i].v, rows[2 * i + 1].v),
                         _mm512_unpackhi_ps(rows[2 * i].v, rows[2 * i + 1].v));
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(s[2 * i]), b = _mm512_castps_pd(s[2 * i + 1]);
    u[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  const __m512 v = _mm512_add_ps(_mm512_shuffle_f32x4(u[0], u[1], 0x88),
                                 _mm512_shuffle_f32x4(u[0], u[1], 0xdd));
  const __m512 w = _mm512_add_ps(_mm512_shuffle_f32x4(u[2], u[3], 0x88),
                                 _mm512_shuffle_f32x4(u[2], u[3], 0xdd));
  return {_mm512_add_ps(_mm512_shuffle_f32x4(v, w, 0x88), _mm512_shuffle_f32x4(v, w, 0xdd))};
}

// rows[i] lane j -> rows[j] lane i, in 64 shuffles.
INFOPT_INLINE void transpose16(Vec *rows) {
  __m512 t[16], u[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {  // 2x2 blocks of single lanes
    t[2 * i] = _mm512_unpacklo_ps(rows[2 * i].v, rows[2 * i + 1].v);
    t[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i].v, rows[2 * i + 1].v);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // 2x2 blocks of pairs: u[4i+j] = column j of rows 4i..4i+3
    const __m512d a = _mm512_castps_pd(t[4 * i]), b = _mm512_castps_pd(t[4 * i + 1]);
    const __m512d c = _mm512_castps_pd(t[4 * i + 2]), d = _mm512_castps_pd(t[4 * i + 3]);
    u[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    u[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    u[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    u[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {  // 4x4 transpose of the 128-bit quarters
    const __m512 a = _mm512_shuffle_f32x4(u[j], u[4 + j], 0x88);
    const __m512 b = _mm512_shuffle_f32x4(u[j], u[4 + j], 0xdd);
    const __m512 c = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0x88);
    const __m512 d = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0xdd);
    rows[j].v = _mm512_shuffle_f32x4(a, c, 0x88);
    rows[8 + j].v = _mm512_shuffle_f32x4(a, c, 0xdd);
    rows[4 + j].v = _mm512_shuffle_f32x4(b, d, 0x88);
    rows[12 + j].v = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
}

}  // namespace infopt
