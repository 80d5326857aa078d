// Rotary position embedding: pairs of features turned by a token's angles.
//
//   halves       pair (i, i + r/2) of the first r features:   y = x * cos + rotate_half(x) * sin
//   interleaved  pair (2i, 2i + 1)
//
// Features from r on are copied. The tables hold r columns (one per feature) or r/2 (one per pair).
#pragma once

#include "element.h"

namespace infopt {

struct RotaryShape {
  int64_t batches, tokens, depth, rotated;
  bool interleaved, per_pair;     // per_pair: the tables have rotated / 2 columns
  int64_t table[2];               // strides of batch (0: broadcast) and token, of both tables
  int64_t element, table_element;
};

struct RotaryHeads {
  int64_t heads, from[3], to[3];  // element strides of batch, head, token
};

// One token's angles as f32, one value per feature: [rotated] each, the sine with its sign.
static void load_angles(const RotaryShape &s, const void *cos, const void *sin, float *c,
                        float *n) {
  const int64_t half = s.rotated / 2, columns = s.per_pair ? half : s.rotated;
  each_vec(columns, [&](int64_t i, int64_t count) {
    store(c + i, load_element(cos, s.table_element, i, count), count);
    store(n + i, load_element(sin, s.table_element, i, count), count);
  });
  if (s.per_pair && s.interleaved) {
    for (int64_t i = half; i-- > 0;) {
      c[2 * i + 1] = c[2 * i] = c[i];
      n[2 * i + 1] = n[2 * i] = n[i];
    }
  } else if (s.per_pair) {
    memcpy(c + half, c, size_t(half) * sizeof(float));
    memcpy(n + half, n, size_t(half) * sizeof(float));
  }
  if (s.interleaved) for (int64_t i = 0; i < s.rotated; i += 2) n[i] = -n[i];
  else for (int64_t i = 0; i < half; ++i) n[i] = -n[i];
}

static void rotate_row(const RotaryShape &s, const float *c, const float *n, const void *from,
                       void *to) {
  const int64_t half = s.rotated / 2;
  if (s.interleaved) {
    for (int64_t i = 0; i < s.rotated; i += 16) {
      const int64_t count = least(16, s.rotated - i);
      float x[16], turned[16];
      store(x, load_element(from, s.element, i, count));
      for (int j = 0; j < 16; ++j) turned[j] = x[j ^ 1];
      store_element(to, s.element, i,
                    fma(load(turned), load(n + i, count), load(x) * load(c + i, count)), count);
    }
  } else {
    each_vec(half, [&](int64_t i, int64_t count) {
      const Vec a = load_element(from, s.element, i, count);
      const Vec b = load_element(from, s.element, half + i, count);
      store_element(to, s.element, i, fma(b, load(n + i, count), a * load(c + i, count)), count);
      store_element(to, s.element, half + i,
                    fma(a, load(n + half + i, count), b * load(c + half + i, count)), count);
    });
  }
  if (from != to && s.depth > s.rotated)
    memcpy(at(to, s.element, s.rotated), at(from, s.element, s.rotated),
           size_t((s.depth - s.rotated) * element_bytes(s.element)));
}

// All heads of one token of one tensor.
static void rotate_heads(const RotaryShape &s, const RotaryHeads &h, int64_t batch, int64_t token,
                         const float *c, const float *n, const void *x, void *y) {
  for (int64_t head = 0; head < h.heads; ++head)
    rotate_row(s, c, n,
               at(x, s.element, batch * h.from[0] + head * h.from[1] + token * h.from[2]),
               at(y, s.element, batch * h.to[0] + head * h.to[1] + token * h.to[2]));
}

}  // namespace infopt
