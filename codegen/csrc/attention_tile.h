// The two products of attention as one register tile: lanes are query rows, the other operand is
// broadcast straight from where the tensor lies.
//
//   S[key][row]  = sum over d    K[key][d]   * Q[d][row]      a = K rows,  b = query panel
//   O[d][row]   += sum over key  V[key][d]   * P[key][row]    a = V columns, b = weight panel
//
// A panel holds `Lanes` Vecs of 16 rows side by side: float panel[depth][Lanes * 16].
#pragma once

#include "vec.h"

namespace infopt {

// One step along the depth of a product: a float, or a bf16 pair on machines that multiply pairs.
struct FloatSteps {
  using Operand = float;           // what K and V are read as
  using Panel = Vec;
  static INFOPT_INLINE Panel panel(const float *p) { return load(p); }
  static INFOPT_INLINE Panel operand(const float *p) { return broadcast(*p); }
  static INFOPT_INLINE Vec step(Vec acc, Panel a, Panel b) { return fma(a, b, acc); }
};
struct PairSteps {
  using Operand = bf16;
  using Panel = BVec;
  static INFOPT_INLINE Panel panel(const float *p) { return load_pairs((const bf16 *)p); }
  static INFOPT_INLINE Panel operand(const bf16 *p) { return broadcast_pair(p); }
  static INFOPT_INLINE Vec step(Vec acc, Panel a, Panel b) { return dot_pairs(acc, a, b); }
};

#if defined(INFOPT_AVX512)
constexpr int kMaxLanes = 4;
constexpr int tile_rows(int lanes) { return lanes <= 3 ? 8 : 4; }
#elif defined(INFOPT_AVX2)
constexpr int kMaxLanes = 1;
constexpr int tile_rows(int) { return 6; }
#else
constexpr int kMaxLanes = 1;
constexpr int tile_rows(int) { return 2; }
#endif

// c[r][lane] (+)= sum over k < depth of a[r * row_stride + k * step_stride] * b[k][lane]
template <class Steps, int Rows, int Lanes>
INFOPT_INLINE void tile(const typename Steps::Operand *a, int64_t row_stride, int64_t step_stride,
                        const float *b, int64_t depth, float *c, bool accumulate) {
  Vec acc[Rows][Lanes];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int l = 0; l < Lanes; ++l)
      acc[r][l] = accumulate ? load(c + (r * Lanes + l) * 16) : zero();
  for (int64_t k = 0; k < depth; ++k) {
    typename Steps::Panel panel[Lanes];
#pragma GCC unroll 4
    for (int l = 0; l < Lanes; ++l) panel[l] = Steps::panel(b + (k * Lanes + l) * 16);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const typename Steps::Panel x = Steps::operand(a + r * row_stride + k * step_stride);
#pragma GCC unroll 4
      for (int l = 0; l < Lanes; ++l) acc[r][l] = Steps::step(acc[r][l], x, panel[l]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int l = 0; l < Lanes; ++l) store(c + (r * Lanes + l) * 16, acc[r][l]);
}

template <class Steps, int Lanes, int Rows>
INFOPT_INLINE int64_t tiles(const typename Steps::Operand *a, int64_t row_stride,
                            int64_t step_stride, const float *b, int64_t depth, float *c,
                            int64_t from, int64_t rows, bool accumulate) {
  for (; from + Rows <= rows; from += Rows)
    tile<Steps, Rows, Lanes>(a + from * row_stride, row_stride, step_stride, b, depth,
                             c + from * Lanes * 16, accumulate);
  return from;
}

// All `rows` rows of a product.
template <class Steps, int Lanes>
__attribute__((noinline)) void product(const typename Steps::Operand *a, int64_t row_stride,
                                       int64_t step_stride, const float *b, int64_t depth,
                                       float *c, int64_t rows, bool accumulate) {
  constexpr int kFull = tile_rows(Lanes);
  int64_t r = tiles<Steps, Lanes, kFull>(a, row_stride, step_stride, b, depth, c, 0, rows,
                                         accumulate);
  if (kFull > 4)
    r = tiles<Steps, Lanes, (kFull > 4 ? 4 : 1)>(a, row_stride, step_stride, b, depth, c, r, rows,
                                                 accumulate);
  if (kFull > 2)
    r = tiles<Steps, Lanes, (kFull > 2 ? 2 : 1)>(a, row_stride, step_stride, b, depth, c, r, rows,
                                                 accumulate);
  tiles<Steps, Lanes, 1>(a, row_stride, step_stride, b, depth, c, r, rows, accumulate);
}

}  // namespace infopt
