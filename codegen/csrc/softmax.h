// Softmax and log-softmax along rows, with an optional scale and additive mask, in f32.
#pragma once

#include <math.h>

#include "attention_exp.h"
#include "element.h"

namespace infopt {

struct SoftmaxShape {
  int64_t sizes[3], width;                   // rows are numbered over the three outer sizes
  int64_t x_stride[3], out_stride[3];        // neighbouring columns are neighbours in memory
  int64_t mask_stride[4];                    // outer three and column; 0 where broadcast
  int64_t x_element, mask_element, out_element;  // mask_element may be kBool: true means keep
  bool logarithm;
  float scale;
};

// The mask's values at columns i.. of a row, to be added.
INFOPT_INLINE Vec added_mask(const void *row, int64_t element, int64_t stride, int64_t i,
                             int64_t n) {
  if (element == kBool) {
    const uint8_t *keep = (const uint8_t *)row;
    const Mask m = stride ? mask_bytes(keep + i, n) : first_lanes(*keep ? 16 : 0);
    return select(m, zero(), broadcast(-INFINITY));
  }
  if (stride) return load_element(row, element, i, n);
  float value[16];
  store(value, load_element(row, element, 0, 1));
  return broadcast(value[0]);
}

// The f32 scores of one row: the tensor itself, or `buffer`.
static const float *softmax_scores(const SoftmaxShape &s, const void *x, const void *mask,
                                   float *buffer) {
  if (!mask && s.x_element == kF32 && s.scale == 1.0f) return (const float *)x;
  const Vec scale = broadcast(s.scale);
  each_vec(s.width, [&](int64_t i, int64_t n) {
    Vec y = load_element(x, s.x_element, i, n) * scale;
    if (mask) y = y + added_mask(mask, s.mask_element, s.mask_stride[3], i, n);
    store(buffer + i, y, n);
  });
  return buffer;
}

static void softmax_row(const SoftmaxShape &s, const void *x, const void *mask, void *out,
                        float *buffer) {
  const float *scores = softmax_scores(s, x, mask, buffer);
  const Vec lowest = broadcast(-INFINITY), log2e = broadcast(1.4426950408889634f);
  Vec top0 = lowest, top1 = lowest;
  int64_t i = 0;
  for (; i + 32 <= s.width; i += 32)
    top0 = max(load(scores + i), top0), top1 = max(load(scores + i + 16), top1);
  for (; i < s.width; i += 16) {
    const int64_t n = least(16, s.width - i);
    top0 = max(select(first_lanes(n), load(scores + i, n), lowest), top0);
  }
  const float maximum = greatest(max(top0, top1));  // NaN is passed over here, and found below
  const Vec peak = broadcast(maximum);
  // The weights may overwrite the scores, or the output where it is f32.
  float *weights = s.logarithm ? nullptr : s.out_element == kF32 ? (float *)out : buffer;
  Vec total0 = zero(), total1 = zero();
  for (i = 0; i + 32 <= s.width; i += 32) {
    const Vec a = exp2_weight<true>((load(scores + i) - peak) * log2e);
    const Vec b = exp2_weight<true>((load(scores + i + 16) - peak) * log2e);
    total0 = total0 + a, total1 = total1 + b;
    if (weights) store(weights + i, a), store(weights + i + 16, b);
  }
  for (; i < s.width; i += 16) {
    const int64_t n = least(16, s.width - i);
    const Vec a = exp2_weight<true>((load(scores + i, n) - peak) * log2e);
    total0 = total0 + select(first_lanes(n), a, zero());
    if (weights) store(weights + i, a, n);
  }
  const float total = sum(total0 + total1);
  if (s.logarithm) {
    const Vec log_total = broadcast(float(::log(double(total))));
    each_vec(s.width, [&](int64_t j, int64_t n) {
      store_element(out, s.out_element, j, (load(scores + j, n) - peak) - log_total, n);
    });
    return;
  }
  const Vec factor = broadcast(1.0f / total);
  each_vec(s.width, [&](int64_t j, int64_t n) {
    store_element(out, s.out_element, j, load(weights + j, n) * factor, n);
  });
}

}  // namespace infopt
