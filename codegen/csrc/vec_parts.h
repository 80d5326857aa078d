// Parts of a Vec: loops that need more sums than there are registers for Vecs go through k once for
// the lanes of each register. The second time their weights are in the first cache. Lanes, and the
// order of sums in every lane, are those of whole Vecs.
//
//   kParts        registers of a Vec where that pays (AVX2: two), else 1
//   Part<p>       lanes of register p, Whole all lanes:
//     F, I        their floats, their integers
//     of(v)       those lanes of a Vec or an IVec; the compiler drops what only others need
//     put(v, f)   v's lanes become f
//     kRegisters  how many F the registers hold
//   fma, to_float, bits, float_of_bits, dot_quads, dot_small_quads    of F and I as of Vec and IVec
#pragma once

#include "microkernel.h"

namespace infopt {

struct Whole {
  using F = Vec;
  using I = IVec;
  static constexpr bool kWhole = true;
  static constexpr int kRegisters = infopt::kRegisters;
  template <class V> static INFOPT_INLINE V of(V v) { return v; }
  static INFOPT_INLINE void put(Vec &v, Vec f) { v = f; }
};

#ifdef INFOPT_AVX2
constexpr int kParts = 2;
template <int p> struct Part {
  using F = __m256;
  using I = __m256i;
  static constexpr bool kWhole = false;
  static constexpr int kRegisters = 2 * infopt::kRegisters;
  static INFOPT_INLINE F of(Vec v) { return p ? v.b : v.a; }
  static INFOPT_INLINE I of(IVec v) { return p ? v.b : v.a; }
  static INFOPT_INLINE void put(Vec &v, F f) { (p ? v.b : v.a) = f; }
};
INFOPT_INLINE __m256 fma(__m256 x, __m256 y, __m256 z) { return _mm256_fmadd_ps(x, y, z); }
INFOPT_INLINE __m256 to_float(__m256i x) { return _mm256_cvtepi32_ps(x); }
INFOPT_INLINE __m256i bits(__m256 x) { return _mm256_castps_si256(x); }
INFOPT_INLINE __m256 float_of_bits(__m256i x) { return _mm256_castsi256_ps(x); }
INFOPT_INLINE __m256i dot_small_quads(__m256i acc, __m256i x, __m256i w) {
  const __m256i halves = _mm256_maddubs_epi16(x, w);  // 2 * 255 * 64 < 2^15
  return _mm256_add_epi32(acc, _mm256_madd_epi16(halves, _mm256_set1_epi16(1)));
}
#else
constexpr int kParts = 1;
template <int> using Part = Whole;
#endif

// Memory that is wanted some time later, asked for a little in every step, so that it comes in at
// an even pace while the registers are busy: a burst would stall the loads of the steps themselves.
struct Upcoming {
  const char *at;
  int64_t step;  // bytes
  Upcoming(const void *from, int64_t bytes, int64_t steps)
      : at((const char *)from), step(ceil_div(bytes, steps)) {}
  INFOPT_INLINE void fetch() {
    __builtin_prefetch(at, 0, 2);
    at += step;
  }
};

}  // namespace infopt
