// How much attention each key receives: the scores of one head are made again, and never kept.
#pragma once

#include <math.h>

#include "element.h"

namespace infopt {

struct Received {
  int64_t queries, keys, depth, element;
  int64_t q_stride, k_stride;  // of a token
  float scale;
};

// columns[group of 16 keys][feature][16], zeros behind the last key.
inline void key_columns(const Received &s, const void *k, float *columns) {
  memset(columns, 0, size_t(round_up(s.keys, 16) * s.depth) * sizeof(float));
  for (int64_t j = 0; j < s.keys; ++j) {
    const void *row = at(k, s.element, j * s.k_stride);
    float *to = columns + j / 16 * 16 * s.depth + j % 16;
    each_vec(s.depth, [&](int64_t i, int64_t n) {
      float lanes[16];
      store(lanes, load_element(row, s.element, i, n));
      for (int64_t d = 0; d < n; ++d) to[(i + d) * 16] = lanes[d];
    });
  }
}

// received[key] += softmax(scale q kT + bias) of four queries; those past the end are left out.
// row: 4 * depth floats for the queries, scores: 4 * roundup(keys, 16).
inline void four_queries(const Received &s, const void *q, int64_t first, const float *columns,
                         const float *bias, float *row, float *scores, float *received) {
  const int64_t count = least(4, s.queries - first), width = round_up(s.keys, 16);
  for (int64_t t = 0; t < 4; ++t) {
    const void *from = at(q, s.element, (first + least(t, count - 1)) * s.q_stride);
    each_vec(s.depth, [&](int64_t i, int64_t n) {
      store(row + t * s.depth + i, load_element(from, s.element, i, n) * broadcast(s.scale), n);
    });
  }
  Vec most[4] = {broadcast(-INFINITY), broadcast(-INFINITY), broadcast(-INFINITY),
                 broadcast(-INFINITY)};
  for (int64_t j = 0; j < s.keys; j += 16) {
    const float *column = columns + j * s.depth;
    Vec score[4] = {zero(), zero(), zero(), zero()};
    for (int64_t d = 0; d < s.depth; ++d) {
      const Vec key = load(column + d * 16);
      for (int t = 0; t < 4; ++t) score[t] = fma(broadcast(row[t * s.depth + d]), key, score[t]);
    }
    const int64_t n = least(16, s.keys - j);
    for (int t = 0; t < 4; ++t) {
      if (bias) score[t] = score[t] + load(bias + j, n);
      if (n < 16) score[t] = select(first_lanes(n), score[t], broadcast(-INFINITY));
      most[t] = max(most[t], score[t]);
      store(scores + t * width + j, score[t]);
    }
  }
  for (int64_t t = 0; t < count; ++t) {
    const Vec top = broadcast(greatest(most[t]));
    Vec total = zero();
    for (int64_t j = 0; j < width; j += 16) {
      const Vec e = exp(load(scores + t * width + j) - top);
      total = total + e;
      store(scores + t * width + j, e);
    }
    const Vec share = broadcast(1.0f / sum(total));
    for (int64_t j = 0; j < width; j += 16)
      store(received + j, fma(load(scores + t * width + j), share, load(received + j)));
  }
}

}  // namespace infopt
