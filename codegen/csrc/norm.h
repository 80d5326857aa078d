// Layer norm and RMS norm of rows, after an optional sum; statistics in f32.
//
// A block of 16 rows is one unit: first every row gets its f32 values and statistics, then the
// rows are written, row-major or as one token panel.
#pragma once

#include <math.h>

#include "byte_panels.h"
#include "element.h"

namespace infopt {

struct NormShape {
  int64_t rows, width;
  double eps;
  bool rms;               // no mean is subtracted: x * rsqrt(mean(x^2) + eps)
  bool one_plus_weight;   // the factor is 1 + weight
  bool round_first;       // x * rsqrt(..) is rounded to the output's type before the weight
  bool panels;
  int64_t out_stride, out_element, weight_element;
};

// Rows of a block: f32 values (in scratch, or the tensor itself) and how to normalise them.
struct NormBlock {
  const float *values[16];
  float shift[16], scale[16], offset[16];  // y = (x - shift) * scale + offset
};

// Statistics of one row. The offset is the mean of the deviations from the rounded mean, so that a
// large common value in a row costs no digits.
template <class T>
static void row_statistics(const NormShape &s, const T *x, float *shift, float *scale,
                           float *offset) {
  const float count = float(s.width);
  Vec total = zero(), squares = zero();
  float mean = 0;
  if (!s.rms) {
    Vec other = zero();
    int64_t i = 0;
    for (; i + 32 <= s.width; i += 32)
      total = total + load(x + i), other = other + load(x + i + 16);
    for (; i < s.width; i += 16) total = total + load(x + i, least(16, s.width - i));
    mean = sum(total + other) / count;
    total = zero();
  }
  const Vec center = broadcast(mean);
  Vec more_total = zero(), more_squares = zero();
  int64_t i = 0;
  for (; i + 32 <= s.width; i += 32) {
    const Vec a = load(x + i) - center, b = load(x + i + 16) - center;
    total = total + a, more_total = more_total + b;
    squares = fma(a, a, squares), more_squares = fma(b, b, more_squares);
  }
  for (; i < s.width; i += 16) {
    const int64_t n = least(16, s.width - i);
    const Vec a = select(first_lanes(n), load(x + i, n) - center, zero());
    total = total + a, squares = fma(a, a, squares);
  }
  const double rest = s.rms ? 0.0 : double(sum(total + more_total)) / count;
  const double variance = double(sum(squares + more_squares)) / count - rest * rest;
  const double factor =
      1.0 / ::sqrt((variance > 0 || variance != variance ? variance : 0.0) + s.eps);
  *shift = mean, *scale = float(factor), *offset = float(-rest * factor);
}

// Weight and bias as f32, ready to multiply and add; in scratch unless they already are that.
struct Affine {
  const float *weight, *bias;  // null: 1, 0

