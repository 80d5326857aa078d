// Linear layers for few tokens (decoding): y = epilogue(x wᵀ), x row-major, lanes along K.
//
// Every weight row is read once, as it streams from memory; up to 8 tokens share the read. Sums
// of 16 features are folded together, so that the epilogue has one Vec per token.
#pragma once

#include "linear.h"
#include "vec_parts.h"

namespace infopt {

// One step along k: 16 values widened to f32, or 32 bf16 through the dot instruction.
template <class W> struct AlongF32 {
  using X = float;
  static constexpr int kStep = 16, kParts = infopt::kParts;
  static INFOPT_INLINE Vec weights(const W *p, int64_t n) { return load_some(p, n); }
  static INFOPT_INLINE Vec tokens(const float *p, int64_t n) { return load_some(p, n); }
  template <class F> static INFOPT_INLINE F add(F acc, F w, F x) { return fma(w, x, acc); }
};

struct AlongBf16 {
  using X = bf16;
  static constexpr int kStep = 32, kParts = 1;
  static INFOPT_INLINE BVec weights(const bf16 *p, int64_t n) {
    if (n == kStep) return load_pairs(p);
    bf16 padded[32] = {};
    memcpy(padded, p, size_t(n) * sizeof(bf16));
    return load_pairs(padded);
  }
  static INFOPT_INLINE BVec tokens(const bf16 *p, int64_t n) { return weights(p, n); }
  static INFOPT_INLINE Vec add(Vec acc, BVec w, BVec x) { return dot_pairs(acc, w, x); }
};

// R weight rows times M tokens; sums[m * 16 + r] (+)= the lanes of P, still to be folded.
// `upcoming` is for parts: whole Vecs fetch the next R rows.
template <class Along, class P, class W, int R, int M>
__attribute__((noinline)) void dot_rows(const W *w, int64_t w_stride, const typename Along::X *x,
                                        int64_t x_stride, int64_t k, bool accumulate, Vec *sums,
                                        [[maybe_unused]] Upcoming upcoming) {
  typename P::F acc[R][M];
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) acc[r][m] = P::of(accumulate ? sums[m * 16 + r] : zero());
  auto step = [&](int64_t i, int64_t n) __attribute__((always_inline)) {
    decltype(P::of(Along::weights(w, n))) rows[R];
    if constexpr (!P::kWhole) upcoming.fetch();
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      if constexpr (P::kWhole)
        __builtin_prefetch((const char *)(w + (r + R) * w_stride + i), 0, 2);
      rows[r] = P::of(Along::weights(w + r * w_stride + i, n));
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const auto token = P::of(Along::tokens(x + m * x_stride + i, n));
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) acc[r][m] = Along::add(acc[r][m], rows[r], token);
    }
  };
  int64_t i = 0;
  for (; i + Along::kStep <= k; i += Along::kStep) step(i, Along::kStep);
  if (i < k) step(i, k - i);
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) P::put(sums[m * 16 + r], acc[r][m]);
}

// R weight rows times M tokens, all lanes.
template <class Along, bool in_parts, class W, int R, int M>
INFOPT_INLINE void dot_lanes(const W *w, int64_t w_stride, const typename Along::X *x,
                             int64_t x_stride, int64_t k, bool accumulate, Vec *sums,
                             Upcoming &upcoming) {
  const auto part = [&](auto which) __attribute__((always_inline)) {
    dot_rows<Along, decltype(which), W, R, M>(w, w_stride, x, x_stride, k, accumulate, sums,
                                              upcoming);
    upcoming.at += ceil_div(k, Along::kStep) * upcoming.step;
  };
  if constexpr (in_parts) part(Part<0>()), part(Part<1>());
  else part(Whole());
}

