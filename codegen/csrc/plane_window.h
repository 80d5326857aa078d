// Windows that slide over planes: depthwise convolutions, maximum and average poolings.
//
// A task is some output rows of one plane. The input rows they see are staged in scratch as f32,
// with their padding, and for a stride of s columns split into s phases: so the 16 outputs of a
// Vec always read neighbours, and no lane is ever outside.
#pragma once

#include "conv_epilogue.h"

namespace infopt {

// Planes are counted over images and groups; a group has one channel (conv_window.h).
struct StagedRows {
  float *rows;            // [row][phase][phase_width], the first row is `top` in padded terms
  int64_t *tap_column;    // where a tap of the kernel's width begins in a row
  int64_t phase_width, row_width;

  // `padding`: what the taps outside of the image read.
  StagedRows(const ConvShape &s, void *scratch, int64_t most_rows) {
    phase_width = round_up(s.out_width, 16) +
                  ceil_div((s.kernel_width - 1) * s.dilation_width + 1, s.stride_width);
    row_width = phase_width * s.stride_width;
    rows = (float *)scratch;
    tap_column = (int64_t *)(rows + round_up(most_rows * row_width, 2));
    for (int64_t kw = 0; kw < s.kernel_width; ++kw) {
      const int64_t column = kw * s.dilation_width;
      tap_column[kw] = column % s.stride_width * phase_width + column / s.stride_width;
    }
  }

  template <class T>
  void stage(const ConvShape &s, const T *plane, int64_t first_out, int64_t out_rows,
             float padding) const {
    const int64_t top = first_out * s.stride_height - s.pad_top;
    const int64_t count =
        (out_rows - 1) * s.stride_height + (s.kernel_height - 1) * s.dilation_height + 1;
    for (int64_t r = 0; r < count; ++r) {
      float *to = rows + r * row_width;
      const int64_t row = top + r;
      if (row < 0 || row >= s.height) {
        for (int64_t i = 0; i < row_width; ++i) to[i] = padding;
      } else if (s.stride_width == 1) {
        stage_phase<1>(plane + row * s.row_stride, s, 0, padding, to);
      } else if (s.stride_width == 2) {
        for (int64_t f = 0; f < 2; ++f)
          stage_phase<2>(plane + row * s.row_stride, s, f, padding, to + f * phase_width);
      } else {
        for (int64_t f = 0; f < s.stride_width; ++f)
          stage_phase<0>(plane + row * s.row_stride, s, f, padding, to + f * phase_width);
      }
    }
  }

  // Columns f, f + step, f + 2 * step, ... of a padded row; a known step is a fast loop.
  template <int known_step, class T>
  void stage_phase(const T *row, const ConvShape &s, int64_t phase, float padding,
                   float *to) const {
    const int64_t step = known_step ? known_step : s.stride_width;
    const int64_t shift = phase - s.pad_left;  // the column of to[0]
    const int64_t from = least(phase_width, shift < 0 ? ceil_div(-shift, step) : 0);
    const int64_t to_end = greatest(from, least(phase_width, floor_div(s.width - 1 - shift, step) + 1));
    int64_t i = 0;
    for (; i < from; ++i) to[i] = padding;
    const T *p = row + shift;
    if (known_step == 1) {
      for (; i + 16 <= to_end; i += 16) store(to + i, load(p + i));
      if (i < to_end) store(to + i, load(p + i, to_end - i), to_end - i);
    } else {
      const Piece every = {0, 0xffff, 0x55555555};
      for (; known_step == 2 && i + 16 <= to_end; i += 16)
        store(to + i, read_piece<known_step>(p + i * step, every, step).widened());
      for (; i < to_end; ++i) to[i] = to_float(p[i * step]);
    }
    for (i = to_end; i < phase_width; ++i) to[i] = padding;
  }

  static int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -ceil_div(-a, b); }
};

// How one output collects what its taps see. `begin` starts it, `add` takes a tap.
struct WeightedSum {
  const float *weights;
  INFOPT_INLINE Vec begin() const { return zero(); }
  INFOPT_INLINE Vec add(Vec sum, Vec x, int64_t tap) const {
    return fma(broadcast(weights[tap]), x, sum);
  }
};
struct PlainSum {
  INFOPT_INLINE Vec begin() const { return zero(); }
  INFOPT_INLINE Vec add(Vec sum, Vec x, int64_t) const { return sum + x; }
};
struct Maximum {
  INFOPT_INLINE Vec begin() const { return broadcast(-__builtin_inff()); }
  INFOPT_INLINE Vec add(Vec most, Vec x, int64_t) const {  // max gives x where either is NaN
    return select(is_nan(most), most, max(most, x));
  }
};

// One output row, U Vecs at a time; `finish(column, count, Vec *)` takes them.
template <int U, class Collect, class Finish>
INFOPT_INLINE int64_t slide(const ConvShape &s, const StagedRows &staged, const float *first_row,
                            int64_t column, const Collect &collect, const Finish &finish) {
  for (; column + (U - 1) * 16 < s.out_width; column += U * 16) {
    Vec t[U];
    for (int u = 0; u < U; ++u) t[u] = collect.begin();
    int64_t tap = 0;
    for (int64_t kh = 0; kh < s.kernel_height; ++kh) {
      const float *row = first_row + kh * s.dilation_height * staged.row_width + column;
      for (int64_t kw = 0; kw < s.kernel_width; ++kw, ++tap) {
        const float *x = row + staged.tap_column[kw];
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u) t[u] = collect.add(t[u], load(x + u * 16), tap);
      }
    }
    finish(column, U, t);
  }
  return column;
}

// All rows of a task. finish(row, column, count, Vec *): `count` Vecs from that output on.
template <class Collect, class Finish>
INFOPT_INLINE void slide_rows(const ConvShape &s, const StagedRows &staged, int64_t first_out,
                              int64_t out_rows, const Collect &collect, const Finish &finish) {
  for (int64_t r = 0; r < out_rows; ++r) {
    const float *row = staged.rows + r * s.stride_height * staged.row_width;
    auto done = [&](int64_t column, int64_t count, Vec *t) __attribute__((always_inline)) {
      finish(first_out + r, column, count, t);
    };
    const int64_t column = slide<4>(s, staged, row, 0, collect, done);
    slide<1>(s, staged, row, column, collect, done);
  }
}

}  // namespace infopt
