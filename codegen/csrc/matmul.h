// General batched products C = alpha * A B + beta * D, any strides for A and B.
//
// The same micro-kernel with the roles turned: rows of A are broadcast, 16 columns of B are the
// lanes. A task packs its columns of B into panels in scratch; rows of A are used where they lie
// if they are contiguous, and copied per group of kGroup otherwise.
#pragma once

#include "linear.h"

namespace infopt {

struct Strided {
  const void *data;
  int64_t row, column, batch[3];
};

struct MatmulCall {
  int64_t m, n, k, batch[3], m_chunk, n_chunk;
  Strided a, b, c, d;
  int64_t d_format, c_format;
  float alpha, beta;
};

inline MatmulCall read_matmul(const infopt_call *call) {
  void *const *p = call->pointers;
  const int64_t *v = call->numbers;
  auto strided = [&](const void *data, int at) {
    return Strided{data, v[at], v[at + 1], {v[at + 2], v[at + 3], v[at + 4]}};
  };
  return {v[0], v[1], v[2], {v[3], v[4], v[5]}, v[6], v[7],
          strided(p[0], 8), strided(p[1], 13), strided(p[3], 18), strided(p[2], 23),
          v[28], v[29], float(as_double(v[30])), float(as_double(v[31]))};
}

// 16 columns of B from (k, n) as a panel; `columns` of them exist, the others are 0.
template <class T>
void pack_columns(const T *b, int64_t row, int64_t column, int64_t k, int64_t columns, float *to) {
  for (int64_t i = 0; i < k; ++i) {
    if (column == 1) {
      store(to + i * 16, load_some(b + i * row, columns));
    } else {
      for (int64_t j = 0; j < 16; ++j)
        to[i * 16 + j] = j < columns ? to_float(b[i * row + j * column]) : 0.0f;
    }
  }
}
inline void pack_columns(const bf16 *b, int64_t row, int64_t column, int64_t k, int64_t columns,
                         bf16 *to) {
  for (int64_t i = 0; i < k; i += 2) {
    const bool pair = i + 1 < k;
    if (column == 1) {
      const Vec even = load_some(b + i * row, columns);
      const Vec odd = pair ? load_some(b + (i + 1) * row, columns) : zero();
      store_pairs(to + i * 16, to_pairs(even, odd));
    } else {
      for (int64_t j = 0; j < 16; ++j) {
        const bool exists = j < columns;
        to[i * 16 + 2 * j] = exists ? b[i * row + j * column] : bf16{0};
        to[i * 16 + 2 * j + 1] = exists && pair ? b[(i + 1) * row + j * column] : bf16{0};
      }
    }
  }
}

template <class T> INFOPT_INLINE constexpr int64_t format_of() {
  return sizeof(T) == 4 ? kRowF32 : __is_same(T, bf16) ? kRowBf16 : kRowF16;
}
template <class T> INFOPT_INLINE constexpr int64_t panel_format_of() {
  return sizeof(T) == 4 ? kPanelF32 : kPanelBf16;
}

template <class T, class Panel>
void pack_b(const Strided &b, const T *data, int64_t k, int64_t columns, Panel *to,
            int64_t panel_stride) {
  if (b.row == 1) {  // contiguous along k: rows of Bᵀ are tokens
    const Matrix from = {(void *)data, b.column, format_of<T>()};
    const Matrix panels = {to, panel_stride, panel_format_of<Panel>()};
    for (int64_t p = 0; p * 16 < columns; ++p) pack_panel(from, panels, columns, k, p);
    return;
  }
  for (int64_t p = 0; p * 16 < columns; ++p)
    pack_columns(data + p * 16 * b.column, b.row, b.column, k, least(16, columns - p * 16),
                 to + p * panel_stride);
}

// Rows of A as the micro-kernel reads them: where they lie, transposed, or gathered.
template <class Row, class T>
INFOPT_INLINE Rows<Row> rows_of_a(const Strided &a, const T *data, int64_t rows, int64_t k,
                                  Row *scratch) {
  if (a.column == 1) return convert_rows<Row>(data, a.row, rows, k, scratch);
  const int64_t padded = round_up(k, 32) + 32;
  if (a.row == 1) {  // 16 steps of k are the rows of a tile
    const Matrix transposed = {(void *)data, a.column, format_of<T>()};
    for (int64_t i = 0; i < k; i += 16) {
      for (int64_t r = 0; r < rows; r += 16) {
        const Place at = {i / 16, r, least(16, k - i), least(16, rows - r)};
        Vec t[16];
        load_tile(transposed, at, false, t);
        for (int64_t j = 0; j < at.features; ++j) store(scratch + (r + j) * padded + i, t[j]);
      }
    }
    return {scratch, padded};
  }
  for (int64_t i = 0; i < k; ++i)
    for (int64_t r = 0; r < rows; ++r)
      scratch[r * padded + i] = from_float<Row>(to_float(data[r * a.row + i * a.column]));
  return {scratch, padded};
}

constexpr int64_t kFewRows = 4;

// Up to kFewRows rows of A straight from memory times up to 64 columns of B as they lie: B is read once,
// so packing it would only add work. products: [panel][m_chunk][16], as the packed way leaves them.
template <class T, int M>
void multiply_unpacked(const MatmulCall &c, const T *a, const T *b, int64_t columns,
                       float *products) {
  for (int64_t n = 0; n < columns; n += 64) {
    Vec acc[M][4];
    for (int m = 0; m < M; ++m)
      for (int j = 0; j < 4; ++j) acc[m][j] = zero();
    auto step = [&](int64_t k, auto load_columns) __attribute__((always_inline)) {
      const T *row = b + k * c.b.row + n;
      __builtin_prefetch(row + 8 * c.b.row, 0, 3);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const Vec lanes = load_columns(row, j * 16);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
          const Vec x = broadcast(to_float(a[m * c.a.row + k * c.a.column]));
          acc[m][j] = fma(x, lanes, acc[m][j]);
        }
      }
    };
    if (n + 64 <= columns) {
      for (int64_t k = 0; k < c.k; ++k)
        step(k, [](const T *row, int64_t j) { return load(row + j); });
    } else {
      const int64_t left = columns - n;
      for (int64_t k = 0; k < c.k; ++k) {
        step(k, [left](const T *row, int64_t j) {
          return j < left ? load_some(row + j, least(16, left - j)) : zero();
        });
      }
    }
    for (int m = 0; m < M; ++m)
      for (int64_t j = 0; j < 4 && n + j * 16 < columns; ++j)
        store(products + ((n / 16 + j) * c.m_chunk + m) * 16, acc[m][j]);
  }
}

