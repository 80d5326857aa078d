// exp2 for softmax weights: arguments are <= 0 but for rounding; exp2(-inf) = 0, NaN stays NaN.
#pragma once

#include "vec.h"

namespace infopt {

// 2^x = 2^floor(x) * p(x - floor(x)); p is a minimax polynomial of 2^f on [0, 1) with p(0) = 1.
// Precise: degree 5, relative error 1.5e-7 with rounding. Otherwise degree 4, 3e-6: for weights
// that are rounded to bf16 (4e-3) right after.
template <bool Precise>
INFOPT_INLINE Vec exp2_fraction(Vec f) {
  if (Precise) {
    Vec p = fma(f, broadcast(1.867130515165627e-3f), broadcast(9.017029777169228e-3f));
    p = fma(f, p, broadcast(5.579991266131401e-2f));
    p = fma(f, p, broadcast(2.4016444385051727e-1f));
    p = fma(f, p, broadcast(6.931512951850891e-1f));
    return fma(f, p, broadcast(1.0f));
  }
  Vec p = fma(f, broadcast(1.3426687568426132e-2f), broadcast(5.22424690425396e-2f));
  p = fma(f, p, broadcast(2.412802129983902e-1f));
  p = fma(f, p, broadcast(6.930448412895203e-1f));
  return fma(f, p, broadcast(1.0f));
}

template <bool Precise>
INFOPT_INLINE Vec exp2_weight(Vec x) {
#ifdef INFOPT_AVX512
  const Vec f = {_mm512_reduce_ps(x.v, 9)};  // x - floor(x); 0 where x is infinite
  return {_mm512_scalef_ps(exp2_fraction<Precise>(f).v, x.v)};  // scalef floors its exponent
#else
  const Vec bounded = max(broadcast(-254.0f), x);  // the second operand if x is NaN
  const Vec n = floor(bounded);
  return scale2(exp2_fraction<Precise>(bounded - n), n);
#endif
}

// Two neighbouring weights as bf16 pairs. They are not negative, so denormals alone are lost.
INFOPT_INLINE BVec weight_pairs(Vec even, Vec odd) {
#if defined(INFOPT_AVX512) && defined(__AVX512BF16__)
  alignas(64) static const uint16_t kInterleaved[32] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return {_mm512_permutexvar_epi16(_mm512_load_si512(kInterleaved),
                                   (__m512i)_mm512_cvtne2ps_pbh(odd.v, even.v))};
#else
  return to_pairs(even, odd);
#endif
}

}  // namespace infopt
