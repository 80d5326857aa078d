// Vec on AVX2 + FMA + F16C: two ymm registers. See vec.h for the contract.
#pragma once

#include <immintrin.h>

#include "half.h"

namespace infopt {

struct Vec { __m256 a, b; };
struct IVec { __m256i a, b; };
struct BVec { __m256i a, b; };
struct Mask { __m256 a, b; };

INFOPT_INLINE Vec zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
INFOPT_INLINE Vec broadcast(float x) {
  const __m256 v = _mm256_set1_ps(x);
  return {v, v};
}
INFOPT_INLINE Vec iota() {
  return {_mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_ps(8, 9, 10, 11, 12, 13, 14, 15)};
}
#define INFOPT_BINARY(name, call, Type) \
  INFOPT_INLINE Type name(Type x, Type y) { return {call(x.a, y.a), call(x.b, y.b)}; }
INFOPT_BINARY(operator+, _mm256_add_ps, Vec)
INFOPT_BINARY(operator-, _mm256_sub_ps, Vec)
INFOPT_BINARY(operator*, _mm256_mul_ps, Vec)
INFOPT_BINARY(operator/, _mm256_div_ps, Vec)
INFOPT_BINARY(min, _mm256_min_ps, Vec)
INFOPT_BINARY(max, _mm256_max_ps, Vec)
INFOPT_BINARY(operator&, _mm256_and_ps, Mask)
INFOPT_BINARY(operator|, _mm256_or_ps, Mask)
INFOPT_BINARY(operator+, _mm256_add_epi32, IVec)
INFOPT_BINARY(operator-, _mm256_sub_epi32, IVec)
INFOPT_BINARY(operator&, _mm256_and_si256, IVec)
INFOPT_BINARY(operator|, _mm256_or_si256, IVec)
#undef INFOPT_BINARY
INFOPT_INLINE Vec fma(Vec x, Vec y, Vec z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
INFOPT_INLINE Vec fnma(Vec x, Vec y, Vec z) {
  return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)};
}
INFOPT_INLINE Vec operator-(Vec x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_xor_ps(x.a, sign), _mm256_xor_ps(x.b, sign)};
}
INFOPT_INLINE Vec abs(Vec x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
INFOPT_INLINE Vec copysign(Vec magnitude, Vec sign) {
  const __m256 top = _mm256_set1_ps(-0.0f);
  return {_mm256_or_ps(_mm256_andnot_ps(top, magnitude.a), _mm256_and_ps(top, sign.a)),
          _mm256_or_ps(_mm256_andnot_ps(top, magnitude.b), _mm256_and_ps(top, sign.b))};
}
INFOPT_INLINE Vec sqrt(Vec x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
INFOPT_INLINE Vec round_even(Vec x) { return {_mm256_round_ps(x.a, 8), _mm256_round_ps(x.b, 8)}; }
INFOPT_INLINE Vec floor(Vec x) { return {_mm256_round_ps(x.a, 9), _mm256_round_ps(x.b, 9)}; }

#define INFOPT_COMPARE(name, predicate)                                              \
  INFOPT_INLINE Mask name(Vec x, Vec y) {                                            \
    return {_mm256_cmp_ps(x.a, y.a, predicate), _mm256_cmp_ps(x.b, y.b, predicate)}; \
  }
INFOPT_COMPARE(lt, _CMP_LT_OQ)
INFOPT_COMPARE(le, _CMP_LE_OQ)
INFOPT_COMPARE(eq, _CMP_EQ_OQ)
INFOPT_COMPARE(unordered, _CMP_UNORD_Q)
#undef INFOPT_COMPARE
INFOPT_INLINE Mask is_nan(Vec x) { return unordered(x, x); }
INFOPT_INLINE Mask first_lanes(int64_t n) { return lt(iota(), broadcast(float(n))); }
INFOPT_INLINE Mask operator~(Mask x) {
  const __m256 ones = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
  return {_mm256_xor_ps(x.a, ones), _mm256_xor_ps(x.b, ones)};
}
INFOPT_INLINE bool any(Mask x) { return _mm256_movemask_ps(_mm256_or_ps(x.a, x.b)) != 0; }
INFOPT_INLINE Vec select(Mask m, Vec yes, Vec no) {
  return {_mm256_blendv_ps(no.a, yes.a, m.a), _mm256_blendv_ps(no.b, yes.b, m.b)};
}

INFOPT_INLINE IVec bits(Vec x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
INFOPT_INLINE Vec float_of_bits(IVec x) {
  return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)};
}
INFOPT_INLINE IVec to_int(Vec x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
INFOPT_INLINE Vec to_float(IVec x) {
  return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)};
}
INFOPT_INLINE IVec ibroadcast(int32_t x) {
  return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
template <int n> INFOPT_INLINE IVec shl(IVec x) {
  return {_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)};
}
template <int n> INFOPT_INLINE IVec shr(IVec x) {
  return {_mm256_srli_epi32(x.a, n), _mm256_srli_epi32(x.b, n)};
}
// Two factors, so that results from denormal to just below overflow come out right.
INFOPT_INLINE Vec scale2(Vec x, Vec n) {
  const IVec whole = to_int(n);
  const IVec half = {_mm256_srai_epi32(whole.a, 1), _mm256_srai_epi32(whole.b, 1)};
  const IVec bias = ibroadcast(127);
  return x * float_of_bits(shl<23>(half + bias)) * float_of_bits(shl<23>(whole - half + bias));
}

