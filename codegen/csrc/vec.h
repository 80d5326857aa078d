// Vec: 16 floats on every instruction-set level, so that a kernel is written once.
//
// The level is what the compiler flags allow: AVX-512 (one zmm), AVX2+FMA+F16C (two ymm), or
// anything else (four 16-byte vectors: SSE2, NEON, or scalar code). One header per level defines
//
//   Vec   zero() broadcast(f) iota()  + - * / unary-  fma(a,b,c)=a*b+c  fnma(a,b,c)=c-a*b
//         min max (the second operand if either is NaN)  abs sqrt round_even floor
//         copysign(magnitude, sign)  scale2(x, n) = x * 2^n (n integral, |n| <= 254)
//   Mask  lt le eq is_nan first_lanes(n)  & | ~  select(m, yes, no)  mask_bytes(p, n) any(m)
//   IVec  bits(v) float_of_bits(i) to_int(v) (to nearest even) to_float(i) ibroadcast(n) + - & | shl<n> shr<n>
//   load(p) load(p, n) store(p, v) store(p, v, n)   p: float, bf16 or f16, any alignment;
//         n lanes (0..16): the others read as 0 and are not written; stores round to nearest
//         even and keep NaN
//   BVec  32 bf16 as 16 pairs: load_pairs(p) broadcast_pair(p) to_pairs(even, odd)
//         to_row(first, next): 32 neighbours of a row, as they lie in memory
//         even_lanes(b) odd_lanes(b) dot_pairs(acc, a, b) = acc + a.even*b.even + a.odd*b.odd
//   sum(v) greatest(v) least(v)   horizontal;   transpose16(rows)   16 Vecs in place
//   sums16(rows)   lane i = sum(rows[i]), in halves
//
// vec_math.h adds exp, log, erf, tanh, sigmoid, silu and the GELUs on top of these.
#pragma once

#include "abi.h"
#include "half.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define INFOPT_AVX512 1
#include "vec_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define INFOPT_AVX2 1
#include "vec_avx2.h"
#else
#define INFOPT_SCALAR 1
#include "vec_portable.h"
#endif

namespace infopt {
#ifndef INFOPT_AVX512
INFOPT_INLINE BVec to_row(Vec first, Vec next) {
  bf16 row[32];
  store(row, first);
  store(row + 16, next);
  return load_pairs(row);
}
#endif
#ifdef INFOPT_SCALAR
INFOPT_INLINE Vec sums16(const Vec *rows) {
  Vec t[16];
  for (int i = 0; i < 16; ++i) t[i] = rows[i];
  transpose16(t);
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) t[i] = t[i] + t[i + half];
  return t[0];
}
#endif
}  // namespace infopt

#include "vec_math.h"