template <class T>
void multiply_few(const MatmulCall &c, const T *a, const T *b, int64_t rows, int64_t columns,
                  float *products) {
  if (rows == 1) multiply_unpacked<T, 1>(c, a, b, columns, products);
  if (rows == 2) multiply_unpacked<T, 2>(c, a, b, columns, products);
  if (rows == 3) multiply_unpacked<T, 3>(c, a, b, columns, products);
  if (rows == 4) multiply_unpacked<T, 4>(c, a, b, columns, products);
}

// One task: a[rows][k] times b[k][columns] to element at_c of C; addends from row m0, element at_d.
// Up to `few_rows` (at most 4) meet b as it lies.
template <class Step, class T>
void matmul_task(const MatmulCall &c, const TileSession<Step> &session, const T *a, const T *b,
                 int64_t rows, int64_t columns, int64_t at_c, int64_t m0, int64_t at_d,
                 int64_t few_rows, void *scratch) {
  using Row = typename Step::Row;
  using Panel = typename Step::Panel;
  const int64_t depth_max = least(kDepth<Panel>, round_up(c.k, 32));
  const int64_t group_stride = c.m_chunk * 16, panel_stride = depth_max * 16;
  float *products = (float *)scratch;
  Panel *panels = (Panel *)(products + round_up(c.n_chunk, 16) * c.m_chunk);
  Row *converted = (Row *)(panels + ceil_div(c.n_chunk, 16) * panel_stride);
  const int64_t count = ceil_div(columns, 16);
  const bool few = rows <= few_rows && c.b.column == 1;
  if (few) multiply_few(c, a, b, rows, columns, products);
  for (int64_t k = 0; k < c.k && !few; k += depth_max) {
    const int64_t depth = least(depth_max, c.k - k);
    pack_b(c.b, b + k * c.b.row, depth, columns, panels, panel_stride);
    for (int64_t m = 0; m < rows; m += kGroup) {
      const int64_t some = least(kGroup, rows - m);
      const Rows<Row> r = rows_of_a<Row>(c.a, a + m * c.a.row + k * c.a.column, some, depth,
                                         converted);
      Ahead nothing;
      session.multiply(r.data, r.stride, some, panels, panel_stride, count, depth,
                       products + m * 16, group_stride, k > 0, some, nothing);
    }
  }
  const Matrix d = {(void *)c.d.data, c.d.row, c.d.data ? c.d_format : int64_t(kAbsent)};
  with_row_type(c.c_format, [&](auto *type) {
    auto *out = (decltype(type))c.c.data + at_c;
    for (int64_t p = 0; p < count; ++p) {
      const int64_t n = p * 16, lanes = least(16, columns - n);
      for (int64_t m = 0; m < rows; ++m) {
        Vec v = load(products + p * group_stride + m * 16) * broadcast(c.alpha);
        if (d.present()) v = fma(load_row(d, m0 + m, at_d + n, lanes), broadcast(c.beta), v);
        store_some(out + m * c.c.row + n, v, lanes);
      }
    }
  });
}

template <class Step, class T> void matmul(const infopt_call *call, int64_t first, int64_t last) {
  const MatmulCall c = read_matmul(call);
  const int64_t m_chunks = ceil_div(c.m, c.m_chunk), n_chunks = ceil_div(c.n, c.n_chunk);
  const TileSession<Step> session;

  for (int64_t task = first; task < last; ++task) {
    const int64_t n0 = task % n_chunks * c.n_chunk, columns = least(c.n_chunk, c.n - n0);
    const int64_t m0 = task / n_chunks % m_chunks * c.m_chunk, rows = least(c.m_chunk, c.m - m0);
    int64_t index = task / n_chunks / m_chunks, at_a = 0, at_b = 0, at_c = 0, at_d = 0;
    for (int d = 2; d >= 0; --d, index /= c.batch[d + 1]) {
      const int64_t i = index % c.batch[d];
      at_a += i * c.a.batch[d];
      at_b += i * c.b.batch[d];
      at_c += i * c.c.batch[d];
      at_d += i * c.d.batch[d];
    }
    const T *a = (const T *)c.a.data + at_a + m0 * c.a.row;
    const T *b = (const T *)c.b.data + at_b + n0 * c.b.column;
    matmul_task(c, session, a, b, rows, columns, at_c + m0 * c.c.row + n0, m0, at_d + n0, kFewRows,
                call->scratch);
  }
}

}  // namespace infopt
