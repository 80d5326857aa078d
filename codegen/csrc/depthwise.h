// Depthwise convolutions: every feature is one channel's plane under its own window.
#pragma once

#include "conv.h"
#include "plane_window.h"

namespace infopt {

// The weights of one feature as f32, in the order of the taps.
template <class W> INFOPT_INLINE void feature_weights(const W *w, int64_t taps, float *out) {
  for (int64_t t = 0; t < taps; ++t) out[t] = to_float(w[t]);
}

// t[count] from `column` of an output row on: scale, shift, activation, residual, as finish_conv.
INFOPT_INLINE void finish_plane(const ConvShape &s, const ConvEpilogue &e, float scale, float shift,
                                int64_t row_start, int64_t column, int64_t count, Vec *t) {
  for (int64_t u = 0; u < count; ++u) t[u] = fma(t[u], broadcast(scale), broadcast(shift));
  auto add = [&]() __attribute__((always_inline)) {
    with_row_type(e.residual.format, [&](auto *type) {
      const auto *p = (decltype(type))e.residual.data + row_start;
      for (int64_t u = 0; u < count; ++u) {
        const int64_t at = column + u * 16;
        t[u] = t[u] + load_some(p + at, least(16, s.out_width - at));
      }
    });
  };
  if (e.add_first && e.residual.present()) add();
  if (e.activation != kIdentity) activate(e.activation, t, count);
  if (!e.add_first && e.residual.present()) add();
  with_row_type(e.y.format, [&](auto *type) {
    auto *p = (decltype(type))e.y.data + row_start;
    for (int64_t u = 0; u < count; ++u) {
      const int64_t at = column + u * 16;
      store_some(p + at, t[u], least(16, s.out_width - at));
    }
  });
}

// numbers as infopt_conv's; panel_chunk is the output rows of a task.
template <class T> void depthwise(const infopt_call *call, int64_t first, int64_t last) {
  const ConvCall c = read_conv(call);
  const ConvShape &s = c.shape;
  const int64_t most = (c.panel_chunk - 1) * s.stride_height +
                       (s.kernel_height - 1) * s.dilation_height + 1;
  const int64_t blocks = ceil_div(s.out_height, c.panel_chunk), features = s.groups * s.features;
  const StagedRows staged(s, call->scratch, most);
  float *const weights = (float *)(staged.tap_column + s.kernel_width);
  int64_t plane_staged = -1;
  for (int64_t task = first; task < last; ++task) {
    // the features of a group share its plane, so they follow each other
    const int64_t plane = task / (blocks * s.features), image = plane / s.groups;
    const int64_t block = task / s.features % blocks, inner = task % s.features;
    const int64_t group = plane % s.groups, feature = group * s.features + inner;
    const int64_t row = block * c.panel_chunk, rows = least(c.panel_chunk, s.out_height - row);
    if (plane_staged != plane * blocks + block) {
      staged.stage(s, (const T *)c.x + image * s.image_stride + group * s.channel_stride, row, rows,
                   0);
      plane_staged = plane * blocks + block;
    }
    feature_weights((const T *)c.w + feature * c.weight_stride, s.taps(), weights);
    const Affine<16> affine(c.epilogue, feature, 1);
    const int64_t out_plane = (image * features + feature) * s.out_pixels();
    slide_rows(s, staged, row, rows, WeightedSum{weights},
               [&](int64_t r, int64_t column, int64_t count, Vec *t) __attribute__((always_inline)) {
                 finish_plane(s, c.epilogue, affine.scale[0], affine.shift[0], out_plane + r * s.out_width, column,
                              count, t);
               });
  }
}

}  // namespace infopt
