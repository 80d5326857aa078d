// The micro-kernel for bytes with a factor for every group along k: integers within a group, floats
// across groups, both in registers.
//
//   c[p][r][i] (+)= sum_g scales[r][g] * sum_k-in-g rows[r][k] * panel[p][k][i]
#pragma once

#include "stored_rows.h"

namespace infopt {

// Products of 4-bit integers may first be summed in 16 bits, so many quads: 8 * 2 * 255 * 8 < 2^15.
constexpr int kQuadsInHalves = 8;
#ifdef INFOPT_AVX2
constexpr bool kSumsHalves = true;
constexpr int kGroupedRows = 4;  // what stands still during a group may be in memory
#else
constexpr bool kSumsHalves = false;
// Half the rows of a block without groups: each needs a second accumulator.
constexpr int kGroupedRows = kBlock<StepBytes, kPanels> / 2 > 0 ? kBlock<StepBytes, kPanels> / 2 : 1;
#endif

struct GroupedBlock {
  const int8_t *rows;  // padded with zeros to whole quads
  int64_t row_stride;
  const StoredRows *stored;  // whose factors count from row n and group g on
  int64_t n, g, group, k;
};

// small: rows are 4-bit integers
template <bool small, int R, int P>
__attribute__((noinline)) void multiply_groups(const GroupedBlock &b, const uint8_t *panels,
                                               int64_t panel_stride, float *c, int64_t c_stride,
                                               bool accumulate) {
  constexpr bool in_halves = kSumsHalves && small;
  Vec total[R][P];
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p)
      total[r][p] = accumulate ? load(c + p * c_stride + r * 16) : zero();
  const int8_t *rows = b.rows;
  const uint8_t *x = panels;
  for (int64_t g = 0; g * b.group < b.k; ++g) {
    IVec acc[R][P];
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < P; ++p) acc[r][p] = ibroadcast(0);
    // up to kQuadsInHalves
    auto some = [&](int quads) __attribute__((always_inline)) {
      IVec halves[R][P];
      for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) halves[r][p] = ibroadcast(0);
#pragma GCC unroll 8
      for (int u = 0; u < quads; ++u) {
        IVec lanes[P];
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) lanes[p] = load_quads(x + p * panel_stride + u * 64);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const IVec quad = broadcast_quad(rows + r * b.row_stride + u * 4);
#pragma GCC unroll 4
          for (int p = 0; p < P; ++p)
            if constexpr (in_halves) halves[r][p] = add_halves(halves[r][p], lanes[p], quad);
            else acc[r][p] = dot_quads(acc[r][p], lanes[p], quad);
        }
      }
      if constexpr (in_halves)
        for (int r = 0; r < R; ++r)
          for (int p = 0; p < P; ++p) acc[r][p] = join_halves(acc[r][p], halves[r][p]);
      rows += quads * 4, x += quads * 64;
    };
    int64_t quads = ceil_div(least(b.group, b.k - g * b.group), 4);
    for (; quads >= kQuadsInHalves; quads -= kQuadsInHalves) some(kQuadsInHalves);
    for (; quads > 0; --quads) some(1);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec scale = broadcast(b.stored->group_scale(b.n + r, b.g + g));
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) total[r][p] = fma(to_float(acc[r][p]), scale, total[r][p]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p) store(c + p * c_stride + r * 16, total[r][p]);
}

// The same for any number of rows and up to two panels; c_stride lies between panels of c.
template <bool small>
void multiply_groups(GroupedBlock b, int64_t row_count, const uint8_t *panels, int64_t panel_stride,
                     int64_t count, float *c, int64_t c_stride, bool accumulate) {
  auto block = [&](auto size) __attribute__((always_inline)) {
    constexpr int R = decltype(size)::value;
    int64_t p = 0;
    for (; p + kPanels <= count; p += kPanels)
      multiply_groups<small, R, kPanels>(b, panels + p * panel_stride, panel_stride,
                                         c + p * c_stride, c_stride, accumulate);
    if (p < count)
      multiply_groups<small, R, 1>(b, panels + p * panel_stride, panel_stride, c + p * c_stride,
                                   c_stride, accumulate);
    b.rows += R * b.row_stride, b.n += R, c += R * 16, row_count -= R;
  };
  while (row_count >= kGroupedRows) block(Constant<kGroupedRows>());
  if constexpr (kGroupedRows > 2) while (row_count >= 2) block(Constant<2>());
  while (row_count > 0) block(Constant<1>());
}

}  // namespace infopt
