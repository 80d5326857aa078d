// What follows a convolution while it is in cache: scale, shift, activation, residual.
//
//   y = act(c * scale + shift) + residual      or      act(c * scale + shift + residual)
//
// all in f32. scale and shift are one value per feature: a bias, or a batch norm.
#pragma once

#include <math.h>

#include <type_traits>

#include "conv_window.h"
#include "epilogue.h"

namespace infopt {

struct ConvEpilogue {
  Matrix scale, shift;  // one row of groups * features values, row formats
  int64_t activation;
  bool add_first;       // the residual is added before the activation
  Matrix residual, y;   // contiguous [batch, groups * features, out_height, out_width]
};

// The factors of some features, as f32.
template <int most> struct Affine {
  float scale[most], shift[most];
  Affine(const ConvEpilogue &e, int64_t feature, int64_t count) {
    for (int64_t i = 0; i < count; i += 16) {
      const int64_t n = least(16, count - i);
      store(scale + i, e.scale.present() ? load_row(e.scale, 0, feature + i, n) : broadcast(1));
      store(shift + i, e.shift.present() ? load_row(e.shift, 0, feature + i, n) : zero());
    }
  }
};

// Where the 16 pixels of a panel lie in a result; pixels of two images lie apart.
struct PixelLanes {
  PixelRun runs[16];
  int64_t count;       // of runs that lie apart, 1 for pixels of one image
  int64_t lanes;       // that exist
  int64_t feature_stride;