// `features` <= 16 rows of w times M rows of x, with K cut so that x stays in the first cache.
template <class Along, bool in_parts, class W, int M>
void dot_features(const W *w, int64_t w_stride, int64_t features, const typename Along::X *x,
                  int64_t x_stride, int64_t k, Vec *sums, Upcoming &upcoming) {
  constexpr int registers = in_parts ? Part<0>::kRegisters : kRegisters;
  constexpr auto fits = [](int rows) { return rows * M + rows + 1 <= registers; };
  constexpr int R = fits(8) ? 8 : fits(4) ? 4 : fits(2) ? 2 : 1;
  constexpr int64_t kBytes = 24576;
  const int64_t whole = M == 1 ? k : kBytes / int64_t(M * sizeof(typename Along::X)) / 32 * 32;
  for (int64_t from = 0; from < k; from += whole) {
    const int64_t depth = least(whole, k - from);
    int64_t r = 0;
    for (; r + R <= features; r += R)
      dot_lanes<Along, in_parts, W, R, M>(w + r * w_stride + from, w_stride, x + from, x_stride,
                                          depth, from > 0, sums + r, upcoming);
    for (; r < features; ++r)
      dot_lanes<Along, in_parts, W, 1, M>(w + r * w_stride + from, w_stride, x + from, x_stride,
                                          depth, from > 0, sums + r, upcoming);
  }
}

template <class Along, class W>
void dot_tokens(const W *w, int64_t w_stride, int64_t features, const typename Along::X *x,
                int64_t x_stride, int64_t tokens, int64_t k, Vec *sums) {
  // 8 steps along k for two rows of 16, in two parts, twice; the next features come in meanwhile
  Upcoming upcoming(w + features * w_stride, features * w_stride * int64_t(sizeof(W)),
                    ceil_div(k, Along::kStep) * 8 * 2 * 2);
#define INFOPT_TOKENS(M) \
  case M:                \
    return dot_features<Along, false, W, M>(w, w_stride, features, x, x_stride, k, sums, upcoming);
  switch (tokens) {
    INFOPT_TOKENS(1) INFOPT_TOKENS(2) INFOPT_TOKENS(3) INFOPT_TOKENS(4)
    INFOPT_TOKENS(5) INFOPT_TOKENS(6) INFOPT_TOKENS(7)
    default: break;
  }
  if constexpr (Along::kParts == 1) {
    switch (tokens) { INFOPT_TOKENS(8) }
  } else {  // sums of eight tokens and one row do not fit; of four and two rows, in parts, they do
    for (int64_t m = 0; m < 8; m += 4)
      dot_features<Along, true, W, 4>(w, w_stride, features, x + m * x_stride, x_stride, k,
                                      sums + m * 16, upcoming);
  }
#undef INFOPT_TOKENS
}

// x in the type the dot product wants: where it lies, or converted into scratch once per call.
template <class X> INFOPT_INLINE Rows<X> tokens_as(const Matrix &x, int64_t m, int64_t k, X *to) {
  Rows<X> rows = {nullptr, 0};
  with_row_type(x.format, [&](auto *type) {
    rows = convert_rows<X>((decltype(type))x.data, x.stride, m, k, to);
  });
  return rows;
}

// Weight rows n0 to n1 times all rows of x.
template <class Along, class W>
void few_rows_task(const LinearCall &c, const Rows<typename Along::X> &x, int64_t n0, int64_t n1) {
  for (int64_t n = n0; n < n1; n += 16) {
    const int64_t features = least(16, n1 - n);
    for (int64_t m = 0; m < c.m; m += 8) {
      const int64_t tokens = least(8, c.m - m);
      Vec sums[8 * 16], up_sums[8 * 16];
      if (features < 16)
        for (int i = 0; i < 8 * 16; ++i) sums[i] = up_sums[i] = zero();
      const auto *rows = x.data + m * x.stride;
      dot_tokens<Along>((const W *)c.w + n * c.row_stride, c.row_stride, features, rows, x.stride,
                        tokens, c.k, sums);
      if (c.up)
        dot_tokens<Along>((const W *)c.up + n * c.row_stride, c.row_stride, features, rows,
                          x.stride, tokens, c.k, up_sums);
      for (int64_t i = 0; i < tokens; ++i) {
        const Vec up = c.up ? sums16(up_sums + i * 16) : zero();
        finish_row(c.epilogue, sums16(sums + i * 16), c.up ? &up : nullptr, m + i, n, features);
      }
    }
  }
}

template <class Along, class W>
void few_rows(const infopt_call *call, int64_t first, int64_t last) {
  const LinearCall c = read_linear(call);
  const Matrix x_in_memory = {call->pointers[0], c.x_stride, call->numbers[15]};
  const auto x = tokens_as(x_in_memory, c.m, c.k, (typename Along::X *)call->scratch);
  for (int64_t task = first; task < last; ++task)
    few_rows_task<Along, W>(c, x, task * c.n_chunk, least(c.n, (task + 1) * c.n_chunk));
}

}  // namespace infopt
