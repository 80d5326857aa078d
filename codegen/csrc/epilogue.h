// What follows a matrix product while it is still in cache: bias, activation, multiply, add, cast.
//
//   y = act(c + bias) [* (up + up_bias)] [* multiplier] [+ residual]        all in f32
#pragma once

#include "byte_panels.h"

namespace infopt {

enum Activation : int64_t {
  kIdentity = 0, kRelu = 1, kGelu = 2, kGeluTanh = 3, kSilu = 4, kQuickGelu = 5, kSigmoid = 6,
  kTanh = 7, kRelu6 = 8, kHardSwish = 9
};

__attribute__((noinline)) inline void activate(int64_t kind, Vec *t, int64_t count) {
#define INFOPT_ACTIVATE(code, function)                                \
  case code:                                                           \
    for (int64_t i = 0; i < count; ++i) t[i] = function(t[i]);         \
    break;
  switch (kind) {
    INFOPT_ACTIVATE(kRelu, relu)
    INFOPT_ACTIVATE(kGelu, gelu)
    INFOPT_ACTIVATE(kGeluTanh, gelu_tanh)
    INFOPT_ACTIVATE(kSilu, silu)
    INFOPT_ACTIVATE(kQuickGelu, quick_gelu)
    INFOPT_ACTIVATE(kSigmoid, sigmoid)
    INFOPT_ACTIVATE(kTanh, tanh)
    INFOPT_ACTIVATE(kRelu6, relu6)
    INFOPT_ACTIVATE(kHardSwish, hard_swish)
    default: break;
  }
#undef INFOPT_ACTIVATE
}

// What makes products of bytes numbers: (product - zero of the token * sum of the weight's integers)
// * step of the token * scale of the feature. The sums are whole numbers below 2^24.
// Without scales the products are numbers already, and so are the sums: those of the weight.
struct Integers {
  const float *steps = nullptr;
  const int32_t *zeros = nullptr;
  const float *scales[2] = {}, *sums[2] = {};  // of w and up
};

// Results as bytes of a static range (y's format is kPanelBytes).
struct ByteResult {
  BytePanels panels = {};
  RowCode code = {};
  const float *factors = nullptr;  // of the features, before they are rounded
  float coarse_gelu_below = 0;  // factors for which gelu's error is below an eighth of a step

