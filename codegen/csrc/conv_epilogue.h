// What follows a convolution while it is in cache: scale, shift, activation, residual.
//
//   y = act(c * scale + shift) + residual      or      act(c * scale + shift + residual)
//
// all in f32. scale and shift are one value per feature: a bias, or a batch norm.
#pragma once

#include "conv_window.h"
#include "epilogue.h"

namespace infopt {

struct ConvEpilogue {
  Matrix scale, shift;     // one row of groups * features values, row formats
  int64_t activation;
  bool add_first;          // the residual is added before the activation
  Matrix residual, y;      // contiguous [batch, groups * features, out_height, out_width]
};

// 16 lanes of a feature's pixels; pixels of two images lie apart.
struct PixelLanes {
  PixelRun runs[16];
  int64_t count;   // of runs that lie apart, 1 for pixels of one image
  int64_t lanes;

  PixelLanes(const ConvShape &s, int64_t panel) : count(0), lanes(0) {
    PixelRun rows[16];
    const int64_t found = pixel_runs(s, panel, rows);
    for (int64_t i = 0; i < found; ++i) {
      lanes += rows[i].count;
      if (count && runs[count - 1].image == rows[i].image) runs[count - 1].count += rows[i].count;
      else runs[count++] = rows[i];
    }
  }
  // Where a run's pixels lie in a contiguous result.
  INFOPT_INLINE int64_t offset(const ConvShape &s, const PixelRun &run, int64_t feature) const {
    return (run.image * s.groups * s.features + feature) * s.out_pixels() +
           run.row * s.out_width + run.column;
  }
};

template <class T>
INFOPT_INLINE Vec load_pixels(const T *p, const ConvShape &s, const PixelLanes &at,
                              int64_t feature) {
  if (at.count == 1) return load_some(p + at.offset(s, at.runs[0], feature), at.lanes);
  T lanes[16] = {};
  for (int64_t i = 0; i < at.count; ++i)
    memcpy(lanes + at.runs[i].lane, p + at.offset(s, at.runs[i], feature),
           size_t(at.runs[i].count) * sizeof(T));
  return load(lanes);
}

template <class T>
INFOPT_INLINE void store_pixels(T *p, const ConvShape &s, const PixelLanes &at, int64_t feature,
                                Vec v) {
  if (at.count == 1) return store_some(p + at.offset(s, at.runs[0], feature), v, at.lanes);
  T lanes[16];
  store(lanes, v);
  for (int64_t i = 0; i < at.count; ++i)
    memcpy(p + at.offset(s, at.runs[i], feature), lanes + at.runs[i].lane,
           size_t(at.runs[i].count) * sizeof(T));
}

INFOPT_INLINE void add_pixels(const Matrix &m, const ConvShape &s, const PixelLanes &at,
                              int64_t feature, int64_t rows, Vec *t) {
  with_row_type(m.format, [&](auto *type) {
    const auto *p = (decltype(type))m.data;
    for (int64_t i = 0; i < rows; ++i) t[i] = t[i] + load_pixels(p, s, at, feature + i);
  });
}

// c[rows][16] of one panel, features from `feature` on (counted over all groups).
inline void finish_conv(const ConvShape &s, const ConvEpilogue &e, const PixelLanes &at,
                        const float *c, int64_t feature, int64_t rows) {
  for (int64_t r = 0; r < rows; r += 16) {
    const int64_t count = least(16, rows - r), f = feature + r;
    Vec t[16];
    float scale[16], shift[16];
    if (e.scale.present()) store(scale, load_row(e.scale, 0, f, count));
    store(shift, e.shift.present() ? load_row(e.shift, 0, f, count) : zero());
    for (int64_t i = 0; i < count; ++i) {
      const Vec v = load(c + (r + i) * 16);
      const Vec moved = broadcast(shift[i]);
      t[i] = e.scale.present() ? fma(v, broadcast(scale[i]), moved)
                               : e.shift.present() ? v + moved : v;
    }
    if (e.add_first && e.residual.present()) add_pixels(e.residual, s, at, f, count, t);
    if (e.activation != kIdentity) activate(e.activation, t, count);
    if (!e.add_first && e.residual.present()) add_pixels(e.residual, s, at, f, count, t);
    with_row_type(e.y.format, [&](auto *type) {
      auto *p = (decltype(type))e.y.data;
      for (int64_t i = 0; i < count; ++i) store_pixels(p, s, at, f + i, t[i]);
    });
  }
}

}  // namespace infopt
