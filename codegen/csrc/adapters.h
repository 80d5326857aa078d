// Low-rank adapters of rows (S-LoRA): y[r] += (x[r] aᵀ) b, with the a and b of the row's slot.
//
// Which row has which slot is data. Neighbouring rows of one slot share the reading of a and b, up
// to 8 of them; rows without an adapter are not touched. How rows go together changes no sum.
#pragma once

#include "few_rows.h"

namespace infopt {

constexpr int64_t kTogether = 8;  // rows, as many as few_rows takes

struct AdapterCall {
  int64_t rows, k, n, room, slots, each;  // a[slots][room][k], b[slots][room][n]
  int64_t x_stride, y_stride;
  const char *x, *a, *b;
  const int64_t *ranks, *slot;  // of every slot; of every `each` rows
  char *y;

  // How many rows of a and b a slot has; 0 where a row has none.
  int64_t rank(int64_t s) const {
    return s < 0 || s >= slots ? 0 : greatest(0, least(room, ranks[s]));
  }
};

inline AdapterCall read_adapters(const infopt_call *call) {
  const int64_t *v = call->numbers;
  return {v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7],
          pointer<const char>(call, 0), pointer<const char>(call, 1), pointer<const char>(call, 2),
          pointer<const int64_t>(call, 3), pointer<const int64_t>(call, 4), pointer<char>(call, 5)};
}

// 16 V neighbours of y += the sum of `rank` rows of b, each times its factor.
template <int V, class T>
INFOPT_INLINE void add_scaled(const T *b, int64_t stride, const float *factor, int64_t rank, T *y,
                              int64_t lanes) {
  Vec sums[V];
  for (int v = 0; v < V; ++v) sums[v] = zero();
  for (int64_t r = 0; r < rank; ++r) {
    const Vec f = broadcast(factor[r]);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v)
      sums[v] = fma(load_some(b + r * stride + 16 * v, lanes), f, sums[v]);
  }
  for (int v = 0; v < V; ++v)
    store_some(y + 16 * v, load_some(y + 16 * v, lanes) + sums[v], lanes);
}

// Up to 8 rows of one slot. `scratch`: the rows as the product takes them, and x aᵀ.
template <class Along, class T>
void adapt_rows(const AdapterCall &c, int64_t slot, int64_t rank, int64_t row, int64_t rows,
                void *scratch) {
  using X = typename Along::X;
  X *const room = static_cast<X *>(scratch);
  float *const down = reinterpret_cast<float *>(room + kTogether * (round_up(c.k, 32) + 32));
  const int64_t width = round_up(c.room, 16);
  const auto x = convert_rows<X>((const T *)c.x + row * c.x_stride, c.x_stride, rows, c.k, room);
  const T *const a = (const T *)c.a + slot * c.room * c.k;
  for (int64_t r = 0; r < rank; r += 16) {
    Vec sums[kTogether * 16];
    for (Vec &sum : sums) sum = zero();
    dot_tokens<Along>(a + r * c.k, c.k, least(16, rank - r), x.data, x.stride, rows, c.k, sums);
    for (int64_t i = 0; i < rows; ++i) store(down + i * width + r, sums16(sums + i * 16));
  }
  const T *const b = (const T *)c.b + slot * c.room * c.n;
  T *const y = (T *)c.y + row * c.y_stride;
  int64_t n = 0;
  for (; n + 64 <= c.n; n += 64)  // these columns of b stay in the first cache
    for (int64_t i = 0; i < rows; ++i)
      add_scaled<4>(b + n, c.n, down + i * width, rank, y + i * c.y_stride + n, 16);
  for (; n < c.n; n += 16)
    for (int64_t i = 0; i < rows; ++i)
      add_scaled<1>(b + n, c.n, down + i * width, rank, y + i * c.y_stride + n,
                    least(16, c.n - n));
}

template <class Along, class T>
void adapter_linear(const infopt_call *call, int64_t first, int64_t last) {
  const AdapterCall c = read_adapters(call);
  for (int64_t row = first, rows; row < last; row += rows) {
    const int64_t slot = c.slot[row / c.each], most = least(kTogether, last - row);
    for (rows = 1; rows < most && c.slot[(row + rows) / c.each] == slot;) ++rows;
    if (const int64_t rank = c.rank(slot))
      adapt_rows<Along, T>(c, slot, rank, row, rows, call->scratch);
  }
}

}  // namespace infopt
