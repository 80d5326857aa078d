// Vec where nothing better is known: four 16-byte compiler vectors (SSE2, NEON, or scalar code).
// fma rounds twice here. See vec.h for the contract.
#pragma once

#include <cmath>

#include "half.h"

namespace infopt {

typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));
typedef uint32_t UInt4 __attribute__((vector_size(16)));

struct Vec { Float4 q[4]; };
struct IVec { Int4 q[4]; };
struct BVec { UInt4 q[4]; };
struct Mask { Int4 q[4]; };

#define INFOPT_EACH(Type, expression)           \
  Type r;                                       \
  for (int i = 0; i < 4; ++i) r.q[i] = expression; \
  return r;

INFOPT_INLINE Vec broadcast(float x) { INFOPT_EACH(Vec, (Float4{x, x, x, x})) }
INFOPT_INLINE Vec zero() { return broadcast(0); }
INFOPT_INLINE Vec iota() {
  INFOPT_EACH(Vec, (Float4{i * 4.0f, i * 4.0f + 1, i * 4.0f + 2, i * 4.0f + 3}))
}
INFOPT_INLINE Vec operator+(Vec a, Vec b) { INFOPT_EACH(Vec, a.q[i] + b.q[i]) }
INFOPT_INLINE Vec operator-(Vec a, Vec b) { INFOPT_EACH(Vec, a.q[i] - b.q[i]) }
INFOPT_INLINE Vec operator*(Vec a, Vec b) { INFOPT_EACH(Vec, a.q[i] * b.q[i]) }
INFOPT_INLINE Vec operator/(Vec a, Vec b) { INFOPT_EACH(Vec, a.q[i] / b.q[i]) }
INFOPT_INLINE Vec operator-(Vec a) { INFOPT_EACH(Vec, -a.q[i]) }
INFOPT_INLINE Vec fma(Vec a, Vec b, Vec c) { INFOPT_EACH(Vec, a.q[i] * b.q[i] + c.q[i]) }
INFOPT_INLINE Vec fnma(Vec a, Vec b, Vec c) { INFOPT_EACH(Vec, c.q[i] - a.q[i] * b.q[i]) }
INFOPT_INLINE Vec min(Vec a, Vec b) { INFOPT_EACH(Vec, a.q[i] < b.q[i] ? a.q[i] : b.q[i]) }
INFOPT_INLINE Vec max(Vec a, Vec b) { INFOPT_EACH(Vec, a.q[i] > b.q[i] ? a.q[i] : b.q[i]) }

INFOPT_INLINE IVec ibroadcast(int32_t x) { INFOPT_EACH(IVec, (Int4{x, x, x, x})) }
INFOPT_INLINE IVec bits(Vec a) { INFOPT_EACH(IVec, (Int4)a.q[i]) }
INFOPT_INLINE Vec float_of_bits(IVec a) { INFOPT_EACH(Vec, (Float4)a.q[i]) }
INFOPT_INLINE Vec to_float(IVec a) { INFOPT_EACH(Vec, __builtin_convertvector(a.q[i], Float4)) }
INFOPT_INLINE IVec operator+(IVec a, IVec b) { INFOPT_EACH(IVec, a.q[i] + b.q[i]) }
INFOPT_INLINE IVec operator-(IVec a, IVec b) { INFOPT_EACH(IVec, a.q[i] - b.q[i]) }
INFOPT_INLINE IVec operator&(IVec a, IVec b) { INFOPT_EACH(IVec, a.q[i] & b.q[i]) }
INFOPT_INLINE IVec operator|(IVec a, IVec b) { INFOPT_EACH(IVec, a.q[i] | b.q[i]) }
template <int n> INFOPT_INLINE IVec shl(IVec a) { INFOPT_EACH(IVec, (Int4)((UInt4)a.q[i] << n)) }
template <int n> INFOPT_INLINE IVec shr(IVec a) { INFOPT_EACH(IVec, (Int4)((UInt4)a.q[i] >> n)) }
INFOPT_INLINE Vec abs(Vec a) { return float_of_bits(bits(a) & ibroadcast(0x7fffffff)); }
INFOPT_INLINE Vec copysign(Vec magnitude, Vec sign) {
  return float_of_bits(bits(abs(magnitude)) | (bits(sign) & ibroadcast(int(0x80000000))));
}

INFOPT_INLINE Mask lt(Vec a, Vec b) { INFOPT_EACH(Mask, a.q[i] < b.q[i]) }
INFOPT_INLINE Mask le(Vec a, Vec b) { INFOPT_EACH(Mask, a.q[i] <= b.q[i]) }
INFOPT_INLINE Mask eq(Vec a, Vec b) { INFOPT_EACH(Mask, a.q[i] == b.q[i]) }
INFOPT_INLINE Mask is_nan(Vec a) { INFOPT_EACH(Mask, a.q[i] != a.q[i]) }
INFOPT_INLINE Mask first_lanes(int64_t n) { return lt(iota(), broadcast(float(n))); }
INFOPT_INLINE Mask operator&(Mask a, Mask b) { INFOPT_EACH(Mask, a.q[i] & b.q[i]) }
INFOPT_INLINE Mask operator|(Mask a, Mask b) { INFOPT_EACH(Mask, a.q[i] | b.q[i]) }
INFOPT_INLINE Mask operator~(Mask a) { INFOPT_EACH(Mask, ~a.q[i]) }
INFOPT_INLINE bool any(Mask a) {
  const Int4 m = a.q[0] | a.q[1] | a.q[2] | a.q[3];
  return (m[0] | m[1] | m[2] | m[3]) != 0;
}
INFOPT_INLINE Vec select(Mask m, Vec yes, Vec no) {
  INFOPT_EACH(Vec, m.q[i] ? yes.q[i] : no.q[i])
}

