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

template <class T>
static void store_output(const AttentionShape &s, const QueryRows &rows, int64_t lanes,
                         const float *o, const float *total, T *out) {
  const int64_t step = lanes * 16, width = s.heads * s.value_depth;
  for (int64_t l = 0; l * 16 < rows.count; ++l) {
    const int64_t *head = rows.head + l * 16, *token = rows.token + l * 16;
    const int64_t count = least(16, rows.count - l * 16), row = rows.batch * s.queries + token[0];
    const Vec sum = load(total + l * 16);
    const Vec scale = select(eq(sum, zero()), zero(), broadcast(1.0f) / sum);
    const bool aligned = s.panels && row % 16 == 0 && head[0] == head[15] &&
                         (sizeof(T) == 4 || s.value_depth % 2 == 0);
    if (aligned && (count == 16 || row + count == s.batches * s.queries)) {
      store_panel(s, o + l * 16, step, select(first_lanes(count), scale, zero()), row, head[0], out);
      continue;
    }
    for (int64_t d = 0; d < s.value_depth; d += 16) {
      const int64_t n = least(16, s.value_depth - d);
      Vec block[16];
      for (int64_t j = 0; j < 16; ++j)
        block[j] = j < n ? load(o + (d + j) * step + l * 16) * scale : zero();
      transpose16(block);
      for (int64_t i = 0; i < count; ++i) {
        T *to = out + rows.batch * s.out[0] + head[i] * s.out[1] + token[i] * s.out[2] +
                d * s.out[3];
        if (!s.panels && s.out[3] == 1) {
          store(to, block[i], n);
          continue;
        }
        T staged[16];
        store(staged, block[i]);
        for (int64_t j = 0; j < n; ++j) {
          if (s.panels)
            *panel_element(out, width, row - token[0] + token[i],
                           head[i] * s.value_depth + d + j) = staged[j];
          else to[j * s.out[3]] = staged[j];
        }
      }
    }
    for (int64_t i = 0; s.panels && i < count; ++i) {
      if (head[i] + 1 == s.heads && sizeof(T) == 2 && width % 2)
        *panel_element(out, width, row - token[0] + token[i], width) = from_float<T>(0.0f);
      if (row - token[0] + token[i] + 1 == s.batches * s.queries) pad_panels(s, head[i], out);
    }
  }
}

}  // namespace infopt