  Affine(const NormShape &s, const void *w, const void *b, float *scratch) {
    weight = ready(s, w, s.one_plus_weight ? 1.0f : 0.0f, scratch);
    bias = ready(s, b, 0.0f, scratch + round_up(s.width, 16));
  }
  static const float *ready(const NormShape &s, const void *from, float add, float *to) {
    if (!from || (s.weight_element == kF32 && add == 0)) return (const float *)from;
    const Vec more = broadcast(add);
    each_vec(s.width, [&](int64_t i, int64_t n) {
      store(to + i, load_element(from, s.weight_element, i, n) + more, n);
    });
    return to;
  }
};

template <class T>
INFOPT_INLINE Vec normalized(const NormBlock &block, int64_t row, Vec x, const Affine &affine,
                             bool round_first, int64_t i, int64_t n) {
  Vec y = fma(x - broadcast(block.shift[row]), broadcast(block.scale[row]),
              broadcast(block.offset[row]));
  if (round_first) y = rounded<T>(y);
  const float *w = affine.weight + i, *b = affine.bias + i;
  if (affine.weight && affine.bias)
    return n == 16 ? fma(y, load(w), load(b)) : fma(y, load(w, n), load(b, n));
  if (affine.weight) y = y * (n == 16 ? load(w) : load(w, n));
  return affine.bias ? y + (n == 16 ? load(b) : load(b, n)) : y;
}

template <class T>
static void store_rows(const NormShape &s, const NormBlock &block, int64_t first, int64_t count,
                       const Affine &affine, T *out) {
  for (int64_t r = 0; r < count; ++r) {
    const float *x = block.values[r];
    T *to = out + (first + r) * s.out_stride;
    each_vec(s.width, [&](int64_t i, int64_t n) {
      const Vec v = n == 16 ? load(x + i) : load(x + i, n);
      const Vec y = normalized<T>(block, r, v, affine, s.round_first, i, n);
      n == 16 ? store(to + i, y) : store(to + i, y, n);
    });
  }
}

// One token panel: 16 columns of 16 rows at a time, transposed in registers.
template <class T>
static void store_row_panel(const NormShape &s, const NormBlock &block, int64_t first,
                            int64_t count, const Affine &affine, T *out) {
  T *panel = out + first * (sizeof(T) == 4 ? s.width : round_up(s.width, 2));
  each_vec(s.width, [&](int64_t i, int64_t n) {
    Vec y[16];
    for (int64_t r = 0; r < 16; ++r) {
      if (r >= count) {
        y[r] = zero();
        continue;
      }
      const Vec x = n == 16 ? load(block.values[r] + i) : load(block.values[r] + i, n);
      y[r] = normalized<T>(block, r, x, affine, s.round_first, i, n);
      if (n < 16) y[r] = select(first_lanes(n), y[r], zero());
    }
    transpose16(y);
    if constexpr (sizeof(T) == 4) {
      for (int64_t j = 0; j < n; ++j) store(panel + (i + j) * 16, y[j]);
    } else {
      for (int64_t j = 0; j < n; j += 2)
        store_pairs((bf16 *)panel + (i + j) * 16, to_pairs(y[j], y[j + 1]));
    }
  });
}

// A panel of bytes beside the rows: the results, f32, are rounded while they are in cache.
struct NormBytes {
  BytePanels panels = {};
  Rounding rounding = {};
  const float *factors = nullptr;  // of the columns, before they are rounded
};

// As store_rows; `kept` [16][round_up(width, 16)], which may hold the block's values, takes the
// results too.
static void store_rows_and_bytes(const NormShape &s, const NormBlock &block, int64_t first,
                                 int64_t count, const Affine &affine, const NormBytes &bytes,
                                 float *kept, float *out) {
  const int64_t buffer = round_up(s.width, 16);
  for (int64_t r = 0; r < count; ++r) {
    const float *x = block.values[r];
    float *to = out ? out + (first + r) * s.out_stride : nullptr, *keep = kept + r * buffer;
    each_vec(s.width, [&](int64_t i, int64_t n) {
      const Vec v = n == 16 ? load(x + i) : load(x + i, n);
      const Vec y = normalized<float>(block, r, v, affine, s.round_first, i, n);
      if (to) n == 16 ? store(to + i, y) : store(to + i, y, n);
      const Vec scaled = bytes.factors ? y * load_some(bytes.factors + i, n) : y;
      n == 16 ? store(keep + i, scaled) : store(keep + i, scaled, n);
    });
  }
  quantize_panel({kept, buffer, kRowF32}, bytes.panels, s.rows, s.width, first / 16,
                 bytes.rounding);
}

// Rows first..last of a norm. values(row, buffer) gives a row's f32 values, in `buffer` or not.
template <class Values>
INFOPT_INLINE void normalize_rows(const NormShape &s, int64_t first, int64_t last,
                                  const void *weight, const void *bias, void *out, float *scratch,
                                  const Values &values, const NormBytes *bytes = nullptr) {
  const int64_t buffer = round_up(s.width, 16);
  const Affine affine(s, weight, bias, scratch + 16 * buffer);
  NormBlock block;
  for (; first < last; first += 16) {
    const int64_t count = least(16, last - first);
    for (int64_t r = 0; r < count; ++r) {
      block.values[r] = values(first + r, scratch + r * buffer);
      row_statistics(s, block.values[r], &block.shift[r], &block.scale[r], &block.offset[r]);
    }
    if (bytes) {
      store_rows_and_bytes(s, block, first, count, affine, *bytes, scratch, (float *)out);
      continue;
    }
    with_float_type(s.out_element, [&](auto type) {
      using T = decltype(type);
      if (s.panels) store_row_panel(s, block, first, count, affine, static_cast<T *>(out));
      else store_rows(s, block, first, count, affine, static_cast<T *>(out));
    });
  }
}

// x + residual in f32, rounded to the sum's type and kept in `sum` if that is not null.
struct SummedRows {
  const void *x, *residual;
  void *sum;
  int64_t width, x_stride, residual_stride, sum_stride, x_element, residual_element, sum_element;

  const float *operator()(int64_t row, float *buffer) const {
    const void *from = at(x, x_element, row * x_stride);
    if (!residual && x_element == kF32) return (const float *)from;
    if (!residual) {
      with_float_type(x_element, [&](auto type) {
        const auto *values = static_cast<const decltype(type) *>(from);
        each_vec(width, [&](int64_t i, int64_t n) {
          if (n == 16) store(buffer + i, load(values + i));
          else store(buffer + i, load(values + i, n), n);
        });
      });
      return buffer;
    }
    const void *add = at(residual, residual_element, row * residual_stride);
    void *keep = sum ? at(sum, sum_element, row * sum_stride) : nullptr;
    with_float_type(sum_element, [&](auto type) {
      using T = decltype(type);
      if (x_element == sum_element && residual_element == sum_element)
        add_rows<T>((const T *)from, (const T *)add, (T *)keep, buffer);
      else
        each_vec(width, [&](int64_t i, int64_t n) {
          const Vec y = rounded<T>(load_element(from, x_element, i, n) +
                                   load_element(add, residual_element, i, n));
          store(buffer + i, y, n);
          if (keep) store((T *)keep + i, y, n);
        });
    });
    return buffer;
  }

 private:
  template <class T>
  void add_rows(const T *a, const T *b, T *keep, float *buffer) const {
    each_vec(width, [&](int64_t i, int64_t n) {
      const Vec y = n == 16 ? rounded<T>(load(a + i) + load(b + i))
                            : rounded<T>(load(a + i, n) + load(b + i, n));
      if (n == 16) store(buffer + i, y);
      else store(buffer + i, y, n);
      if (keep) n == 16 ? store(keep + i, y) : store(keep + i, y, n);
    });
  }
};

}  // namespace infopt
