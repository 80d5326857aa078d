// Convolutions as matrix products: weights as torch stores them, times panels of 16 output pixels.
//
// The panels are made from the input as they are needed (conv_panel.h). A task is `feature_chunk`
// features times `panel_chunk` panels of one group; k is cut where the panels would leave the
// second cache. Results are rows of pixels, one per feature, as torch stores them: nothing is
// transposed on the way.
#pragma once

#include "conv_ahead.h"
#include "conv_panel.h"
#include "few_rows.h"

namespace infopt {

struct ConvCall {
  ConvShape shape;
  int64_t weight_stride, by_tap, feature_chunk, panel_chunk, x_format, few;
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
  c.few = v[10];
  return c;
}

// A last panel of few pixels is not worth the product of 16: its pixels meet the weights one by one,
// lanes along k, as a linear layer's few rows do.
template <class Row> using Along = std::conditional_t<sizeof(Row) == 4, AlongF32<Row>, AlongBf16>;

template <class Row>
INFOPT_INLINE void unpack_pixels(const float *panel, int64_t pixels, int64_t k, Row *x,
                                 int64_t x_stride) {
  for (int64_t m = 0; m < pixels; ++m)
    for (int64_t i = 0; i < k; ++i) x[m * x_stride + i] = panel[i * 16 + m];
}
template <class Row>
INFOPT_INLINE void unpack_pixels(const bf16 *panel, int64_t pixels, int64_t k, Row *x,
                                 int64_t x_stride) {
  for (int64_t m = 0; m < pixels; ++m)
    for (int64_t i = 0; i < k; ++i) {
      const bf16 value = panel[i / 2 * 32 + m * 2 + i % 2];
      if constexpr (sizeof(Row) == 4) x[m * x_stride + i] = to_float(value);
      else x[m * x_stride + i] = value;
    }
}

// c[features][16] (+)= products of some rows with `pixels` <= 4 rows of x, in lanes 0, 1, ...
template <class Row>
inline void multiply_few(const Rows<Row> &w, int64_t features, const Row *x, int64_t x_stride,
                         int64_t pixels, int64_t k, bool accumulate, float *c) {
  for (int64_t f = 0; f < features; f += 16) {
    const int64_t count = least(16, features - f);
    Vec sums[4 * 16];
    for (int i = 0; count < 16 && i < 4 * 16; ++i) sums[i] = zero();
    dot_tokens<Along<Row>>(w.data + f * w.stride, w.stride, count, x, x_stride, pixels, k, sums);
    for (int64_t m = 0; m < pixels; ++m) {
      float lanes[16];
      store(lanes, sums16(sums + m * 16));
      for (int64_t r = 0; r < count; ++r) {
        float *to = c + (f + r) * 16 + m;
        *to = accumulate ? *to + lanes[r] : lanes[r];
      }
    }
  }
}

// What a task keeps: panels of one cut, where their pixels lie, what the taps see; the pixels of a
// panel that are few; products of all features; converted weights.
template <class Panel, class Row> struct ConvScratch {
  int64_t panel_size, product_size;  // elements; panels a power of two apart would share cache sets
  Panel *panels;
  float *products;
  Row *converted, *pixels;
  int64_t pixel_stride;
  PixelLanes *lanes;  // of every panel
  PanelTaps taps;
  static_assert(sizeof(PixelLanes) == 664, "kernels_conv.cpp says how large the scratch is");
  ConvScratch(const ConvCall &c, void *memory)
      : panel_size(cut(c) * 16 + 64 / int64_t(sizeof(Panel))),
        product_size(round_up(c.feature_chunk, 16) * 16), panels((Panel *)memory),
        products((float *)(panels + c.panel_chunk * panel_size)),
        converted((Row *)(products + c.panel_chunk * product_size)),
        pixels(converted + kGroup * (cut(c) + 32)), pixel_stride(cut(c) + 32),
        lanes((PixelLanes *)(pixels + 4 * pixel_stride)),
        taps(lanes + c.panel_chunk, c.shape.taps(), c.panel_chunk) {}
  static int64_t cut(const ConvCall &c) {
    return least(kDepth<Panel>, round_up(c.shape.depth(), 32));
  }
  void find(const ConvShape &s, int64_t first_panel, int64_t count) {
    for (int64_t p = 0; p < count; ++p) lanes[p] = PixelLanes(s, first_panel + p);
    taps.find(s, first_panel, count);
  }
};

template <class Step, class W> void conv(const infopt_call *call, int64_t first, int64_t last) {
  using Row = typename Step::Row;
  using Panel = typename Step::Panel;
  using InRegisters = FinishInRegisters<Panel>;
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
  // Where the first product of a task will write.
  auto task_ahead = [&](int64_t task) {
    const int64_t chunk = task / feature_chunks, p0 = chunk % panel_chunks * c.panel_chunk;
    const int64_t f0 = task % feature_chunks * c.feature_chunk;
    const int64_t some = session.panels(least(panels, p0 + c.panel_chunk) - p0);
    PixelLanes at[kAtOnce];
    for (int64_t i = 0; i < some; ++i) at[i] = PixelLanes(s, p0 + i);
    return pixels_ahead(s, c.epilogue, at, some, chunk / panel_chunks * s.features + f0,
                        least(kGroup, least(c.feature_chunk, s.features - f0)));
  };

  for (int64_t task = first; task < last; ++task) {
    const int64_t chunk = task / feature_chunks, group = chunk / panel_chunks;
    const int64_t p0 = chunk % panel_chunks * c.panel_chunk;
    const int64_t count = least(c.panel_chunk, panels - p0);
    const int64_t f0 = task % feature_chunks * c.feature_chunk;
    const int64_t features = least(c.feature_chunk, s.features - f0);
    const W *weights = (const W *)c.w + (group * s.features + f0) * c.weight_stride;
    const int64_t in_last = s.pixels() - (p0 + count - 1) * 16;  // pixels of the last panel
    const int64_t few = in_last <= c.few ? in_last : 0;
    if (packed != chunk) scratch.find(s, p0, count);

    for (int64_t k = 0; k < depth; k += kDepth<Panel>) {
      const int64_t cut = least(kDepth<Panel>, depth - k);
      const bool last_cut = k + cut == depth;
      if (!one_cut || packed != chunk)
        with_row_type(c.x_format, [&](auto *type) {
          const auto *x = (decltype(type))c.x + group * s.channels * s.channel_stride;
          pack_taps(s, x, scratch.taps, c.by_tap, k, cut, scratch.panels, x_stride);
          unpack_pixels(scratch.panels + (count - 1) * x_stride, few, cut, scratch.pixels,
                        scratch.pixel_stride);
        });
      packed = chunk;
      const int64_t whole = few ? count - 1 : count;  // panels
      const int64_t products =
          ceil_div(features, kGroup) * ceil_div(whole, greatest(1, session.panels(whole)));
      const int64_t next_chunk = last_cut ? (task + 1) / feature_chunks : chunk;
      ImageAhead image;
      if (products > 0 && (!last_cut || task + 1 < last) && (next_chunk != chunk || !one_cut)) {
        const int64_t k_next = last_cut ? 0 : k + cut;
        const int64_t panel = next_chunk % panel_chunks * c.panel_chunk;
        image = ImageAhead(s, c.x, c.x_format == kRowF32 ? 4 : 2, c.by_tap,
                           next_chunk / panel_chunks, panel, least(c.panel_chunk, panels - panel),
                           k_next, least(kDepth<Panel>, depth - k_next), products);
      }
      for (int64_t f = 0; f < features; f += kGroup) {
        const int64_t rows = least(kGroup, features - f);
        const int64_t feature = group * s.features + f0 + f;
        const W *w = weights + f * c.weight_stride + k;
        const Rows<Row> r = convert_rows<Row>(w, c.weight_stride, rows, cut, scratch.converted);
        const Affine<kGroup> affine(c.epilogue, feature, last_cut ? rows : 0);
        for (int64_t p = 0, some; p < whole; p += some) {
          some = session.panels(whole - p);
          const PixelLanes *at = scratch.lanes + p;
          float *result = scratch.products + (one_cut ? 0 : p * c_stride + f * 16);
          const bool first_use = p == 0 && (const void *)r.data == (const void *)w;
          Ahead ahead;
          if (last_cut) {
            const bool ends = p + some == whole;
            const int64_t next = ends ? 0 : p + some;
            if (!ends || f + kGroup < features)
              ahead = pixels_ahead(s, c.epilogue, scratch.lanes + next,
                                   session.panels(whole - next), ends ? feature + rows : feature,
                                   ends ? least(kGroup, features - f - rows) : rows);
            else if (one_cut && task + 1 < last) ahead = task_ahead(task + 1);
          }
          ahead.in = image.take();
          const int64_t row_end = first_use ? features - f : 0;
          if constexpr (TileSession<Step>::kVectors)
            if (last_cut && InRegisters::fits(c.epilogue, at, some)) {
              multiply_block<Step>(r.data, r.stride, rows, scratch.panels + p * x_stride, x_stride,
                                   some, cut, result, c_stride, k > 0, row_end, ahead,
                                   InRegisters(s, c.epilogue, *at, feature, affine.scale,
                                               affine.shift));
              continue;
            }
          session.multiply(r.data, r.stride, rows, scratch.panels + p * x_stride, x_stride, some,
                           cut, result, c_stride, k > 0, row_end, ahead);
          for (int64_t i = 0; last_cut && i < some; ++i)
            finish_conv(s, c.epilogue, at[i], result + i * c_stride, affine.scale, affine.shift,
                        feature, rows);
        }
        if (few) {
          float *result = scratch.products + (count - 1) * c_stride + f * 16;
          multiply_few(r, rows, scratch.pixels, scratch.pixel_stride, few, cut, k > 0, result);
          if (last_cut)
            finish_conv(s, c.epilogue, scratch.lanes[count - 1], result, affine.scale,
                        affine.shift, feature, rows);
        }
      }
    }
  }
}

}  // namespace infopt
