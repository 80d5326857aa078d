// Linear layers whose weights are kept in groups: 8 neighbouring rows times 1 column (f32, f16) or 2
// (bf16). A block of 8 rows keeps columns of its own and names them; what meets the others is not read.
//
//   values   [ceil(N / 8)][kept][8][1 or 2]    rows beyond N and columns beyond K are 0
//   columns  int32 [ceil(N / 8)][kept]         of which group, rising
//
// The micro-kernel is that of dense layers, but for the panel row: it is looked up.
#pragma once

#include <algorithm>

#include "linear.h"

namespace infopt {

constexpr int kGroupRows = 8;

// How many of a block's rows the registers hold at once.
template <class Step>
constexpr int kRowsAtOnce = kBlock<Step, kPanels> / 8   ? 8
                            : kBlock<Step, kPanels> / 4 ? 4
                            : kBlock<Step, kPanels> / 2 ? 2
                                                        : 1;

// c[p][r][i] (+)= sum_j values[j][r] * panel[p][columns[j]][i], `count` groups, R rows, P panels.
template <class Step, int R, int P>
__attribute__((noinline)) void multiply_columns(const typename Step::Row *values,
                                                const int32_t *columns, int64_t count,
                                                const typename Step::Panel *panels,
                                                int64_t panel_stride, float *c, int64_t c_stride,
                                                bool accumulate) {
  constexpr int64_t kLanes = 16 * int64_t(sizeof(int32_t) / sizeof(typename Step::Panel));
  constexpr int64_t kAhead = 8;  // groups whose panel rows are on their way: those are no stream
  Vec acc[R][P];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) acc[r][p] = accumulate ? load(c + p * c_stride + r * 16) : zero();
  auto step = [&](int64_t j) __attribute__((always_inline)) {
    const typename Step::Panel *x = panels + columns[j] * kLanes;
    const typename Step::Row *row = values + j * kGroupRows * Step::kRowStep;
    typename Step::Lanes lanes[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) lanes[p] = Step::lanes(x + p * panel_stride);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) acc[r][p] = Step::add(acc[r][p], row + r * Step::kRowStep, lanes[p]);
  };
  int64_t j = 0;
  for (; j + kAhead < count; ++j) {
    const typename Step::Panel *later = panels + columns[j + kAhead] * kLanes;
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) __builtin_prefetch(later + p * panel_stride, 0, 3);
    step(j);
  }
  for (; j < count; ++j) step(j);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) store(c + p * c_stride + r * 16, acc[r][p]);
}

// Kept groups as rows for `linear_task`. W: the values' type in memory.
template <class Step, class W> class GroupRows {
 public:
  using Row = typename Step::Row;
  using Panel = typename Step::Panel;
  static constexpr bool kGrouped = true;
  static constexpr bool kInPlace = sizeof(Row) == sizeof(W);

  GroupRows(const infopt_call *call, const LinearCall &c)
      : values_((const W *)c.w),
        columns_(pointer<const int32_t>(call, 8)),
        kept_(c.row_stride),
        panel_stride_(c.x_stride) {}

  // Where a block's groups of `depth` columns from k on begin, and how many there are.
  struct Cut { int64_t first, count; };
  Cut cut(int64_t block, int64_t k, int64_t depth) const {
    const int32_t *begin = columns_ + block * kept_, *end = begin + kept_;
    const int32_t *from = std::lower_bound(begin, end, int32_t(k / kWidth));
    const int32_t *to = std::lower_bound(from, end, int32_t(ceil_div(k + depth, kWidth)));
    return {block * kept_ + (from - begin), to - from};
  }

  // The values of a cut in the micro-kernel's type, `stride` elements for each block.
  Rows<Row> rows(bool, int64_t n, int64_t k, int64_t count, int64_t depth, Row *scratch) const {
    if constexpr (kInPlace) return {nullptr, 0};
    const int64_t stride = round_up(depth, kWidth) * kGroupRows;
    for (int64_t b = 0; b < ceil_div(count, kGroupRows); ++b) {
      const Cut groups = cut(n / kGroupRows + b, k, depth);
      convert_rows<Row>(values_ + groups.first * kSize, 0, 1, groups.count * kSize,
                        scratch + b * stride);
    }
    return {scratch, stride};
  }

  template <class Session>
  void multiply(const Session &, bool, int64_t n, int64_t k, const Rows<Row> &converted,
                int64_t count, const Panel *panels, int64_t panel_count, int64_t depth,
                float *c) const {
    for (int64_t b = 0; b < ceil_div(count, kGroupRows); ++b) {
      const Cut groups = cut(n / kGroupRows + b, k, depth);
      const Row *values = converted.data + b * converted.stride;
      if constexpr (kInPlace) values = values_ + groups.first * kSize;
      // columns count from the beginning of a row, panels from k
      const Panel *x = panels - k * 16;
      for (int r = 0; r < kGroupRows; r += R)
        multiply_some(values + r * kWidth, columns_ + groups.first, groups.count, x, panel_count,
                      c + (b * kGroupRows + r) * 16, k > 0);
    }
  }

 private:
  static constexpr int64_t kWidth = Step::kRowStep, kSize = kGroupRows * kWidth;
  static constexpr int R = kRowsAtOnce<Step>;

  void multiply_some(const Row *values, const int32_t *columns, int64_t count, const Panel *x,
                     int64_t panels, float *c, bool accumulate) const {
    int64_t p = 0;
    for (; p + kPanels <= panels; p += kPanels)
      multiply_columns<Step, R, kPanels>(values, columns, count, x + p * panel_stride_,
                                         panel_stride_, c + p * kGroup * 16, kGroup * 16,
                                         accumulate);
    if (p < panels)
      multiply_columns<Step, R, 1>(values, columns, count, x + p * panel_stride_, panel_stride_,
                                   c + p * kGroup * 16, kGroup * 16, accumulate);
  }

  const W *values_;
  const int32_t *columns_;
  int64_t kept_, panel_stride_;
};

}  // namespace infopt