  PixelLanes() = default;
  PixelLanes(const ConvShape &s, int64_t panel) : count(0), lanes(0) {
    PixelRun rows[16];
    const int64_t found = pixel_runs(s, panel, rows);
    for (int64_t i = 0; i < found; ++i) {
      lanes += rows[i].count;
      if (count && runs[count - 1].image == rows[i].image) runs[count - 1].count += rows[i].count;
      else runs[count++] = rows[i];
    }
    feature_stride = s.out_pixels();
  }
  bool whole() const { return count == 1 && lanes == 16; }
  INFOPT_INLINE int64_t offset(const ConvShape &s, int64_t run, int64_t feature) const {
    const PixelRun &r = runs[run];
    return (r.image * s.groups * s.features + feature) * feature_stride + r.row * s.out_width +
           r.column;
  }
};

// Whether the pixels of so many panels are neighbours in one image, whole lines of them.
INFOPT_INLINE bool follow_each_other(const PixelLanes *at, int64_t panels) {
  bool all = true;
  for (int64_t i = 0; i < panels; ++i)
    all = all && at[i].whole() && at[i].runs[0].image == at[0].runs[0].image;
  return all;
}

// Rows `feature` to `feature` + n of a panel's pixels; `whole` is known of most panels.
template <bool whole, class T>
INFOPT_INLINE void add_pixels(const T *p, const ConvShape &s, const PixelLanes &at, int64_t feature,
                              int64_t n, Vec *t) {
  if (whole) {
    p += at.offset(s, 0, feature);
    for (int64_t i = 0; i < n; ++i) t[i] = t[i] + load(p + i * at.feature_stride);
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    T lanes[16] = {};
    for (int64_t r = 0; r < at.count; ++r)
      memcpy(lanes + at.runs[r].lane, p + at.offset(s, r, feature + i),
             size_t(at.runs[r].count) * sizeof(T));
    t[i] = t[i] + load(lanes);
  }
}
template <bool whole, class T>
INFOPT_INLINE void store_pixels(T *p, const ConvShape &s, const PixelLanes &at, int64_t feature,
                                int64_t n, const Vec *t) {
  if (whole) {
    p += at.offset(s, 0, feature);
    for (int64_t i = 0; i < n; ++i) store(p + i * at.feature_stride, t[i]);
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    T lanes[16];
    store(lanes, t[i]);
    for (int64_t r = 0; r < at.count; ++r)
      memcpy(p + at.offset(s, r, feature + i), lanes + at.runs[r].lane,
             size_t(at.runs[r].count) * sizeof(T));
  }
}

// n <= 8 features of a panel, c[n][16]; residuals have y's type.
template <bool whole, class T>
INFOPT_INLINE void finish_features(const ConvShape &s, const ConvEpilogue &e, const PixelLanes &at,
                                   const float *c, const float *scale, const float *shift,
                                   int64_t feature, int64_t n) {
  Vec t[8];
  for (int64_t i = 0; i < n; ++i)
    t[i] = fma(load(c + i * 16), broadcast(scale[i]), broadcast(shift[i]));
  const T *residual = (const T *)e.residual.data;
  if (e.add_first && residual) add_pixels<whole>(residual, s, at, feature, n, t);
  if (e.activation == kRelu) {
    for (int64_t i = 0; i < n; ++i) t[i] = relu(t[i]);
  } else if (e.activation != kIdentity) {
    activate(e.activation, t, n);
  }
  if (!e.add_first && residual) add_pixels<whole>(residual, s, at, feature, n, t);
  store_pixels<whole>((T *)e.y.data, s, at, feature, n, t);
}

template <bool whole, class T>
INFOPT_INLINE void finish_rows(const ConvShape &s, const ConvEpilogue &e, const PixelLanes &at,
                               const float *c, const float *scale, const float *shift,
                               int64_t feature, int64_t rows) {
  int64_t r = 0;
  for (; r + 8 <= rows; r += 8)
    finish_features<whole, T>(s, e, at, c + r * 16, scale + r, shift + r, feature + r, 8);
  if (r < rows)
    finish_features<whole, T>(s, e, at, c + r * 16, scale + r, shift + r, feature + r, rows - r);
}

// c[rows][16] of one panel, features from `feature` on (counted over all groups).
inline void finish_conv(const ConvShape &s, const ConvEpilogue &e, const PixelLanes &at,
                        const float *c, const float *scale, const float *shift, int64_t feature,
                        int64_t rows) {
  with_row_type(e.y.format, [&](auto *type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (at.whole()) finish_rows<true, T>(s, e, at, c, scale, shift, feature, rows);
    else finish_rows<false, T>(s, e, at, c, scale, shift, feature, rows);
  });
}

// The same for panels of neighbouring pixels, while the products are in registers (microkernel.h): y
// of type T, without activation or with relu. Nothing is decided between the registers: a rectifier
// is a maximum with 0, none is one with -inf.
template <class T> struct FinishInRegisters {
  T *y;
  const T *residual;    // null: none
  int64_t stride;       // between features
  const float *scale, *shift;
  float before, after;  // least values before and after the residual is added

  static bool fits(const ConvEpilogue &e, const PixelLanes *at, int64_t panels) {
    return e.y.format == (std::is_same_v<T, float> ? kRowF32 : kRowBf16) &&
           follow_each_other(at, panels) &&
           (e.activation == kRelu || e.activation == kIdentity);
  }
  FinishInRegisters(const ConvShape &s, const ConvEpilogue &e, const PixelLanes &at,
                    int64_t feature, const float *scale, const float *shift)
      : y((T *)e.y.data + at.offset(s, 0, feature)), residual(nullptr), stride(s.out_pixels()),
        scale(scale), shift(shift), before(-INFINITY), after(-INFINITY) {
    if (e.residual.present()) residual = (const T *)e.residual.data + at.offset(s, 0, feature);
    if (e.activation == kRelu) (e.residual.present() && e.add_first ? after : before) = 0;
  }
  INFOPT_INLINE FinishInRegisters from(int64_t r, int64_t p) const {
    FinishInRegisters f = *this;
    f.y += r * stride + p * 16;
    if (residual) f.residual += r * stride + p * 16;
    f.scale += r, f.shift += r;
    return f;
  }
  template <int R, int P>
  INFOPT_INLINE void take(const Vec (&acc)[R][P], int64_t r0, float *, int64_t) const {
    if (residual) add_and_store<true>(acc, r0);
    else add_and_store<false>(acc, r0);
  }

 private:
  template <bool adds, int R, int P>
  INFOPT_INLINE void add_and_store(const Vec (&acc)[R][P], int64_t r0) const {
    const Vec least = broadcast(before), last = broadcast(after);
    const int64_t step = stride;  // a store might be to this
    const float *times = scale + r0, *plus = shift + r0;
    const T *beside = residual + (adds ? r0 * step : 0);
    Vec t[R][P];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r, beside += adds ? step : 0)
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        t[r][p] = fma(acc[r][p], broadcast(times[r]), broadcast(plus[r]));
        t[r][p] = max(least, t[r][p]);  // of a NaN the maximum is the second
        if (adds) t[r][p] = max(last, t[r][p] + load(beside + p * 16));
      }
    write(t, y + r0 * step, step);
  }
  template <int R, int P>
  static INFOPT_INLINE void write(const Vec (&t)[R][P], T *to, int64_t step) {
#ifdef __AVX512BF16__
    if constexpr (std::is_same_v<T, bf16>)
      if (!has_denormals(t)) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r, to += step) {
#pragma GCC unroll 2
          for (int p = 0; p + 2 <= P; p += 2)
            store_pairs(to + p * 16, to_row_without_denormals(t[r][p], t[r][p + 1]));
          if (P % 2) store(to + (P - 1) * 16, t[r][P - 1]);
        }
        return;
      }
#endif
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r, to += step)
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) store(to + p * 16, t[r][p]);
  }
};

}  // namespace infopt
