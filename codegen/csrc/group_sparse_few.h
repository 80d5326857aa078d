// Linear layers of weights kept in groups, for few tokens: y = epilogue(x wᵀ), x row-major. Lanes are
// the 8 rows of a block for two groups at a time, so values are read as they lie, each once.
#pragma once

#include <type_traits>

#include "few_rows.h"
#include "group_sparse.h"

namespace infopt {

// 8 lanes of the 32-bit word at `low`, then 8 of that at `high`.
template <class V> INFOPT_INLINE V halves(const void *low, const void *high) {
  int32_t a, b;
  memcpy(&a, low, sizeof a), memcpy(&b, high, sizeof b);
  V found;
#if defined(INFOPT_AVX512)
  const __m512i words = _mm512_mask_set1_epi32(_mm512_set1_epi32(a), 0xff00, b);
#elif defined(INFOPT_AVX2)
  const __m256i words[2] = {_mm256_set1_epi32(a), _mm256_set1_epi32(b)};
#else
  int32_t words[16];
  for (int i = 0; i < 16; ++i) words[i] = i < 8 ? a : b;
#endif
  static_assert(sizeof words == sizeof found, "16 words are a vector");
  memcpy(&found, &words, sizeof found);
  return found;
}

// What two groups add to 8 results, still in halves. W: the values' type; X: that of tokens.
template <class W> struct AcrossF32 {
  using X = float;
  static constexpr int kWidth = 1;
  struct Values { Vec v; };
  static INFOPT_INLINE Values values(const W *p) { return {load(p)}; }
  static INFOPT_INLINE Vec add(Vec acc, Values w, const X *low, const X *high) {
    return fma(w.v, halves<Vec>(low, high), acc);
  }
};
struct AcrossBf16 {
  using X = bf16;
  static constexpr int kWidth = 2;
  struct Values { BVec v; };
  static INFOPT_INLINE Values values(const bf16 *p) { return {load_pairs(p)}; }
  static INFOPT_INLINE Vec add(Vec acc, Values w, const X *low, const X *high) {
    return dot_pairs(acc, w.v, halves<BVec>(low, high));
  }
};

// sums[m * 16 + r]: a block's `count` groups times M tokens, r < 8.
template <class Across, class W, int M>
__attribute__((noinline)) void dot_groups(const W *values, const int32_t *columns, int64_t count,
                                          const typename Across::X *x, int64_t x_stride,
                                          float *sums) {
  constexpr int kWidth = Across::kWidth, kSize = kGroupRows * kWidth;
  constexpr int64_t kAhead = 2048;  // bytes of values
  constexpr int kChains = kRegisters >= 32 ? 2 : 1;  // an addition waits for the one before it
  Vec acc[kChains][M];
  for (int i = 0; i < kChains; ++i)
    for (int m = 0; m < M; ++m) acc[i][m] = zero();
  auto step = [&](int chain, const W *at, int64_t low, int64_t high) __attribute__((always_inline)) {
    const typename Across::Values pair = Across::values(at);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m)
      acc[chain][m] = Across::add(acc[chain][m], pair, x + m * x_stride + low * kWidth,
                                  x + m * x_stride + high * kWidth);
  };
  int64_t j = 0;
  for (; j + 2 * kChains <= count; j += 2 * kChains) {
    // those of the next block too, or memory would rest between blocks
    for (size_t b = 0; b < 2 * kChains * kSize * sizeof(W); b += 64)
      __builtin_prefetch((const char *)(values + j * kSize) + kAhead + b, 0, 2);
#pragma GCC unroll 2
    for (int i = 0; i < kChains; ++i)
      step(i, values + (j + 2 * i) * kSize, columns[j + 2 * i], columns[j + 2 * i + 1]);
  }
  for (; j + 2 <= count; j += 2) step(0, values + j * kSize, columns[j], columns[j + 1]);
  if (j < count) {
    W last[2 * kSize] = {};  // never read past the values
    memcpy(last, values + j * kSize, kSize * sizeof(W));
    step(0, last, columns[j], columns[j]);
  }
  for (int m = 0; m < M; ++m) {
    float lanes[16];
    store(lanes, kChains == 2 ? acc[0][m] + acc[kChains - 1][m] : acc[0][m]);
    for (int r = 0; r < 8; ++r) sums[m * 16 + r] = lanes[r] + lanes[r + 8];
  }
}

template <class Across, class W>
void few_groups(const infopt_call *call, int64_t first, int64_t last) {
  using X = typename Across::X;
  constexpr int64_t kSize = kGroupRows * Across::kWidth;
  const LinearCall c = read_linear(call);
  const int32_t *columns = pointer<const int32_t>(call, 8);
  const int64_t kept = c.row_stride, x_stride = round_up(c.k, 32) + 32;
  X *const x = (X *)call->scratch;  // a pair may reach beyond a row: what follows is 0
  with_row_type(call->numbers[15], [&](auto *type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t m = 0; m < c.m; ++m) {
      const T *row = (const T *)c.x + m * c.x_stride;
      X *to = x + m * x_stride;
      if constexpr (std::is_same_v<T, X>) memcpy(to, row, size_t(c.k) * sizeof(X));
      else if constexpr (std::is_same_v<X, float>) convert_rows<X>(row, 0, 1, c.k, to);
      memset(to + c.k, 0, 32 * sizeof(X));
    }
  });
  for (int64_t task = first; task < last; ++task)
    for (int64_t n = task * c.n_chunk, n1 = least(c.n, n + c.n_chunk); n < n1; n += 16) {
      const int64_t features = least(16, n1 - n);
      for (int64_t m = 0; m < c.m; m += 4) {
        const int64_t tokens = least(4, c.m - m);
        float sums[4 * 16] = {};
        for (int64_t b = 0; b < ceil_div(features, kGroupRows); ++b) {
          const int64_t group = (n / kGroupRows + b) * kept;
          const W *values = (const W *)c.w + group * kSize;
          const X *rows = x + m * x_stride;
          float *to = sums + b * kGroupRows;
#define INFOPT_TOKENS(M)                                                                        \
  case M:                                                                                       \
    dot_groups<Across, W, M>(values, columns + group, kept, rows, x_stride, to);                \
    break;
          switch (tokens) { INFOPT_TOKENS(1) INFOPT_TOKENS(2) INFOPT_TOKENS(3) INFOPT_TOKENS(4) }
#undef INFOPT_TOKENS
        }
        for (int64_t i = 0; i < tokens; ++i)
          finish_row(c.epilogue, load(sums + i * 16), nullptr, m + i, n, features);
      }
    }
}

}  // namespace infopt