INFOPT_INLINE __m256 widen_bf16(__m128i h) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
// The 16 rounded bits of each lane, in the low half of 32.
INFOPT_INLINE __m256i round_bf16(__m256 x) {
  const __m256i u = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i r = _mm256_add_epi32(_mm256_add_epi32(u, odd), _mm256_set1_epi32(0x7fff));
  const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
  const __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
  return _mm256_srli_epi32(_mm256_castps_si256(_mm256_blendv_ps(
      _mm256_castsi256_ps(r), _mm256_castsi256_ps(quiet), nan)), 16);
}

INFOPT_INLINE Vec load(const float *p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
INFOPT_INLINE Vec load(const bf16 *p) {
  return {widen_bf16(_mm_loadu_si128((const __m128i *)p)),
          widen_bf16(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
INFOPT_INLINE Vec load(const f16 *p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
          _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
INFOPT_INLINE void store(float *p, Vec x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
INFOPT_INLINE void store(bf16 *p, Vec x) {
  const __m256i packed = _mm256_packus_epi32(round_bf16(x.a), round_bf16(x.b));
  _mm256_storeu_si256((__m256i *)p, _mm256_permute4x64_epi64(packed, 0xd8));
}
INFOPT_INLINE void store(f16 *p, Vec x) {
  _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
// Tails go through a stack copy: maskload would serve float only, and tails are rare.
template <class T> INFOPT_INLINE Vec load(const T *p, int64_t n) {
  T lanes[16] = {};
  memcpy(lanes, p, size_t(n) * sizeof(T));
  return load(lanes);
}
template <class T> INFOPT_INLINE void store(T *p, Vec x, int64_t n) {
  T lanes[16];
  store(lanes, x);
  memcpy(p, lanes, size_t(n) * sizeof(T));
}
INFOPT_INLINE Mask mask_bytes(const uint8_t *p, int64_t n) {
  float lanes[16] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i] != 0;
  return lt(zero(), load(lanes));
}

INFOPT_INLINE BVec load_pairs(const bf16 *p) {
  return {_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 16))};
}
INFOPT_INLINE void store_pairs(bf16 *p, BVec x) {
  _mm256_storeu_si256((__m256i *)p, x.a);
  _mm256_storeu_si256((__m256i *)(p + 16), x.b);
}
INFOPT_INLINE BVec broadcast_pair(const bf16 *p) {
  int32_t pair;
  memcpy(&pair, p, sizeof pair);
  return {_mm256_set1_epi32(pair), _mm256_set1_epi32(pair)};
}
INFOPT_INLINE BVec to_pairs(Vec even, Vec odd) {
  return {_mm256_or_si256(round_bf16(even.a), _mm256_slli_epi32(round_bf16(odd.a), 16)),
          _mm256_or_si256(round_bf16(even.b), _mm256_slli_epi32(round_bf16(odd.b), 16))};
}
INFOPT_INLINE Vec even_lanes(BVec x) { return float_of_bits(shl<16>(IVec{x.a, x.b})); }
INFOPT_INLINE Vec odd_lanes(BVec x) {
  return float_of_bits(IVec{x.a, x.b} & ibroadcast(int(0xffff0000)));
}
INFOPT_INLINE Vec dot_pairs(Vec acc, BVec x, BVec y) {
  return fma(odd_lanes(x), odd_lanes(y), fma(even_lanes(x), even_lanes(y), acc));
}

#define INFOPT_REDUCE(name, combine256, combine128, combine1)              \
  INFOPT_INLINE float name(Vec x) {                                        \
    const __m256 v = combine256(x.a, x.b);                                 \
    __m128 h = combine128(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); \
    h = combine128(h, _mm_movehl_ps(h, h));                                \
    return _mm_cvtss_f32(combine1(h, _mm_movehdup_ps(h)));                 \
  }
INFOPT_REDUCE(sum, _mm256_add_ps, _mm_add_ps, _mm_add_ss)
INFOPT_REDUCE(greatest, _mm256_max_ps, _mm_max_ps, _mm_max_ss)
INFOPT_REDUCE(least, _mm256_min_ps, _mm_min_ps, _mm_min_ss)
#undef INFOPT_REDUCE

INFOPT_INLINE void transpose8(__m256 *r) {
  __m256 t[8], u[8];
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
  for (int j = 0; j < 4; ++j) {
    r[j] = _mm256_permute2f128_ps(u[j], u[4 + j], 0x20);
    r[4 + j] = _mm256_permute2f128_ps(u[j], u[4 + j], 0x31);
  }
}

// rows[i] lane j -> rows[j] lane i, as four 8x8 blocks.
INFOPT_INLINE void transpose16(Vec *rows) {
  __m256 block[4][8];
  for (int i = 0; i < 8; ++i) {
    block[0][i] = rows[i].a;
    block[1][i] = rows[i].b;
    block[2][i] = rows[8 + i].a;
    block[3][i] = rows[8 + i].b;
  }
  for (int k = 0; k < 4; ++k) transpose8(block[k]);
  for (int i = 0; i < 8; ++i) {
    rows[i] = {block[0][i], block[2][i]};
    rows[8 + i] = {block[1][i], block[3][i]};
  }
}

// Lane i of the result: the lanes of rows[i] added up by `add`, in halves; a tree of 14 shuffles.
template <class Add> INFOPT_INLINE __m256 sums8(const Vec *rows, Add add) {
  __m256 s[4];
  for (int i = 0; i < 4; ++i) {
    const __m256 x = add(rows[i].a, rows[i].b), y = add(rows[i + 4].a, rows[i + 4].b);
    s[i] = add(_mm256_permute2f128_ps(x, y, 0x20), _mm256_permute2f128_ps(x, y, 0x31));
  }
  const __m256 u = add(_mm256_shuffle_ps(s[0], s[1], 0x44), _mm256_shuffle_ps(s[0], s[1], 0xee));
  const __m256 v = add(_mm256_shuffle_ps(s[2], s[3], 0x44), _mm256_shuffle_ps(s[2], s[3], 0xee));
  return add(_mm256_shuffle_ps(u, v, 0x88), _mm256_shuffle_ps(u, v, 0xdd));
}
INFOPT_INLINE Vec sums16(const Vec *rows) {
  const auto add = [](__m256 x, __m256 y) { return _mm256_add_ps(x, y); };
  return {sums8(rows, add), sums8(rows + 8, add)};
}
INFOPT_INLINE IVec int_sums16(const Vec *rows) {
  const auto add = [](__m256 x, __m256 y) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_castps_si256(y)));
  };
  return bits(Vec{sums8(rows, add), sums8(rows + 8, add)});
}

}  // namespace infopt
