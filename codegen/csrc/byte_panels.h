// Rows of activations as unsigned bytes in token panels, each row with its own step and zero point:
//
//   xp[P][ceil(K/4)][16][4]   xp[p][j][i][s] = code of x[16p+i][4j+s]   (0 where 4j+s >= K)
//   steps[P * 16] f32, zeros[P * 16] int32        x is about steps * (code - zero)
//
// one after the other in one block of memory. A row's range always contains 0, whose code is the
// zero point: padding and ReLU are exact. A row with NaN or an infinity gets the step NaN.
#pragma once

#include "microkernel.h"
#include "panels.h"

namespace infopt {

struct BytePanels {
  uint8_t *codes;
  int64_t stride;  // bytes of a panel
  float *steps;
  int32_t *zeros;
};

INFOPT_INLINE BytePanels byte_panels(void *memory, int64_t m, int64_t k) {
  const int64_t panels = ceil_div(m, 16), stride = ceil_div(k, 4) * 64;
  uint8_t *codes = (uint8_t *)memory;
  float *steps = (float *)(codes + panels * stride);
  return {codes, stride, steps, (int32_t *)(steps + panels * 16)};
}

// Rows of less are rows of zeros: the factor that makes codes of them would overflow.
constexpr float kLeastWidth = 1e-35f;

struct RowCode {
  float inverse, step;
  int32_t zero;
};

// How rows are rounded; but for the first as torchao does it (compiler/integer_weight.py), to the
// bit: every result is rounded to the type of x where it rounds it.
enum RowRounding : int64_t { kOwnRounding, kSymmetric, kAffine, kAffinePerToken };

template <class T>
inline RowCode torchao_row_code(float low, float high, RowRounding rounding) {
  const auto in_type = [](float v) { return to_float(from_float<T>(v)); };
  const bool symmetric = rounding == kSymmetric;
  const float range = symmetric ? (-low > high ? -low : high) : in_type(high - low);
  const float quotient = in_type(range / (symmetric ? 127.5f : 255.0f));
  const float lowest = rounding == kAffinePerToken ? 0x1p-126f : 0x1p-23f;
  const float step = quotient > lowest ? quotient : lowest;
  const float zero = symmetric ? 128.0f : -__builtin_nearbyintf(in_type(low / step));
  return {1 / step, step, int32_t(zero < 255 ? zero : 255)};
}

// Step and zero point of n values.
template <class T> inline RowCode row_code(const T *x, int64_t n, RowRounding rounding) {
  constexpr int kChains = kRegisters >= 16 ? 4 : 1;
  Vec low[kChains], high[kChains], poison[kChains];
  for (int c = 0; c < kChains; ++c) low[c] = high[c] = poison[c] = zero();
  auto take = [&](int c, Vec v) __attribute__((always_inline)) {
    low[c] = min(v, low[c]), high[c] = max(v, high[c]);
    poison[c] = fma(v, zero(), poison[c]);  // NaN for NaN and infinities, else 0
  };
  int64_t i = 0;
  for (; i + 16 * kChains <= n; i += 16 * kChains)
    for (int c = 0; c < kChains; ++c) take(c, load(x + i + c * 16));
  for (; i + 16 <= n; i += 16) take(0, load(x + i));
  if (i < n) take(0, load(x + i, n - i));
  for (int c = 1; c < kChains; ++c) {
    low[0] = min(low[0], low[c]), high[0] = max(high[0], high[c]);
    poison[0] = poison[0] + poison[c];
  }
  const float least_value = least(low[0]), width = greatest(high[0]) - least_value;
  const float bad = sum(poison[0]);
  if (rounding != kOwnRounding && bad == 0)
    return torchao_row_code<T>(least_value, greatest(high[0]), rounding);
  if (bad != 0 || !(width > kLeastWidth)) return {0, bad, 0};
  const float inverse = 255 / width;
  return {inverse, width / 255, int32_t(__builtin_nearbyintf(-least_value * inverse))};
}

template <class T>
INFOPT_INLINE void store_row_codes(const T *x, int64_t n, const RowCode &row, uint8_t *to) {
  const Vec codes = load_some(x, n) * broadcast(row.inverse);
  store_codes(to, to_int(codes) + ibroadcast(row.zero));
}

// One panel of x[M][K].
inline void quantize_panel(const Matrix &x, const BytePanels &out, int64_t m, int64_t k,
                           int64_t panel, RowRounding rounding) {
  const int64_t tokens = least(16, m - panel * 16);
  RowCode rows[16] = {};
  with_row_type(x.format, [&](auto *type) {
    const auto *first = (decltype(type))x.data + panel * 16 * x.stride;
    for (int64_t i = 0; i < tokens; ++i) rows[i] = row_code(first + i * x.stride, k, rounding);
    for (int64_t i = 0; i < 16; ++i) {
      out.steps[panel * 16 + i] = rows[i].step;
      out.zeros[panel * 16 + i] = rows[i].zero;
    }
    uint8_t *to = out.codes + panel * out.stride;
    for (int64_t column = 0; column < k; column += 64) {
      alignas(64) uint8_t codes[16][64] = {};
      const int64_t width = least(64, k - column);
      for (int64_t i = 0; i < tokens; ++i) {
        const auto *row = first + i * x.stride + column;
        for (int64_t j = 0; j < width; j += 16) {
          const int64_t n = least(16, width - j);
          store_row_codes(row + j, n, rows[i], codes[i] + j);
          for (int64_t rest = n; rest < 16; ++rest) codes[i][j + rest] = 0;
        }
      }
      Vec words[16];
      for (int i = 0; i < 16; ++i) words[i] = load((const float *)codes[i]);
      transpose16(words);
      const int64_t quads = ceil_div(width, 4);
      for (int64_t j = 0; j < quads; ++j)
        store((float *)(to + (column / 4 + j) * 64), words[j]);
    }
  });
}

}  // namespace infopt
