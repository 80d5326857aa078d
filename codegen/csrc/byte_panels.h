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
// The last: all rows with the one step and zero point that calibration found, values beyond the
// range as its ends, NaN as its lower end.
enum RowRounding : int64_t { kOwnRounding, kSymmetric, kAffine, kAffinePerToken, kStatic };

// Which rounding of which rows; the code of zero and the step are those of kStatic.
struct Rounding {
  RowRounding kind;
  RowCode fixed;
};
INFOPT_INLINE Rounding rounding_of(int64_t kind, float step, int64_t zero) {
  return {RowRounding(kind), {1 / step, step, int32_t(zero)}};
}
// From two numbers of a call: the step, a double, and the zero point.
INFOPT_INLINE Rounding read_rounding(int64_t kind, const int64_t *fixed) {
  if (kind != kStatic) return {RowRounding(kind), {}};
  return rounding_of(kind, float(as_double(fixed[0])), fixed[1]);
}

// Codes of a static range, each in a lane. The order of operands takes NaN for the lower end.
INFOPT_INLINE IVec static_codes(Vec x, Vec inverse, Vec zero_point) {
  const Vec place = max(fma(x, inverse, zero_point), zero());
  return to_int(min(place, broadcast(255.0f)));
}

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
template <class T> inline RowCode row_code(const T *x, int64_t n, const Rounding &how) {
  const RowRounding rounding = how.kind;
  if (rounding == kStatic) return how.fixed;
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
INFOPT_INLINE void store_row_codes(const T *x, int64_t n, const RowCode &row, bool is_static,
                                   uint8_t *to) {
  if (is_static)
    return store_codes(to, static_codes(load_some(x, n), broadcast(row.inverse),
                                        broadcast(float(row.zero))));
  const Vec codes = load_some(x, n) * broadcast(row.inverse);
  store_codes(to, to_int(codes) + ibroadcast(row.zero));
}

// One panel of M rows of K values; x: the panel's first row.
inline void quantize_panel(const Matrix &x, const BytePanels &out, int64_t m, int64_t k,
                           int64_t panel, const Rounding &rounding) {
  const int64_t tokens = least(16, m - panel * 16);
  const bool is_static = rounding.kind == kStatic;
  RowCode rows[16] = {};
  with_row_type(x.format, [&](auto *type) {
    const auto *first = (decltype(type))x.data;
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
          store_row_codes(row + j, n, rows[i], is_static, codes[i] + j);
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

// A panel's steps and zero points where every token has the same.
INFOPT_INLINE void store_fixed(const BytePanels &out, int64_t m, int64_t panel,
                               const RowCode &code) {
  for (int64_t i = 0; i < 16; ++i) {
    const bool exists = panel * 16 + i < m;
    out.steps[panel * 16 + i] = exists ? code.step : 0;
    out.zeros[panel * 16 + i] = exists ? code.zero : 0;
  }
}

// Codes of a static range for 16 features: their places per unit, and the code of zero.
// factors: of the features, or null.
INFOPT_INLINE Vec feature_inverses(const RowCode &code, const float *factors, int64_t feature,
                                   int64_t n) {
  const Vec inverse = broadcast(code.inverse);
  return factors ? load_some(factors + feature, n) * inverse : inverse;
}

// 16 features of 16 tokens, by feature, as codes of a static range; features that do not exist
// are 0 up to a multiple of four.
template <bool whole>
INFOPT_INLINE void store_code_tile(const BytePanels &out, const RowCode &code,
                                   const float *factors, const Place &at, const Vec *t) {
  const Vec zero_point = broadcast(float(code.zero));
  float inverse[16];
  store(inverse, feature_inverses(code, factors, at.feature, whole ? 16 : at.features));
  uint8_t *to = out.codes + at.panel * out.stride + at.feature * 16;
  const IVec tokens = bits(select(first_lanes(whole ? 16 : at.tokens),
                                  float_of_bits(ibroadcast(-1)), zero()));
  INFOPT_UNROLL_TILE
  for (int i = 0; i < 16; i += 4) {
    if (!whole && i >= at.features) break;
    IVec quad = static_codes(t[i], broadcast(inverse[i]), zero_point);
    if (whole || i + 1 < at.features)
      quad = quad | shl<8>(static_codes(t[i + 1], broadcast(inverse[i + 1]), zero_point));
    if (whole || i + 2 < at.features)
      quad = quad | shl<16>(static_codes(t[i + 2], broadcast(inverse[i + 2]), zero_point));
    if (whole || i + 3 < at.features)
      quad = quad | shl<24>(static_codes(t[i + 3], broadcast(inverse[i + 3]), zero_point));
    if (!whole) quad = quad & tokens;
    store((float *)(to + i * 16), float_of_bits(quad));
  }
}

// Up to 16 neighbouring features of one token, from a multiple of four on.
inline void store_token_codes(const BytePanels &out, const RowCode &code, const float *factors,
                              int64_t token, int64_t feature, Vec x, int64_t n) {
  alignas(4) uint8_t codes[16];
  store_codes(codes, static_codes(x, feature_inverses(code, factors, feature, n),
                                   broadcast(float(code.zero))));
  for (int64_t i = n; i < 16; ++i) codes[i] = 0;
  uint8_t *to = out.codes + token / 16 * out.stride + feature * 16 + token % 16 * 4;
  for (int64_t i = 0; i < n; i += 4) memcpy(to + i * 16, codes + i, 4);
}

}  // namespace infopt
