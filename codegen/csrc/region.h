// What generated regions are written in: torch's pointwise semantics, overloaded for Vec (16 f32
// lanes), Mask (16 bools) and plain scalars, so that one text serves both kinds of loop.
//
// bf16 and f16 are computed in f32 and rounded after every op, as torch does. Integers wrap.
// Maxima, minima and clamps keep NaN.
#pragma once

#include <math.h>

#include <type_traits>

#include "vec.h"

namespace infopt {
namespace pw {

struct Full {};               // all 16 lanes
struct Tail { int64_t n; };   // the first n

template <class T> constexpr bool kInt = std::is_integral<T>::value && !std::is_same<T, bool>::value;
template <class T> using IfInt = typename std::enable_if<kInt<T>, T>::type;
template <class T> using IfFloat = typename std::enable_if<std::is_floating_point<T>::value, T>::type;
template <class T> using Wide = typename std::make_unsigned<decltype(T() + int())>::type;

// Memory
template <class T> INFOPT_INLINE Vec load16(const T *p, Full) { return load(p); }
template <class T> INFOPT_INLINE Vec load16(const T *p, Tail t) { return load(p, t.n); }
template <class T> INFOPT_INLINE void store16(T *p, Vec v, Full) { store(p, v); }
template <class T> INFOPT_INLINE void store16(T *p, Vec v, Tail t) { store(p, v, t.n); }
INFOPT_INLINE int64_t count(Full) { return 16; }
INFOPT_INLINE int64_t count(Tail t) { return t.n; }
INFOPT_INLINE Mask mask16(const uint8_t *p, Full) { return mask_bytes(p, 16); }
INFOPT_INLINE Mask mask16(const uint8_t *p, Tail t) { return mask_bytes(p, t.n); }
template <class T, class Lanes>
INFOPT_INLINE Vec gather16(const T *p, int64_t stride, Lanes lanes) {
  float values[16] = {};
  for (int64_t i = 0; i < count(lanes); ++i) values[i] = to_float(p[i * stride]);
  return load(values);
}
template <class Lanes>
INFOPT_INLINE Mask gather_mask16(const uint8_t *p, int64_t stride, Lanes lanes) {
  uint8_t values[16] = {};
  for (int64_t i = 0; i < count(lanes); ++i) values[i] = p[i * stride];
  return mask_bytes(values, 16);
}
template <class T, class Lanes>
INFOPT_INLINE void scatter16(T *p, int64_t stride, Vec v, Lanes lanes) {
  T values[16];
  store(values, v);
  for (int64_t i = 0; i < count(lanes); ++i) p[i * stride] = values[i];
}
template <class Lanes>
INFOPT_INLINE void scatter_mask16(uint8_t *p, int64_t stride, Mask m, Lanes lanes) {
  float values[16];
  store(values, select(m, broadcast(1), zero()));
  for (int64_t i = 0; i < count(lanes); ++i) p[i * stride] = uint8_t(values[i]);
}
INFOPT_INLINE Mask splat_mask(bool b) { return lt(zero(), broadcast(b ? 1.0f : 0.0f)); }

template <class T> INFOPT_INLINE T get(const T *p) { return *p; }
INFOPT_INLINE float get(const bf16 *p) { return to_float(*p); }
INFOPT_INLINE float get(const f16 *p) { return to_float(*p); }
template <class T> INFOPT_INLINE void put(T *p, T v) { *p = v; }
INFOPT_INLINE void put(bf16 *p, float v) { *p = from_float<bf16>(v); }
INFOPT_INLINE void put(f16 *p, float v) { *p = from_float<f16>(v); }

// Rounding to a 16-bit type, kept as f32
INFOPT_INLINE float round_bf16(float x) { return to_float(from_float<bf16>(x)); }
INFOPT_INLINE float round_f16(float x) { return to_float(from_float<f16>(x)); }
INFOPT_INLINE Vec round_bf16(Vec x) {
  const IVec u = bits(x);
  const IVec odd = shr<16>(u) & ibroadcast(1);
  const IVec r = (u + odd + ibroadcast(0x7fff)) & ibroadcast(int(0xffff0000));
  return select(is_nan(x), x, float_of_bits(r));
}
INFOPT_INLINE Vec round_f16(Vec x) {
  f16 values[16];
  store(values, x);
  return load(values);
}

// Conversions between scalar types, as torch's CPU casts
template <class To, class From> INFOPT_INLINE To to(From x) {
  if constexpr (std::is_same<To, bool>::value) {
    return x != From(0);
  } else if constexpr (std::is_floating_point<From>::value && kInt<To> && sizeof(To) < 4) {
    using Step = typename std::conditional<std::is_same<To, uint8_t>::value, int64_t, int32_t>::type;
    return To(Step(x));
  } else {
    return To(x);
  }
}
INFOPT_INLINE Vec to_vec(Mask m) { return select(m, broadcast(1), zero()); }
INFOPT_INLINE Mask to_mask(Vec x) { return ~eq(x, zero()); }

// Arithmetic
#define INFOPT_BINARY(name, op)                                                            \
  INFOPT_INLINE Vec name(Vec a, Vec b) { return a op b; }                                  \
  template <class T> INFOPT_INLINE IfFloat<T> name(T a, T b) { return a op b; }            \
  template <class T> INFOPT_INLINE IfInt<T> name(T a, T b) { return T(Wide<T>(a) op Wide<T>(b)); }
INFOPT_BINARY(add, +)
INFOPT_BINARY(sub, -)
INFOPT_BINARY(mul, *)
#undef INFOPT_BINARY
INFOPT_INLINE Vec div(Vec a, Vec b) { return a / b; }
template <class T> INFOPT_INLINE IfFloat<T> div(T a, T b) { return a / b; }
INFOPT_INLINE Vec muladd(Vec a, Vec b, Vec c) { return fma(a, b, c); }
template <class T> INFOPT_INLINE IfFloat<T> muladd(T a, T b, T c) { return ::fma(a, b, c); }
INFOPT_INLINE float muladd(float a, float b, float c) { return ::fmaf(a, b, c); }
template <class T> INFOPT_INLINE IfInt<T> muladd(T a, T b, T c) { return add(mul(a, b), c); }
INFOPT_INLINE Vec neg(Vec a) { return -a; }
template <class T> INFOPT_INLINE IfFloat<T> neg(T a) { return -a; }
template <class T> INFOPT_INLINE IfInt<T> neg(T a) { return T(Wide<T>(0) - Wide<T>(a)); }
INFOPT_INLINE Vec absolute(Vec a) { return abs(a); }
template <class T> INFOPT_INLINE IfFloat<T> absolute(T a) { return ::fabs(a); }
INFOPT_INLINE float absolute(float a) { return ::fabsf(a); }
template <class T> INFOPT_INLINE IfInt<T> absolute(T a) { return a < T(0) ? neg(a) : a; }
INFOPT_INLINE Vec recip(Vec a) { return broadcast(1) / a; }
template <class T> INFOPT_INLINE IfFloat<T> recip(T a) { return T(1) / a; }
INFOPT_INLINE Vec plain_root(Vec a) { return sqrt(a); }
template <class T> INFOPT_INLINE IfFloat<T> plain_root(T a) { return ::sqrt(a); }
INFOPT_INLINE float plain_root(float a) { return ::sqrtf(a); }
// The root of a negative number is a NaN without sign, as in the vector library torch calls for
// f32 and f64; the processor's own has one.
INFOPT_INLINE Vec root(Vec a) { return select(lt(a, zero()), broadcast(NAN), sqrt(a)); }
template <class T> INFOPT_INLINE IfFloat<T> root(T a) { return a < T(0) ? T(NAN) : plain_root(a); }
template <class T> INFOPT_INLINE T rroot(T a) { return recip(plain_root(a)); }

// Comparisons
#define INFOPT_COMPARE(name, op, vector)                                     \
  INFOPT_INLINE Mask name(Vec a, Vec b) { return vector; }                   \
  template <class T> INFOPT_INLINE typename std::enable_if<std::is_arithmetic<T>::value, bool>::type \
  name(T a, T b) { return a op b; }
INFOPT_COMPARE(less, <, lt(a, b))
INFOPT_COMPARE(less_equal, <=, le(a, b))
INFOPT_COMPARE(greater, >, lt(b, a))
INFOPT_COMPARE(greater_equal, >=, le(b, a))
INFOPT_COMPARE(equal, ==, eq(a, b))
INFOPT_COMPARE(not_equal, !=, ~eq(a, b))
#undef INFOPT_COMPARE
INFOPT_INLINE Mask equal(Mask a, Mask b) { return (a & b) | (~a & ~b); }
INFOPT_INLINE Mask not_equal(Mask a, Mask b) { return (a & ~b) | (~a & b); }
INFOPT_INLINE Mask nan(Vec a) { return is_nan(a); }
template <class T> INFOPT_INLINE bool nan(T a) { return a != a; }

// Booleans and bits
INFOPT_INLINE Mask both(Mask a, Mask b) { return a & b; }
INFOPT_INLINE Mask either(Mask a, Mask b) { return a | b; }
INFOPT_INLINE Mask differ(Mask a, Mask b) { return not_equal(a, b); }
INFOPT_INLINE Mask invert(Mask a) { return ~a; }
template <class T> INFOPT_INLINE T both(T a, T b) { return T(a & b); }
template <class T> INFOPT_INLINE T either(T a, T b) { return T(a | b); }
template <class T> INFOPT_INLINE T differ(T a, T b) { return T(a ^ b); }
template <class T> INFOPT_INLINE IfInt<T> invert(T a) { return T(~a); }
INFOPT_INLINE bool invert(bool a) { return !a; }
INFOPT_INLINE Vec choose(Mask m, Vec a, Vec b) { return select(m, a, b); }
INFOPT_INLINE Mask choose(Mask m, Mask a, Mask b) { return (m & a) | (~m & b); }
template <class T> INFOPT_INLINE T choose(bool m, T a, T b) { return m ? a : b; }

// Extremes: NaN wins; of equal ones the second, as the vector instructions have it
template <class T> INFOPT_INLINE T maximum(T a, T b) {
  return choose(nan(a), a, choose(greater(a, b), a, b));
}
template <class T> INFOPT_INLINE T minimum(T a, T b) {
  return choose(nan(a), a, choose(less(a, b), a, b));
}
template <class T> INFOPT_INLINE T at_least(T x, T low) { return choose(less(x, low), low, x); }
template <class T> INFOPT_INLINE T at_most(T x, T high) { return choose(greater(x, high), high, x); }

// Rounding to whole numbers
INFOPT_INLINE Vec round_down(Vec a) { return floor(a); }
INFOPT_INLINE Vec round_up(Vec a) { return -floor(-a); }
INFOPT_INLINE Vec round_zero(Vec a) { return select(lt(a, zero()), round_up(a), round_down(a)); }
INFOPT_INLINE Vec round_near(Vec a) { return round_even(a); }
template <class T> INFOPT_INLINE IfFloat<T> round_down(T a) { return ::floor(a); }
template <class T> INFOPT_INLINE IfFloat<T> round_up(T a) { return ::ceil(a); }
template <class T> INFOPT_INLINE IfFloat<T> round_zero(T a) { return ::trunc(a); }
template <class T> INFOPT_INLINE IfFloat<T> round_near(T a) { return ::nearbyint(a); }
template <class T> INFOPT_INLINE T sign(T a) {
  return choose(greater(a, T(0)), T(1), choose(less(a, T(0)), T(-1), choose(nan(a), T(0), T(0))));
}
INFOPT_INLINE Vec sign(Vec a) {
  return select(lt(zero(), a), broadcast(1), select(lt(a, zero()), broadcast(-1), zero()));
}

// Division of integers by constants, and of floats, as torch and Python define them
template <class T> INFOPT_INLINE IfInt<T> div_floor(T a, T b) {
  const T q = T(a / b);
  return (a % b != 0 && ((a < 0) != (b < 0))) ? T(q - 1) : q;
}
template <class T> INFOPT_INLINE IfInt<T> div_trunc(T a, T b) { return T(a / b); }
template <class T> INFOPT_INLINE IfInt<T> rem_floor(T a, T b) {
  const T r = T(a % b);
  return (r != 0 && ((r < 0) != (b < 0))) ? T(r + b) : r;
}
template <class T> INFOPT_INLINE IfInt<T> rem_trunc(T a, T b) { return T(a % b); }
template <class T> INFOPT_INLINE IfFloat<T> rem_trunc(T a, T b) { return ::fmod(a, b); }
template <class T> INFOPT_INLINE IfFloat<T> rem_floor(T a, T b) {
  T r = ::fmod(a, b);
  if (r != 0 && ((b < 0) != (r < 0))) r += b;
  return r;
}
template <class T> INFOPT_INLINE IfFloat<T> div_trunc(T a, T b) { return ::trunc(a / b); }
template <class T> INFOPT_INLINE IfFloat<T> div_floor(T a, T b) {
  if (b == 0) return a / b;
  const T r = ::fmod(a, b);
  T q = (a - r) / b;
  if (r != 0 && (b < 0) != (r < 0)) q -= T(1);
  if (q == 0) return ::copysign(T(0), a / b);
  T f = ::floor(q);
  if (q - f > T(0.5)) f += T(1);
  return f;
}
template <class T> INFOPT_INLINE IfInt<T> power(T a, int64_t n) {
  T r = 1;
  for (; n > 0; n >>= 1, a = mul(a, a))
    if (n & 1) r = mul(r, a);
  return r;
}
template <class T> INFOPT_INLINE IfInt<T> shift_left(T a, T n) { return T(Wide<T>(a) << n); }
template <class T> INFOPT_INLINE IfInt<T> shift_right(T a, T n) { return T(a >> n); }

// Functions of one real number; Vec where vec_math.h has them
INFOPT_INLINE Vec exponential(Vec a) { return exp(a); }
INFOPT_INLINE Vec logarithm(Vec a) { return log(a); }
INFOPT_INLINE Vec tangent_h(Vec a) { return tanh(a); }
INFOPT_INLINE Vec error_function(Vec a) { return erf(a); }
INFOPT_INLINE Vec logistic(Vec a) { return sigmoid(a); }
INFOPT_INLINE Vec silu(Vec a) { return infopt::silu(a); }
INFOPT_INLINE Vec gelu(Vec a) { return infopt::gelu(a); }
INFOPT_INLINE Vec gelu_tanh(Vec a) { return infopt::gelu_tanh(a); }
#define INFOPT_REAL(name, function)                                                      \
  INFOPT_INLINE float name(float a) { return ::function##f(a); }                         \
  INFOPT_INLINE double name(double a) { return ::function(a); }
INFOPT_REAL(exponential, exp)
INFOPT_REAL(logarithm, log)
INFOPT_REAL(tangent_h, tanh)
INFOPT_REAL(error_function, erf)
INFOPT_REAL(sine, sin)
INFOPT_REAL(cosine, cos)
INFOPT_REAL(tangent, tan)
INFOPT_REAL(arc_tangent, atan)
INFOPT_REAL(sine_h, sinh)
INFOPT_REAL(cosine_h, cosh)
INFOPT_REAL(exponential2, exp2)
INFOPT_REAL(logarithm2, log2)
INFOPT_REAL(logarithm10, log10)
INFOPT_REAL(logarithm1p, log1p)
INFOPT_REAL(exponential_m1, expm1)
#undef INFOPT_REAL
INFOPT_INLINE float power(float a, float b) { return ::powf(a, b); }
INFOPT_INLINE double power(double a, double b) { return ::pow(a, b); }
template <class T> INFOPT_INLINE IfFloat<T> logistic(T a) { return T(1) / (T(1) + exponential(-a)); }
template <class T> INFOPT_INLINE IfFloat<T> silu(T a) { return a / (T(1) + exponential(-a)); }
template <class T> INFOPT_INLINE IfFloat<T> gelu(T a) {
  return a * T(0.5) * (T(1) + error_function(a * T(0.70710678118654752440)));
}
template <class T> INFOPT_INLINE IfFloat<T> gelu_tanh(T a) {
  const T inner = T(0.79788456080286535588) * (a + T(0.044715) * a * a * a);
  return T(0.5) * a * (T(1) + tangent_h(inner));
}

}  // namespace pw
}  // namespace infopt