  INFOPT_INLINE bool coarse_gelu(const Place &at) const {
    if (!(coarse_gelu_below > 0)) return false;
    const Vec given = factors ? load_some(factors + at.feature, at.features) : broadcast(1);
    return !any(le(broadcast(coarse_gelu_below), given));
  }
};

struct Epilogue {
  Matrix bias, up_bias;  // one row of N values, row formats
  int64_t activation;
  Matrix multiplier, residual, y;
  Integers integers;
  ByteResult bytes;
};

// 16 features of 16 tokens as the product left them, in f32.
template <bool whole>
INFOPT_INLINE void load_products(const Epilogue &e, int which, const float *c, const Place &at,
                                 Vec *t) {
  INFOPT_UNROLL_TILE
  for (int i = 0; i < 16; ++i) t[i] = load(c + i * 16);
  const Integers &n = e.integers;
  if (!n.steps) return;
  const Vec step = load(n.steps + at.panel * 16);
  const IVec zero_point = load_ints(n.zeros + at.panel * 16);
  if (!n.scales[which]) {
    const Vec zeros = to_float(zero_point);
    INFOPT_UNROLL_TILE
    for (int i = 0; i < 16; ++i)
      if (whole || i < at.features)
        t[i] = fnma(zeros, broadcast(n.sums[which][at.feature + i]), t[i]) * step;
    return;
  }
  const float *scales = n.scales[which] + at.feature;
  int32_t sums[16];
  store((float *)sums, float_of_bits(to_int(load_some(n.sums[which] + at.feature, at.features))));
  INFOPT_UNROLL_TILE
  for (int i = 0; i < 16; ++i) {
    if (!whole && i >= at.features) break;
    const IVec exact = bits(t[i]) - mul(zero_point, ibroadcast(sums[i]));
    t[i] = to_float(exact) * (step * broadcast(scales[i]));
  }
}

template <bool by_token>
INFOPT_INLINE void add_bias(const Matrix &bias, const Place &at, Vec *t) {
  const Vec b = load_row(bias, 0, at.feature, at.features);
  float lanes[16];
  if (!by_token) store(lanes, b);
  INFOPT_UNROLL_TILE
  for (int i = 0; i < 16; ++i) t[i] = t[i] + (by_token ? b : broadcast(lanes[i]));
}

// c (and up, or null): [16 features][16 tokens] f32. The tile is brought into y's own order first
// (by token for row-major), and stays in registers unless there is an activation.
template <bool by_token, bool whole>
void finish_tile(const Epilogue &e, const float *c, const float *up, const Place &at) {
  Vec t[16], other[16];
  load_products<whole>(e, 0, c, at, t);
  if (by_token) transpose16(t);
  if (e.bias.present()) add_bias<by_token>(e.bias, at, t);
  if (!by_token && e.bytes.coarse_gelu(at)) {
  INFOPT_UNROLL_TILE
    for (int i = 0; i < 16; ++i) t[i] = coarse_gelu(t[i]);
  } else if (e.activation != kIdentity) {
    activate(e.activation, t, by_token ? at.tokens : at.features);
  }
  if (up) {
    load_products<whole>(e, 1, up, at, other);
    if (by_token) transpose16(other);
    if (e.up_bias.present()) add_bias<by_token>(e.up_bias, at, other);
  INFOPT_UNROLL_TILE
    for (int i = 0; i < 16; ++i) t[i] = t[i] * other[i];
  }
  if (e.multiplier.present()) {
    load_tile<whole>(e.multiplier, at, by_token, other);
  INFOPT_UNROLL_TILE
    for (int i = 0; i < 16; ++i) t[i] = t[i] * other[i];
  }
  if (e.residual.present()) {
    load_tile<whole>(e.residual, at, by_token, other);
  INFOPT_UNROLL_TILE
    for (int i = 0; i < 16; ++i) t[i] = t[i] + other[i];
  }
  if (!by_token && e.y.format == kPanelBytes)
    store_code_tile<whole>(e.bytes.panels, e.bytes.code, e.bytes.factors, at, t);
  else
    store_tile<whole>(e.y, at, t);
}
inline void finish_tile(const Epilogue &e, const float *c, const float *up, const Place &at) {
#ifdef INFOPT_SCALAR
  constexpr bool whole = false;  // not worth the compile time
#else
  const bool whole = at.tokens == 16 && at.features == 16;
#endif
  if (e.y.in_panels()) {
    whole ? finish_tile<false, true>(e, c, up, at) : finish_tile<false, false>(e, c, up, at);
  } else {
    whole ? finish_tile<true, true>(e, c, up, at) : finish_tile<true, false>(e, c, up, at);
  }
}

// 16 features of one token; every operand row-major. For products that run along k.
inline void finish_row(const Epilogue &e, Vec c, const Vec *up, int64_t token, int64_t feature,
                       int64_t n) {
  if (e.bias.present()) c = c + load_row(e.bias, 0, feature, n);
  if (e.bytes.coarse_gelu({token / 16, feature, 1, n})) c = coarse_gelu(c);
  else if (e.activation != kIdentity) activate(e.activation, &c, 1);
  if (up) {
    Vec u = *up;
    if (e.up_bias.present()) u = u + load_row(e.up_bias, 0, feature, n);
    c = c * u;
  }
  if (e.multiplier.present()) c = c * load_row(e.multiplier, token, feature, n);
  if (e.residual.present()) c = c + load_row(e.residual, token, feature, n);
  if (e.y.format == kPanelBytes)
    return store_token_codes(e.bytes.panels, e.bytes.code, e.bytes.factors, token, feature, c, n);
  with_row_type(e.y.format, [&](auto *type) {
    store_some((decltype(type))e.y.data + token * e.y.stride + feature, c, n);
  });
}

}  // namespace infopt
