// exp, log, erf, tanh and the activations on Vec, written once for every level.
//
// Polynomials: least-squares minimax fits over the stated range. Largest errors seen, over every
// 997th float: exp 1.1 ulp, log 0.8, tanh 1.4, erf 1.5, sigmoid 2.2, silu 2.0, gelu_tanh 1.5; gelu
// 1.4 ulp or 6e-8 absolute. Infinities, NaN, signed zeros and denormal results follow C's libm.
#pragma once

namespace infopt {

// Coefficients from the highest power down (Horner). A long polynomial is cut into its odd and even
// powers, two shorter chains of dependent operations.
template <int n> INFOPT_INLINE Vec polynomial(Vec x, const float (&c)[n]) {
  constexpr int chains = n < 7 ? 1 : 2;
  const Vec step = chains == 1 ? x : x * x;
  Vec r[2] = {broadcast(c[0]), broadcast(c[1])};
#pragma GCC unroll 16
  for (int i = chains; i < n; ++i) r[i % chains] = fma(r[i % chains], step, broadcast(c[i]));
  return chains == 1 ? r[0] : fma(r[n % 2], x, r[(n - 1) % 2]);
}

// exp(x) * 2^shift
INFOPT_INLINE Vec exp_scaled(Vec x, float shift) {
  // Beyond these ends the result is 0 or infinity; the operand order lets a NaN through.
  x = min(broadcast(89.0f), max(broadcast(-104.0f), x));
  const Vec n = round_even(x * broadcast(1.44269504f));
  // ln 2 in two parts; the first has few bits, so its product with n is exact.
  const Vec r = fnma(n, broadcast(-2.12194440e-4f), fnma(n, broadcast(0.693359375f), x));
  const Vec p = polynomial(r, {1.39505942e-3f, 8.3689543e-3f, 4.16662042e-2f, 0.166665183f,
                               0.5f});
  return scale2(fma(r * r, p, r) + broadcast(1), shift == 0 ? n : n + broadcast(shift));
}
INFOPT_INLINE Vec exp(Vec x) { return exp_scaled(x, 0); }

INFOPT_INLINE Vec log(Vec x) {
  const Mask tiny = lt(x, broadcast(0x1p-126f));
  const Vec y = select(tiny, x * broadcast(0x1p24f), x);
  // Mantissa in [sqrt(1/2), sqrt(2)): subtracting the bits of sqrt(1/2) carries into the exponent.
  const IVec shifted = bits(y) - ibroadcast(0x3f3504f3);
  const Vec m = float_of_bits((shifted & ibroadcast(0x007fffff)) + ibroadcast(0x3f3504f3));
  Vec e = to_float(shr<23>(shifted + ibroadcast(0x3f800000))) - broadcast(127);
  e = select(tiny, e - broadcast(24), e);
  const Vec f = m - broadcast(1), f2 = f * f;
  Vec p = polynomial(f, {0.0674648996f, -0.116756154f, 0.118882118f, -0.124055979f, 0.142195464f,
                         -0.166679952f, 0.20002119f, -0.250000096f, 0.333333126f});
  p = fma(e, broadcast(-2.12194440e-4f), p * f * f2);
  p = fnma(broadcast(0.5f), f2, p);
  Vec r = fma(e, broadcast(0.693359375f), f + p);
  const Vec infinity = float_of_bits(ibroadcast(0x7f800000));
  r = select(eq(x, infinity) | is_nan(x), x, r);
  r = select(eq(x, zero()), -infinity, r);
  return select(lt(x, zero()), float_of_bits(ibroadcast(0x7fc00000)), r);
}

INFOPT_INLINE Vec tanh(Vec x) {
  const Vec t = abs(x), s = x * x;
  const Vec p = polynomial(s, {-0.00566075434f, 0.020601973f, -0.0537292179f, 0.133313288f,
                               -0.333332783f});
  const Vec large = broadcast(1) - broadcast(2) / (exp(t + t) + broadcast(1));
  return copysign(select(lt(t, broadcast(0.625f)), fma(x * s, p, x), large), x);
}

INFOPT_INLINE Vec erf(Vec x) {
  const Vec t = abs(x), s = x * x;
  const Vec p = polynomial(s, {8.40231408e-5f, -8.15258288e-4f, 5.20217229e-3f, -0.0268600156f,
                               0.112837113f, -0.376126354f, 0.128379167f});
  // log(erfc(t)) for t in [0.92, 4]; erf is 1 beyond.
  const Vec q = polynomial(min(broadcast(4.0f), t),
                           {1.95941306e-4f, -3.04325463e-3f, 0.0222270589f, -0.103931865f,
                            -0.637181961f, -1.12767579f, -1.95639561e-4f});
  const Vec large = copysign(broadcast(1) - exp(q), x);
  return select(lt(t, broadcast(0.92f)), fma(x, p, x), large);
}

INFOPT_INLINE Vec sigmoid(Vec x) { return broadcast(1) / (broadcast(1) + exp(-x)); }
INFOPT_INLINE Vec silu(Vec x) { return x / (broadcast(1) + exp(-x)); }
INFOPT_INLINE Vec quick_gelu(Vec x) { return x / (broadcast(1) + exp(broadcast(-1.702f) * x)); }
INFOPT_INLINE Vec relu(Vec x) { return max(zero(), x); }
INFOPT_INLINE Vec relu6(Vec x) { return min(broadcast(6), max(zero(), x)); }
INFOPT_INLINE Vec hard_swish(Vec x) { return x * (relu6(x + broadcast(3)) / broadcast(6)); }

// x * Phi(x), through erfc(|x|/sqrt 2) = exp(|x| p(|x|)): one exponential and no division. The
// absolute error of Phi is below one rounding of 1, as in the usual x/2 * (1 + erf(x/sqrt 2)).
INFOPT_INLINE Vec gelu(Vec x) {
  const Vec t = abs(x);
  const Vec p = polynomial(min(broadcast(6.0f), t),
                           {-1.86005755e-8f, 5.634326e-7f, -7.2942199e-6f, 5.13569442e-5f,
                            -1.88545107e-4f, -1.07000011e-5f, 4.82829994e-3f, -0.0363584533f,
                            -0.318304703f, -0.797884944f});
  const Vec half = exp_scaled(t * p, -1);
  return x * select(lt(x, zero()), half, broadcast(1) - half);
}

// gelu for results of few bits: relu(x) - |x| Phi(-|x|), which is small everywhere, as one
// polynomial. Absolute error below 1.3e-4.
constexpr float kCoarseGeluError = 1.3e-4f;
INFOPT_INLINE Vec coarse_gelu(Vec x) {
  const Vec t = min(broadcast(3.84f), abs(x));
  const Vec rest = polynomial(t, {-7.105579e-4f, 0.010792953f, -0.06194763f, 0.15079436f,
                                  -0.056274973f, -0.3832666f, 0.49929735f, -1.15068506e-4f});
  return max(x, zero()) - rest;
}

// x/2 * (1 + tanh(u)) = x * sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3).
INFOPT_INLINE Vec gelu_tanh(Vec x) {
  const Vec minus_2u = x * fma(x * x, broadcast(-0.0713548163f), broadcast(-1.59576912f));
  return x / (broadcast(1) + exp(minus_2u));
}

}  // namespace infopt
