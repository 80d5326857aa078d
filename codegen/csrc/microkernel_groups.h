// The micro-kernel for bytes with a factor for every group along k: integers within a group, floats
// across groups, both in registers.
//
//   c[p][r][i] (+)= sum_g scales[r][g] * sum_k-in-g rows[r][k] * panel[p][k][i]
#pragma once

#include "stored_rows.h"

namespace infopt {

// Half the rows of a block without groups: each needs a second accumulator.
constexpr int kGroupedRows = kBlock<StepBytes, kPanels> / 2 > 0 ? kBlock<StepBytes, kPanels> / 2 : 1;

struct GroupedBlock {
  const int8_t *rows;  // padded with zeros to whole quads
  int64_t row_stride;
  const StoredRows *stored;  // whose factors count from row n and group g on
  int64_t n, g, group, k;
};

template <int R, int P>
__attribute__((noinline)) void multiply_groups(const GroupedBlock &b, const uint8_t *panels,
                                               int64_t panel_stride, float *c, int64_t c_stride,
                                               bool accumulate) {
  constexpr int kUnroll = 8;
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
    auto step = [&](int u) __attribute__((always_inline)) {
      IVec lanes[P];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) lanes[p] = load_quads(x + p * panel_stride + u * 64);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const IVec quad = broadcast_quad(rows + r * b.row_stride + u * 4);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) acc[r][p] = dot_quads(acc[r][p], lanes[p], quad);
      }
    };
    int64_t quads = ceil_div(least(b.group, b.k - g * b.group), 4);
    for (; quads >= kUnroll; quads -= kUnroll, rows += kUnroll * 4, x += kUnroll * 64) {
#pragma GCC unroll 8
      for (int u = 0; u < kUnroll; ++u) step(u);
    }
    for (; quads > 0; --quads, rows += 4, x += 64) step(0);
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
inline void multiply_groups(GroupedBlock b, int64_t row_count, const uint8_t *panels,
                            int64_t panel_stride, int64_t count, float *c, int64_t c_stride,
                            bool accumulate) {
  auto block = [&](auto size) __attribute__((always_inline)) {
    constexpr int R = decltype(size)::value;
    int64_t p = 0;
    for (; p + kPanels <= count; p += kPanels)
      multiply_groups<R, kPanels>(b, panels + p * panel_stride, panel_stride, c + p * c_stride,
                                  c_stride, accumulate);
    if (p < count)
      multiply_groups<R, 1>(b, panels + p * panel_stride, panel_stride, c + p * c_stride, c_stride,
                            accumulate);
    b.rows += R * b.row_stride, b.n += R, c += R * 16, row_count -= R;
  };
  while (row_count >= kGroupedRows) block(Constant<kGroupedRows>());
  if constexpr (kGroupedRows > 2) while (row_count >= 2) block(Constant<2>());
  while (row_count > 0) block(Constant<1>());
}

}  // namespace infopt
