// Poolings of planes: the maximum or the average of a window, and averages of equal parts.
#pragma once

#include "plane_window.h"

namespace infopt {

enum Pooling : int64_t { kMaximum = 0, kAverage = 1 };

struct PoolCall {
  ConvShape shape;  // groups are the channels, each of one channel and one feature
  int64_t pooling, rows, count_padding, divisor;  // rows of one task; divisor 0: the window's size
};

// How many elements a window counts along one axis, at output `i`.
INFOPT_INLINE int64_t counted(int64_t i, int64_t stride, int64_t pad, int64_t kernel, int64_t size,
                              bool padding_too) {
  const int64_t from = i * stride - pad, to = least(from + kernel, size + pad);
  return padding_too ? to - from : least(to, size) - greatest(from, 0);
}

template <class T> void pool_planes(const infopt_call *call, int64_t first, int64_t last) {
  PoolCall c;
  memcpy(&c, call->numbers, sizeof c);
  const ConvShape &s = c.shape;
  const int64_t most =
      (c.rows - 1) * s.stride_height + (s.kernel_height - 1) * s.dilation_height + 1;
  const int64_t blocks = ceil_div(s.out_height, c.rows);
  const StagedRows staged(s, call->scratch, most);
  float *const widths = (float *)(staged.tap_column + s.kernel_width);  // divisors along a row
  for (int64_t i = 0; c.pooling == kAverage && i < round_up(s.out_width, 16); ++i) {
    const int64_t width = counted(least(i, s.out_width - 1), s.stride_width, s.pad_left,
                                  s.kernel_width, s.width, c.count_padding);
    widths[i] = float(c.divisor ? c.divisor : width);
  }
  for (int64_t task = first; task < last; ++task) {
    const int64_t plane = task / blocks, image = plane / s.groups, channel = plane % s.groups;
    const int64_t row = task % blocks * c.rows, rows = least(c.rows, s.out_height - row);
    T *y = pointer<T>(call, 1) + plane * s.out_pixels();
    staged.stage(s, pointer<const T>(call, 0) + image * s.image_stride + channel * s.channel_stride,
                 row, rows, c.pooling == kMaximum ? -__builtin_inff() : 0);
    auto write = [&](int64_t r, int64_t column, int64_t count, Vec *t)
        __attribute__((always_inline)) {
      for (int64_t u = 0; u < count; ++u) {
        const int64_t at = column + u * 16;
        store_some(y + r * s.out_width + at, t[u], least(16, s.out_width - at));
      }
    };
    if (c.pooling == kMaximum) {
      slide_rows(s, staged, row, rows, Maximum(), write);
      continue;
    }
    slide_rows(s, staged, row, rows, PlainSum(),
               [&](int64_t r, int64_t column, int64_t count, Vec *t) __attribute__((always_inline)) {
                 const int64_t height = counted(r, s.stride_height, s.pad_top, s.kernel_height,
                                                s.height, c.count_padding);
                 const Vec rows_counted = broadcast(c.divisor ? 1 : float(height));
                 for (int64_t u = 0; u < count; ++u)
                   t[u] = t[u] / (load(widths + column + u * 16) * rows_counted);
                 write(r, column, count, t);
               });
  }
}

// Averages of out_height x out_width parts of each plane, which may overlap by a row or column:
// part i of n is [floor(i * size / n), ceil((i + 1) * size / n)).
template <class T> void adaptive_average(const infopt_call *call, int64_t first, int64_t last) {
  ConvShape s;
  memcpy(&s, call->numbers, sizeof s);
  for (int64_t plane = first; plane < last; ++plane) {
    const T *x = pointer<const T>(call, 0) + plane / s.groups * s.image_stride +
                 plane % s.groups * s.channel_stride;
    T *y = pointer<T>(call, 1) + plane * s.out_pixels();
    for (int64_t i = 0; i < s.out_height; ++i) {
      const int64_t top = i * s.height / s.out_height;
      const int64_t rows = ceil_div((i + 1) * s.height, s.out_height) - top;
      for (int64_t j = 0; j < s.out_width; ++j) {
        const int64_t left = j * s.width / s.out_width;
        const int64_t columns = ceil_div((j + 1) * s.width, s.out_width) - left;
        const bool joined = columns == s.width && s.row_stride == s.width;  // rows follow closely
        const int64_t pieces = joined ? 1 : rows, length = joined ? rows * columns : columns;
        Vec total = zero();
        for (int64_t r = 0; r < pieces; ++r) {
          const T *row = x + (top + r) * s.row_stride + left;
          each_vec(length, [&](int64_t at, int64_t n) {
            total = total + load_some(row + at, n);
          });
        }
        y[i * s.out_width + j] = from_float<T>(sum(total) / float(rows * columns));
      }
    }
  }
}

}  // namespace infopt
