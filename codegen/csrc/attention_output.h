// Where attention's result goes: any strides, so that merging the heads costs nothing, or token
// panels of the matrix [batches * queries, heads * value_depth] (docs/architecture.md).
#pragma once

#include "attention_shape.h"

namespace infopt {

// The address of element (row, column) of a token panel tensor of `width` columns.
template <class T>
INFOPT_INLINE T *panel_element(T *panels, int64_t width, int64_t row, int64_t column) {
  if (sizeof(T) == 4) return panels + (row / 16 * width + column) * 16 + row % 16;
  return panels + (row / 16 * ceil_div(width, 2) + column / 2) * 32 + row % 16 * 2 + column % 2;
}

// O[feature][16 rows] * scale of neighbouring tokens of one head that fill one panel.
template <class T>
static void store_panel(const AttentionShape &s, const float *o, int64_t step, Vec scale,
                        int64_t row, int64_t head, T *out) {
  const int64_t width = s.heads * s.value_depth, column = head * s.value_depth;
  T *to = panel_element(out, width, row, column);
  if constexpr (sizeof(T) == 4) {
    for (int64_t d = 0; d < s.value_depth; ++d) store(to + d * 16, load(o + d * step) * scale);
  } else {
    for (int64_t d = 0; d < s.value_depth; d += 2)
      store_pairs((bf16 *)to + d * 16,
                  to_pairs(load(o + d * step) * scale, load(o + (d + 1) * step) * scale));
  }
}

// The rows that pad the last panel, and the column that pads its last pair, are zero.
template <class T>
static void pad_panels(const AttentionShape &s, int64_t head, T *out) {
  const int64_t width = s.heads * s.value_depth, rows = s.batches * s.queries;
  const int64_t end = head + 1 == s.heads && sizeof(T) == 2 ? round_up(width, 2)
                                                            : (head + 1) * s.value_depth;
  for (int64_t row = rows; row < round_up(rows, 16); ++row)
    for (int64_t c = head * s.value_depth; c < end; ++c)
      *panel_element(out, width, row, c) = from_float<T>(0.0f);
}

// What panels need after a row is written: its padding column and, by the last row, padding rows.
template <class T>
static void finish_panel_row(const AttentionShape &s, int64_t row, int64_t head, T *out) {
  const int64_t width = s.heads * s.value_depth;
  if (head + 1 == s.heads && sizeof(T) == 2 && width % 2)
    *panel_element(out, width, row, width) = from_float<T>(0.0f);
  if (row + 1 == s.batches * s.queries) pad_panels(s, head, out);
}

// `count` features from `first` on of one row.
template <class T>
INFOPT_INLINE void store_features(const AttentionShape &s, const QueryRows &rows, int64_t i,
                                  int64_t first, int64_t count, Vec x, T *out) {
  T staged[16];
  if (s.panels) {
    const int64_t row = rows.batch * s.queries + rows.token[i];
    const int64_t column = rows.head[i] * s.value_depth + first;
    store(staged, x);
    for (int64_t j = 0; j < count; ++j)
      *panel_element(out, s.heads * s.value_depth, row, column + j) = staged[j];
    return;
  }
  T *to = out + rows.batch * s.out[0] + rows.head[i] * s.out[1] + rows.token[i] * s.out[2] +
          first * s.out[3];
  if (s.out[3] == 1) {
    count == 16 ? store(to, x) : store(to, x, count);
    return;
  }
  store(staged, x);
  for (int64_t j = 0; j < count; ++j) to[j * s.out[3]] = staged[j];
}

// One whole row, from neighbouring floats.
template <class T>
static void store_row(const AttentionShape &s, const QueryRows &rows, int64_t i, const float *o,
                      T *out) {
  for (int64_t d = 0; d < s.value_depth; d += 16)
    store_features(s, rows, i, d, least(16, s.value_depth - d), load(o + d), out);
  if (s.panels) finish_panel_row(s, rows.batch * s.queries + rows.token[i], rows.head[i], out);
}

// maximum: in units of log2, as the weights that total sums are.
INFOPT_INLINE void store_logsum(const AttentionShape &s, const QueryRows &rows, int64_t i,
                                float maximum, float total) {
  s.logsum[(rows.batch * s.heads + rows.head[i]) * s.queries + rows.token[i]] =
      total == 0 ? -INFINITY : float((double(maximum) + log2(double(total))) / 1.4426950408889634);
}

template <class T>
static void store_output(const AttentionShape &s, const QueryRows &rows, int64_t lanes,
                         const float *o, const float *total, T *out) {
  const int64_t step = lanes * 16;
  for (int64_t l = 0; l * 16 < rows.count; ++l) {
    const int64_t *head = rows.head + l * 16, *token = rows.token + l * 16;
    const int64_t count = least(16, rows.count - l * 16), row = rows.batch * s.queries + token[0];
    const Vec sum = load(total + l * 16);
    const Vec scale = select(eq(sum, zero()), zero(), broadcast(1.0f) / sum);
    const bool aligned = s.panels && row % 16 == 0 && head[0] == head[15] &&
                         (sizeof(T) == 4 || s.value_depth % 2 == 0);
    if (aligned && (count == 16 || row + count == s.batches * s.queries)) {
      store_panel(s, o + l * 16, step, select(first_lanes(count), scale, zero()), row, head[0],
                  out);
      continue;
    }
    for (int64_t d = 0; d < s.value_depth; d += 16) {
      const int64_t n = least(16, s.value_depth - d);
      Vec block[16];
      for (int64_t j = 0; j < 16; ++j)
        block[j] = j < n ? load(o + (d + j) * step + l * 16) * scale : zero();
      transpose16(block);
      for (int64_t i = 0; i < count; ++i)
        store_features(s, rows, l * 16 + i, d, n, block[i], out);
    }
    for (int64_t i = 0; s.panels && i < count; ++i)
      finish_panel_row(s, row - token[0] + token[i], head[i], out);
  }
}

}  // namespace infopt
