// Matrices in memory, row-major or in token panels, read and written as 16x16 tiles.
//
//   f32  panels  xp[P][K][16]             xp[p][k][i]    = x[16p+i][k]
//   bf16 panels  xp[P][ceil(K/2)][16][2]  xp[p][j][i][s] = x[16p+i][2j+s]   (0 where 2j+s >= K)
#pragma once

#include "vec.h"

namespace infopt {

// The codes kernels take in `numbers`. An absent operand has format 0.
enum Format : int64_t {
  kAbsent = 0, kRowF32 = 1, kRowBf16 = 2, kRowF16 = 3, kPanelF32 = 4, kPanelBf16 = 5,
  kPanelBytes = 6  // byte_panels.h
};

struct Matrix {
  void *data;
  int64_t stride;  // elements between rows, or between panels
  int64_t format;
  bool present() const { return format != kAbsent; }
  bool in_panels() const { return format >= kPanelF32; }
};

#ifdef INFOPT_SCALAR
#define INFOPT_UNROLL_TILE
#else
#define INFOPT_UNROLL_TILE _Pragma("GCC unroll 16")
#endif

// Calls f with a typed null pointer naming the element type of a row format.
template <class F> INFOPT_INLINE void with_row_type(int64_t format, F f) {
  if (format == kRowF32) f((float *)nullptr);
  else if (format == kRowBf16) f((bf16 *)nullptr);
  else f((f16 *)nullptr);
}

template <class T> INFOPT_INLINE Vec load_some(const T *p, int64_t n) {
  return n == 16 ? load(p) : load(p, n);
}
template <class T> INFOPT_INLINE void store_some(T *p, Vec v, int64_t n) {
  if (n == 16) store(p, v);
  else store(p, v, n);
}

// 16 values of one row of a row-major matrix, the first n of them read.
INFOPT_INLINE Vec load_row(const Matrix &m, int64_t row, int64_t column, int64_t n) {
  Vec v = zero();
  with_row_type(m.format, [&](auto *type) {
    v = load_some((decltype(type))m.data + row * m.stride + column, n);
  });
  return v;
}

// A tile is 16 Vecs: by token (t[i] = token i, lanes = features) or by feature (the transpose).
// `tokens` and `features` say how much of it exists; the rest reads as 0 and is not written.
struct Place {
  int64_t panel, feature;    // first token / 16, first feature (a multiple of 2 in bf16 panels)
  int64_t tokens, features;  // 1..16
};

// `whole` (known to the compiler) promises 16 tokens and 16 features: no tails, no branches.
template <bool whole = false>
INFOPT_INLINE void load_panel_tile(const Matrix &m, const Place &at, Vec *t) {
  const int64_t first = at.panel * m.stride + at.feature * 16;
  if (m.format == kPanelF32) {
    const float *p = (const float *)m.data + first;
  INFOPT_UNROLL_TILE
    for (int i = 0; i < 16; ++i) t[i] = whole || i < at.features ? load(p + i * 16) : zero();
  } else {
    const bf16 *p = (const bf16 *)m.data + first;
  INFOPT_UNROLL_TILE
    for (int i = 0; i < 16; i += 2) {
      const bool exists = whole || i < at.features;
      const BVec pairs = exists ? load_pairs(p + i * 16) : to_pairs(zero(), zero());
      t[i] = even_lanes(pairs);
      t[i + 1] = odd_lanes(pairs);
    }
  }
}

template <bool whole = false>
INFOPT_INLINE void load_tile(const Matrix &m, const Place &at, bool by_token, Vec *t) {
  if (m.in_panels()) {
    load_panel_tile<whole>(m, at, t);
  } else {
    with_row_type(m.format, [&](auto *type) {
      const auto *p = (decltype(type))m.data + at.panel * 16 * m.stride + at.feature;
  INFOPT_UNROLL_TILE
      for (int i = 0; i < 16; ++i) {
        if (whole) t[i] = load(p + i * m.stride);
        else t[i] = i < at.tokens ? load_some(p + i * m.stride, at.features) : zero();
      }
    });
  }
  if (m.in_panels() == by_token) transpose16(t);
}

// Writes t, which is by token for a row-major matrix and by feature for panels. Lanes of missing
// tokens and the missing half of a last pair become 0 in panels.
template <bool whole = false>
INFOPT_INLINE void store_tile(const Matrix &m, const Place &at, Vec *t) {
  if (!m.in_panels()) {
    with_row_type(m.format, [&](auto *type) {
      auto *p = (decltype(type))m.data + at.panel * 16 * m.stride + at.feature;
  INFOPT_UNROLL_TILE
      for (int i = 0; i < 16; ++i) {
        if (whole) store(p + i * m.stride, t[i]);
        else if (i < at.tokens) store_some(p + i * m.stride, t[i], at.features);
      }
    });
    return;
  }
  if (!whole && at.tokens < 16) {
    const Mask exists = first_lanes(at.tokens);
    for (int64_t i = 0; i < at.features; ++i) t[i] = select(exists, t[i], zero());
  }
  const int64_t first = at.panel * m.stride + at.feature * 16;
  if (m.format == kPanelF32) {
    float *p = (float *)m.data + first;
  INFOPT_UNROLL_TILE
    for (int i = 0; i < 16; ++i)
      if (whole || i < at.features) store(p + i * 16, t[i]);
  } else {
    bf16 *p = (bf16 *)m.data + first;
  INFOPT_UNROLL_TILE
    for (int i = 0; i < 16; i += 2) {
      if (!whole && i >= at.features) break;
      const Vec odd = whole || i + 1 < at.features ? t[i + 1] : zero();
      store_pairs(p + i * 16, to_pairs(t[i], odd));
    }
  }
}

// 16 tokens x 32 features from row-major T to bf16 panels: neighbours travel as 32-bit words.
template <class T> INFOPT_INLINE void pack_pairs(const T *x, int64_t stride, bf16 *out) {
  Vec words[16];
  for (int i = 0; i < 16; ++i) {
    bf16 row[32];
    store_pairs(row, to_row(load(x + i * stride), load(x + i * stride + 16)));
    words[i] = load((const float *)row);
  }
  transpose16(words);
  for (int j = 0; j < 16; ++j) store((float *)out + j * 16, words[j]);
}
INFOPT_INLINE void pack_pairs(const bf16 *x, int64_t stride, bf16 *out) {
  Vec words[16];
  for (int i = 0; i < 16; ++i) words[i] = load((const float *)(x + i * stride));
  transpose16(words);
  for (int j = 0; j < 16; ++j) store((float *)out + j * 16, words[j]);
}

// 16 rows are more streams than the hardware follows: ask for what comes 4 lines later.
template <class T> INFOPT_INLINE void fetch_columns(const T *x, int64_t stride, int64_t column) {
  for (int i = 0; i < 16; ++i)
    __builtin_prefetch((const char *)(x + i * stride + column) + 256, 0, 3);
}

// One panel of to_panels: rows of x to a panel of out, `m` rows in all, `k` columns.
inline void pack_panel(const Matrix &x, const Matrix &out, int64_t m, int64_t k, int64_t panel) {
  const int64_t tokens = least(16, m - panel * 16);
  int64_t column = 0;
  if (tokens == 16) {
    with_row_type(x.format, [&](auto *type) {
      const auto *row = (decltype(type))x.data + panel * 16 * x.stride;
      if (out.format == kPanelBf16) {
        bf16 *p = (bf16 *)out.data + panel * out.stride;
        for (; column + 32 <= k; column += 32) {
          fetch_columns(row, x.stride, column);
          pack_pairs(row + column, x.stride, p + column * 16);
        }
      } else {
        float *p = (float *)out.data + panel * out.stride;
        for (; column + 16 <= k; column += 16) {
          fetch_columns(row, x.stride, column);
          Vec t[16];
          INFOPT_UNROLL_TILE
          for (int i = 0; i < 16; ++i) t[i] = load(row + i * x.stride + column);
          transpose16(t);
          INFOPT_UNROLL_TILE
          for (int i = 0; i < 16; ++i) store(p + (column + i) * 16, t[i]);
        }
      }
    });
  }
  for (; column < k; column += 16) {
    const Place at = {panel, column, tokens, least(16, k - column)};
    Vec t[16];
    load_tile(x, at, false, t);
    store_tile(out, at, t);
  }
}

// One panel of from_panels.
inline void unpack_panel(const Matrix &x, const Matrix &out, int64_t m, int64_t k, int64_t panel) {
  for (int64_t column = 0; column < k; column += 16) {
    const Place at = {panel, column, least(16, m - panel * 16), least(16, k - column)};
    Vec t[16];
    load_tile(x, at, true, t);
    store_tile(out, at, t);
  }
}

}  // namespace infopt