// Adding and subtracting 2^23 rounds to even; values beyond it are integers already.
INFOPT_INLINE Vec round_even(Vec a) {
  const Vec magic = copysign(broadcast(0x1p23f), a);
  return select(lt(abs(a), broadcast(0x1p23f)), copysign((a + magic) - magic, a), a);
}
INFOPT_INLINE Vec floor(Vec a) {
  const Vec r = round_even(a);
  return select(lt(a, r), r - broadcast(1), r);
}
INFOPT_INLINE IVec to_int(Vec a) {
  const Vec whole = round_even(a);
  INFOPT_EACH(IVec, __builtin_convertvector(whole.q[i], Int4))
}
INFOPT_INLINE Vec sqrt(Vec a) {
  INFOPT_EACH(Vec, (Float4{std::sqrt(a.q[i][0]), std::sqrt(a.q[i][1]), std::sqrt(a.q[i][2]),
                           std::sqrt(a.q[i][3])}))
}
// Two factors, so that results from denormal to just below overflow come out right.
INFOPT_INLINE Vec scale2(Vec x, Vec n) {
  const IVec whole = to_int(n), bias = ibroadcast(127);
  const IVec half = to_int(floor(n * broadcast(0.5f)));
  return x * float_of_bits(shl<23>(half + bias)) * float_of_bits(shl<23>(whole - half + bias));
}

template <class T> INFOPT_INLINE Vec load(const T *p) {
  INFOPT_EACH(Vec, (Float4{to_float(p[4 * i]), to_float(p[4 * i + 1]), to_float(p[4 * i + 2]),
                           to_float(p[4 * i + 3])}))
}
INFOPT_INLINE Vec load(const float *p) {
  Vec r;
  memcpy(&r, p, sizeof r);
  return r;
}
template <class T> INFOPT_INLINE void store(T *p, Vec a) {
  for (int i = 0; i < 16; ++i) p[i] = from_float<T>(a.q[i / 4][i % 4]);
}
INFOPT_INLINE void store(float *p, Vec a) { memcpy(p, &a, sizeof a); }
template <class T> INFOPT_INLINE Vec load(const T *p, int64_t n) {
  T lanes[16] = {};
  memcpy(lanes, p, size_t(n) * sizeof(T));
  return load(lanes);
}
template <class T> INFOPT_INLINE void store(T *p, Vec a, int64_t n) {
  T lanes[16];
  store(lanes, a);
  memcpy(p, lanes, size_t(n) * sizeof(T));
}
INFOPT_INLINE Mask mask_bytes(const uint8_t *p, int64_t n) {
  float lanes[16] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i] != 0;
  return lt(zero(), load(lanes));
}

INFOPT_INLINE BVec load_pairs(const bf16 *p) {
  BVec r;
  memcpy(&r, p, sizeof r);
  return r;
}
INFOPT_INLINE void store_pairs(bf16 *p, BVec a) { memcpy(p, &a, sizeof a); }
INFOPT_INLINE BVec broadcast_pair(const bf16 *p) {
  uint32_t x;
  memcpy(&x, p, sizeof x);
  INFOPT_EACH(BVec, (UInt4{x, x, x, x}))
}
INFOPT_INLINE Vec even_lanes(BVec a) { INFOPT_EACH(Vec, (Float4)(a.q[i] << 16)) }
INFOPT_INLINE Vec odd_lanes(BVec a) { INFOPT_EACH(Vec, (Float4)(a.q[i] & 0xffff0000)) }
INFOPT_INLINE BVec to_pairs(Vec even, Vec odd) {
  bf16 lanes[32];
  for (int i = 0; i < 16; ++i) {
    lanes[2 * i] = from_float<bf16>(even.q[i / 4][i % 4]);
    lanes[2 * i + 1] = from_float<bf16>(odd.q[i / 4][i % 4]);
  }
  return load_pairs(lanes);
}
INFOPT_INLINE Vec dot_pairs(Vec acc, BVec a, BVec b) {
  return fma(odd_lanes(a), odd_lanes(b), fma(even_lanes(a), even_lanes(b), acc));
}

INFOPT_INLINE float sum(Vec a) {
  const Float4 s = (a.q[0] + a.q[1]) + (a.q[2] + a.q[3]);
  return (s[0] + s[2]) + (s[1] + s[3]);
}
INFOPT_INLINE float greatest(Vec a) {
  float r = a.q[0][0];
  for (int i = 1; i < 16; ++i) r = a.q[i / 4][i % 4] > r ? a.q[i / 4][i % 4] : r;
  return r;
}
INFOPT_INLINE float least(Vec a) { return -greatest(-a); }

INFOPT_INLINE void transpose16(Vec *rows) {
  float square[16][16];
  for (int i = 0; i < 16; ++i) store(square[i], rows[i]);
  for (int j = 0; j < 16; ++j)
    for (int i = 0; i < 16; ++i) rows[j].q[i / 4][i % 4] = square[i][j];
}

#undef INFOPT_EACH

}  // namespace infopt
