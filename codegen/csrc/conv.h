// Convolutions as matrix products: weights as torch stores them, times panels of 16 output pixels.
//
// The panels are made from the input as they are needed (conv_panel.h). A task is `feature_chunk`
// features times `panel_chunk` panels of one group; k is cut where the panels would leave the
// second cache. Results are rows of pixels, one per feature, as torch stores them: nothing is
// transposed on the way.
#pragma once

#include "conv_epilogue.h"
#include "conv_panel.h"
#include "linear.h"

namespace infopt {

struct ConvCall {
  ConvShape shape;
  int64_t weight_stride, by_tap, feature_chunk, panel_chunk, x_format;
  const void *x, *w;
  ConvEpilogue epilogue;
};

// The order of pointers and numbers is in kernels_conv.cpp.
inline ConvCall read_conv(const infopt_call *call) {
  void *const *p = call->pointers;
  const int64_t *v = call->numbers;
  ConvCall c;
  memcpy(&c.shape, v, sizeof c.shape);
  v += sizeof(ConvShape) / sizeof(int64_t);
  c.weight_stride = v[0], c.by_tap = v[1], c.feature_chunk = v[2], c.panel_chunk = v[3];
  c.x_format = v[4], c.x = p[0], c.w = p[1];
  ConvEpilogue &e = c.epilogue;
  e.scale = {p[2], 0, p[2] ? v[5] : int64_t(kAbsent)};
  e.shift = {p[3], 0, p[3] ? v[6] : int64_t(kAbsent)};
  e.activation = v[7], e.add_first = v[8];
  e.residual = {p[4], 0, p[4] ? v[9] : int64_t(kAbsent)};
  e.y = {p[5], 0, v[9]};
  return c;
}

// The result's lines of one pair of panels, to be fetched while the product is computed.
INFOPT_INLINE Ahead pixels_ahead(const ConvShape &s, const Matrix &y, const PixelLanes *at,
                                 int64_t pair, int64_t feature, int64_t rows) {
  Ahead ahead;
  if (!at[0].whole() || !at[pair - 1].whole()) return ahead;
  const int64_t size = y.format == kRowF32 ? 4 : 2;
  for (int64_t i = 0; i < 2; ++i)
    ahead.out[i] = (const char *)y.data + at[pair > i ? i : 0].offset(s, 0, feature) * size;
  ahead.count = rows, ahead.stride = s.out_pixels() * size, ahead.width = 16 * size;
  return ahead;
}

// What a task keeps: panels of one cut, products of all its features, converted weights, taps.
template <class Panel, class Row> struct ConvScratch {
  int64_t panel_size, product_size;  // elements
  Panel *panels;
  float *products;
  Row *converted;
  PanelTaps taps;
  ConvScratch(const ConvCall &c, void *memory)
      : panel_size(cut(c) * 16), product_size(round_up(c.feature_chunk, 16) * 16),
        panels((Panel *)memory), products((float *)(panels + c.panel_chunk * panel_size)),
        converted((Row *)(products + c.panel_chunk * product_size)),
        taps(converted + kGroup * (cut(c) + 32), c.shape.taps(), c.panel_chunk) {}
  static int64_t cut(const ConvCall &c) {
    return least(kDepth<Panel>, round_up(c.shape.depth(), 32));
  }
};

template <class Step, class W> void conv(const infopt_call *call, int64_t first, int64_t last) {
  using Row = typename Step::Row;
  using Panel = typename Step::Panel;
  const ConvCall c = read_conv(call);
  const ConvShape &s = c.shape;
  ConvScratch<Panel, Row> scratch(c, call->scratch);
  const int64_t panels = ceil_div(s.pixels(), 16), depth = s.depth();
  const int64_t panel_chunks = ceil_div(panels, c.panel_chunk);
  const int64_t feature_chunks = ceil_div(s.features, c.feature_chunk);
  const int64_t x_stride = scratch.panel_size, c_stride = scratch.product_size;
  const bool one_cut = depth <= kDepth<Panel>;
  const TileSession<Step> session;
  int64_t packed = -1;  // the chunk of panels that lies in scratch

  for (int64_t task = first; task < last; ++task) {
    const int64_t chunk = task / feature_chunks, group = chunk / panel_chunks;
    const int64_t p0 = chunk % panel_chunks * c.panel_chunk;
    const int64_t count = least(c.panel_chunk, panels - p0);
    const int64_t f0 = task % feature_chunks * c.feature_chunk;
    const int64_t features = least(c.feature_chunk, s.features - f0);
    const W *weights = (const W *)c.w + (group * s.features + f0) * c.weight_stride;
    if (packed != chunk) scratch.taps.find(s, p0, count);

    for (int64_t k = 0; k < depth; k += kDepth<Panel>) {
      const int64_t cut = least(kDepth<Panel>, depth - k);
      const bool last_cut = k + cut == depth;
      if (!one_cut || packed != chunk)
        with_row_type(c.x_format, [&](auto *type) {
          const auto *x = (decltype(type))c.x + group * s.channels * s.channel_stride;
          pack_taps(s, x, scratch.taps, c.by_tap, k, cut, scratch.panels, x_stride);
        });
      packed = chunk;
      for (int64_t f = 0; f < features; f += kGroup) {
        const int64_t rows = least(kGroup, features - f);
        const int64_t feature = group * s.features + f0 + f;
        const W *w = weights + f * c.weight_stride + k;
        const Rows<Row> r = convert_rows<Row>(w, c.weight_stride, rows, cut, scratch.converted);
        const Affine<kGroup> affine(c.epilogue, feature, last_cut ? rows : 0);
        for (int64_t p = 0; p < count; p += 2) {
          const int64_t pair = least(2, count - p);
          const PixelLanes at[2] = {{s, p0 + p}, {s, p0 + p + pair - 1}};
          float *products = scratch.products + (one_cut ? 0 : p * c_stride + f * 16);
          const bool first_use = p == 0 && (const void *)r.data == (const void *)w;
          session.multiply(r.data, r.stride, rows, scratch.panels + p * x_stride, x_stride, pair,
                           cut, products, c_stride, k > 0, first_use ? features - f : int64_t(0),
                           last_cut ? pixels_ahead(s, c.epilogue.y, at, pair, feature, rows)
                                    : Ahead());
          for (int64_t i = 0; last_cut && i < pair; ++i)
            finish_conv(s, c.epilogue, at[i], products + i * c_stride, affine.scale, affine.shift,
                        feature, rows);
        }
      }
    }
  }
}

}  // namespace infopt
