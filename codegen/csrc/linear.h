// Linear layers on token panels: y = epilogue(x wᵀ), w exactly as torch stores it.
//
// A task is `n_chunk` weight rows times `panel_chunk` panels. Inside, groups of kGroup rows
// meet all panels of the task: the weights of a group stay in the first cache, the panels in the
// second; K is cut so that both fit. The f32 result of a group waits in scratch as
// [panel][kGroup][16] for the epilogue.
#pragma once

#include "epilogue.h"
#include "microkernel.h"
#include "linear_amx.h"

namespace infopt {

// Whole blocks of the micro-kernel (12 rows; 32 for AMX) and whole 16x16 tiles.
#ifdef INFOPT_AMX
constexpr int64_t kGroup = 96;
#else
constexpr int64_t kGroup = 48;
#endif

// Panels are cut along K at 64 KiB: 1024 f32 or 2048 bf16.
template <class Panel> constexpr int64_t kDepth = 4096 / int64_t(sizeof(Panel));

struct LinearCall {
  int64_t m, n, k, row_stride, n_chunk, panel_chunk, x_stride;
  const void *x, *w, *up;
  Epilogue epilogue;
  const void *up_x = nullptr;  // panels that `up` meets, where they are not x
};

// The order of pointers and numbers is in kernels_linear.cpp.
inline LinearCall read_linear(const infopt_call *call) {
  void *const *p = call->pointers;
  const int64_t *v = call->numbers;
  LinearCall c = {v[0], v[1], v[2], v[3], v[4], v[5], v[14], p[0], p[1], p[2], {}};
  Epilogue &e = c.epilogue;
  e.bias = {p[3], 0, p[3] ? v[7] : int64_t(kAbsent)};
  e.up_bias = {p[4], 0, p[4] ? v[7] : int64_t(kAbsent)};
  e.activation = v[6];
  e.multiplier = {p[5], v[9], p[5] ? v[8] : int64_t(kAbsent)};
  e.residual = {p[6], v[11], p[6] ? v[10] : int64_t(kAbsent)};
  e.y = {p[7], v[13], v[12]};
  if (e.y.format == kPanelBytes) {  // numbers 23, 24: step and zero point; pointer 14: factors
    e.bytes.panels = byte_panels(p[7], c.m, c.n);
    e.bytes.code = read_rounding(kStatic, v + 23).fixed;
    e.bytes.factors = (const float *)p[14];
    if (e.activation == kGelu && !c.up)
      e.bytes.coarse_gelu_below = e.bytes.code.step / (8 * kCoarseGeluError);
    e.y.stride = e.bytes.panels.stride;
  }
  return c;
}

// Steps and zero points of a task's panels, by the task of the first features.
inline void store_fixed_codes(const LinearCall &c, int64_t panel, int64_t count) {
  if (c.epilogue.y.format != kPanelBytes) return;
  for (int64_t p = panel; p < panel + count; ++p)
    store_fixed(c.epilogue.bytes.panels, c.m, p, c.epilogue.bytes.code);
}

// Rows of type W as the micro-kernel's row type; copied into scratch only where they differ.
template <class Row> struct Rows {
  const Row *data;
  int64_t stride;
};
template <class Row, class W>
INFOPT_INLINE Rows<Row> convert_rows(const W *w, int64_t stride, int64_t rows, int64_t k,
                                     Row *scratch) {
  const int64_t padded = round_up(k, 32) + 32;  // rows must not share one cache set
  for (int64_t r = 0; r < rows; ++r) {
    const W *from = w + r * stride;
    Row *to = scratch + r * padded;
    int64_t i = 0;
    if constexpr (sizeof(Row) == sizeof(bf16)) {
      for (; i + 32 <= k; i += 32)
        store_pairs(to + i, to_row(load(from + i), load(from + i + 16)));
    }
    for (; i + 16 <= k; i += 16) store(to + i, load(from + i));
    if (i < k) store(to + i, load(from + i, k - i), k - i);
  }
  return {scratch, padded};
}
template <class Row>
INFOPT_INLINE Rows<Row> convert_rows(const Row *w, int64_t stride, int64_t, int64_t, Row *) {
  return {w, stride};
}

// Panels p to p + count of one group, `rows` features from n: products to results.
inline void finish_panels(const LinearCall &c, const float *products, const float *up,
                          int64_t first_panel, int64_t count, int64_t n, int64_t rows) {
  for (int64_t p = 0; p < count; ++p) {
    for (int64_t f = 0; f < rows; f += 16) {
      const int64_t panel = first_panel + p, tile = (p * kGroup + f) * 16;
      const Place at = {panel, n + f, least(16, c.m - panel * 16), least(16, rows - f)};
      finish_tile(c.epilogue, products + tile, up ? up + tile : nullptr, at);
    }
  }
}

// Where finish_panels will write: 16 pieces of each panel, which a store would otherwise wait for.
inline Ahead result_ahead(const LinearCall &c, int64_t panel, int64_t count, int64_t n,
                          int64_t rows) {
  const Matrix &y = c.epilogue.y;
  const bool wide = y.format == kRowF32 || y.format == kPanelF32;
  const int64_t size = wide ? 4 : y.format == kPanelBytes ? 1 : 2;
  const int64_t panel_bytes = y.stride * size * (y.in_panels() ? 1 : 16);
  Ahead ahead;
  for (ahead.parts = 0; ahead.parts < count; ++ahead.parts)
    ahead.out[ahead.parts] = (const char *)y.data + (panel + ahead.parts) * panel_bytes +
                             n * size * (y.in_panels() ? 16 : 1);
  ahead.count = 16;
  ahead.width = rows * size;
  ahead.stride = y.in_panels() ? ahead.width : y.stride * size;
  const Matrix &residual = c.epilogue.residual;
  if (residual.format == y.format && residual.stride == y.stride)
    ahead.beside = (const char *)residual.data - (const char *)y.data;
  return ahead;
}

// Weights of type W, row-major, as rows for the micro-kernel.
template <class Row, class W> struct TypedRows {
  static constexpr bool kGrouped = false;
  const LinearCall &c;
  TypedRows(const infopt_call *, const LinearCall &c) : c(c) {}
  // `count` rows of w (or up) from n on, `depth` columns from k; lies: where the weights do.
  Rows<Row> rows(bool up, int64_t n, int64_t k, int64_t count, int64_t depth, Row *scratch) const {
    const W *w = (const W *)(up ? c.up : c.w) + n * c.row_stride + k;
    return convert_rows<Row>(w, c.row_stride, count, depth, scratch);
  }
  static constexpr bool kInPlace = sizeof(Row) == sizeof(W);
};

// One task: the panels from p0 on times the weight rows from n0 on, epilogue included.
// Step: the micro-kernel; Source: where its rows come from.
template <class Step, class Source>
void linear_task(const LinearCall &c, const Source &source, const TileSession<Step> &session,
                 int64_t p0, int64_t n0, void *scratch) {
  using Row = typename Step::Row;
  using Panel = typename Step::Panel;
  float *const products = (float *)scratch;
  float *const up_products = c.up ? products + kGroup * 16 * c.panel_chunk : nullptr;
  Row *const converted = (Row *)(products + (c.up ? 2 : 1) * kGroup * 16 * c.panel_chunk);
  const int64_t count = least(c.panel_chunk, ceil_div(c.m, 16) - p0);
  const int64_t n1 = least(c.n, n0 + c.n_chunk);
  const Panel *x = (const Panel *)c.x + p0 * c.x_stride;
  const Panel *up_x = c.up_x ? (const Panel *)c.up_x + p0 * c.x_stride : x;
  if (n0 == 0) store_fixed_codes(c, p0, count);
  for (int64_t n = n0; n < n1; n += kGroup) {
    const int64_t rows = least(kGroup, n1 - n);
    // One group times one cut of K, some panels at a time; `finish` while they are in cache.
    auto multiply_group = [&](bool is_up, int64_t k, float *into, bool finish) {
      const int64_t depth = least(kDepth<Panel>, c.k - k);
      const Rows<Row> r = source.rows(is_up, n, k, rows, depth, converted);
      for (int64_t p = 0, some; p < count; p += some) {
        some = Source::kGrouped ? least(2, count - p) : session.panels(count - p);
        const int64_t at = p * kGroup * 16;
        const Panel *panel = (is_up ? up_x : x) + p * c.x_stride + k * 16;
        if constexpr (Source::kGrouped) {
          source.multiply(session, is_up, n, k, r, rows, panel, some, depth, into + at);
        } else {
          const bool first_use = p == 0 && Source::kInPlace;
          Ahead ahead = finish ? result_ahead(c, p0 + p, some, n, rows) : Ahead();
          session.multiply(r.data, r.stride, rows, panel, c.x_stride, some, depth, into + at,
                           kGroup * 16, k > 0, first_use ? n1 - n : int64_t(0), ahead);
        }
        if (finish)
          finish_panels(c, products + at, up_products ? up_products + at : nullptr, p0 + p, some,
                        n, rows);
      }
    };
    for (int64_t k = 0; k < c.k; k += kDepth<Panel>) {
      const bool last_cut = k + kDepth<Panel> >= c.k;
      multiply_group(false, k, products, last_cut && !c.up);
      if (c.up) multiply_group(true, k, up_products, last_cut);
    }
  }
}

template <class Step, class Source>
void linear_from(const infopt_call *call, int64_t first, int64_t last) {
  LinearCall c = read_linear(call);
  if constexpr (kIntegers<Step>) {
    const BytePanels panels = byte_panels(call->pointers[0], c.m, c.k);
    Integers &integers = c.epilogue.integers;
    integers = {panels.steps, panels.zeros, {}, {}};
    for (int side = 0; side < 2; ++side) {
      if (!Source::kGrouped) integers.scales[side] = pointer<float>(call, 8 + side);
      integers.sums[side] = pointer<float>(call, 10 + side);
    }
  }
  const int64_t n_chunks = ceil_div(c.n, c.n_chunk);
  const TileSession<Step> session;
  const Source source(call, c);
  for (int64_t task = first; task < last; ++task)
    linear_task(c, source, session, task / n_chunks * c.panel_chunk, task % n_chunks * c.n_chunk,
                call->scratch);
}

// W: the weights' type in memory.
template <class Step, class W> void linear(const infopt_call *call, int64_t first, int64_t last) {
  linear_from<Step, TypedRows<typename Step::Row, W>>(call, first, last);
}

}  // namespace infopt
