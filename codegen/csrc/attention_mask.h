// Masks, causality, windows and softcap on one block of scores S[key][lanes * 16].
//
// Scores leave here in units of log2: the weights are exp2 of differences.
#pragma once

#include "attention_shape.h"

namespace infopt {

constexpr float kLog2e = 1.4426950408889634f;

INFOPT_INLINE float mask_value(MaskKind kind, const void *mask, int64_t at) {
  float x;
  switch (kind) {
    case kBoolMask: return ((const uint8_t *)mask)[at] ? 0.0f : -INFINITY;
    case kFloatMask: x = ((const float *)mask)[at]; break;
    case kBf16Mask: x = to_float(((const bf16 *)mask)[at]); break;
    default: x = to_float(((const f16 *)mask)[at]); break;
  }
  // The lowest finite float must stay finite: a row of it attends to all keys alike.
  const float scaled = x * kLog2e;
  return scaled < -FLT_MAX && x >= -FLT_MAX ? -FLT_MAX : scaled;
}

// One Vec of 16 neighbouring keys of a mask row (or n of them), in units of log2.
INFOPT_INLINE Vec mask_vec(MaskKind kind, const void *mask, int64_t at, int64_t n) {
  Vec x;
  switch (kind) {
    case kBoolMask:
      return select(mask_bytes((const uint8_t *)mask + at, n), zero(), broadcast(-INFINITY));
    case kFloatMask: x = load((const float *)mask + at, n); break;
    case kBf16Mask: x = load((const bf16 *)mask + at, n); break;
    default: x = load((const f16 *)mask + at, n); break;
  }
  const Vec lowest = broadcast(-FLT_MAX), scaled = x * broadcast(kLog2e);
  return select(lt(scaled, lowest) & le(lowest, x), lowest, scaled);
}

// S = S * unit + mask, with one mask row for all lanes or one per lane.
static void add_mask(const AttentionShape &s, const void *mask, const QueryRows &rows,
                     int64_t lanes, int64_t key0, int64_t keys, Vec unit, float *scores) {
  int64_t at[kTaskRows];
  bool same = true;
  for (int64_t i = 0; i < lanes * 16; ++i) {
    at[i] = rows.batch * s.mask[0] + rows.head[i] * s.mask[1] + rows.token[i] * s.mask[2] +
            key0 * s.mask[3];
    same &= at[i] == at[0];
  }
  if (same) {
    for (int64_t key = 0; key < keys; ++key) {
      const Vec bias = broadcast(mask_value(s.mask_kind, mask, at[0] + key * s.mask[3]));
      for (int64_t l = 0; l < lanes; ++l) {
        float *p = scores + (key * lanes + l) * 16;
        store(p, fma(load(p), unit, bias));
      }
    }
    return;
  }
  for (int64_t l = 0; l < lanes; ++l)
    for (int64_t key = 0; key < keys; key += 16) {
      const int64_t n = least(16, keys - key);
      Vec bias[16];
      if (s.mask[3] == 1) {
        for (int i = 0; i < 16; ++i)
          bias[i] = mask_vec(s.mask_kind, mask, at[l * 16 + i] + key, n);
        transpose16(bias);
      } else {
        float column[16];
        for (int j = 0; j < 16; ++j) {
          for (int i = 0; i < 16; ++i)
            column[i] = j < n ? mask_value(s.mask_kind, mask,
                                           at[l * 16 + i] + (key + j) * s.mask[3]) : 0.0f;
          bias[j] = load(column);
        }
      }
      for (int64_t j = 0; j < n; ++j) {
        float *p = scores + ((key + j) * lanes + l) * 16;
        store(p, fma(load(p), unit, bias[j]));
      }
    }
}

// S = -inf where a row may not see a key. NaN scores of hidden keys vanish, as in torch.
static void hide_keys(const AttentionShape &s, const QueryRows &rows, int64_t lanes,
                      int64_t key0, int64_t keys, float *scores) {
  const Vec hidden = broadcast(-INFINITY), window = broadcast(float(s.window));
  for (int64_t l = 0; l < lanes; ++l) {
    const Vec limit = load(rows.limit + l * 16);
    const Vec before = s.window > 0 ? limit - window : broadcast(-FLT_MAX);
    for (int64_t key = 0; key < keys; ++key) {
      float *p = scores + (key * lanes + l) * 16;
      const Vec at = broadcast(float(key0 + key));
      store(p, select(le(at, limit) & lt(before, at), load(p), hidden));
    }
  }
}

static void cap_scores(const AttentionShape &s, int64_t vectors, float *scores) {
  const Vec inner = broadcast(float(fabs(s.scale) / s.softcap));
  const Vec outer = broadcast(float(s.softcap) * kLog2e);
  for (int64_t i = 0; i < vectors; ++i)
    store(scores + i * 16, tanh(load(scores + i * 16) * inner) * outer);
}

}  // namespace infopt
