// Which tokens go on, and rows of tokens brought together: the parts of kernels_tokens.cpp.
#pragma once

#include <math.h>

#include <algorithm>

#include "element.h"

namespace infopt {

// The positions 0..n-1 by value, greatest first, equal ones in order; no value is NaN.
inline void sort_by_value(const float *value, int32_t *order, int64_t n) {
  for (int64_t i = 0; i < n; ++i) order[i] = int32_t(i);
  std::sort(order, order + n, [&](int32_t a, int32_t b) {
    return value[a] > value[b] || (value[a] == value[b] && a < b);
  });
}

// The rows of one sequence as columns of unit length: unit[group of 16 tokens][feature][16], the
// even positions first, then the odd ones, each rounded up to whole groups.
inline void unit_columns(const void *metric, int64_t element, int64_t tokens, int64_t depth,
                         float *unit) {
  const int64_t odd = round_up((tokens + 1) / 2, 16);
  memset(unit, 0, size_t(2 * odd * depth) * sizeof(float));
  for (int64_t t = 0; t < tokens; ++t) {
    const void *row = at(metric, element, t * depth);
    Vec square = zero();
    each_vec(depth, [&](int64_t i, int64_t n) {
      const Vec v = load_element(row, element, i, n);
      square = fma(v, v, square);
    });
    const float norm = sqrtf(sum(square));
    const float factor = 1.0f / (norm > 1e-12f ? norm : 1e-12f);
    const int64_t column = (t % 2) * odd + t / 2;
    float *to = unit + column / 16 * 16 * depth + column % 16;
    each_vec(depth, [&](int64_t i, int64_t n) {
      float lanes[16];
      store(lanes, load_element(row, element, i, n) * broadcast(factor));
      for (int64_t j = 0; j < n; ++j) to[(i + j) * 16] = lanes[j];
    });
  }
}

// For each token at an even position, its best partner at an odd one and their cosine; neither is
// padding. Tokens without one have -infinity and partner 0.
inline void best_partners(const float *unit, const float *size, int64_t tokens, int64_t depth,
                          float *value, int32_t *partner) {
  const int64_t odd = tokens / 2, base = round_up((tokens + 1) / 2, 16);
  for (int64_t t = 0; t < tokens; ++t) value[t] = -INFINITY, partner[t] = 0;
  for (int64_t j = 0; j < odd; j += 16) {
    const float *column = unit + (base + j) * depth;
    const int64_t lanes = least(16, odd - j);
    for (int64_t t = 0; t < tokens; t += 2) {
      if (size && size[t] == 0) continue;
      const int64_t i = t / 2;
      const float *own = unit + i / 16 * 16 * depth + i % 16;
      Vec score = zero();
      for (int64_t d = 0; d < depth; ++d)
        score = fma(broadcast(own[d * 16]), load(column + d * 16), score);
      float cosine[16];
      store(cosine, score);
      for (int64_t k = 0; k < lanes; ++k) {
        const int64_t other = 2 * (j + k) + 1;
        if (size && size[other] == 0) continue;
        if (cosine[k] > value[t]) value[t] = cosine[k], partner[t] = int32_t(other);
      }
    }
  }
}

// Padding goes before all else, to the place of the first of it, which stays.
inline void gather_padding(const float *size, int64_t tokens, float *value, int32_t *partner) {
  int64_t anchor = -1;
  for (int64_t t = 0; t < tokens; ++t) {
    if (size[t] != 0) continue;
    value[t] = anchor < 0 ? -INFINITY : INFINITY;
    if (anchor < 0) anchor = t;
    partner[t] = int32_t(anchor);
  }
}

// The weighted mean of columns [begin, begin + n) of the rows that come to each place.
inline void merge_columns(const void *x, int64_t element, const int64_t *place, const float *size,
                          int64_t tokens, int64_t width, int64_t keep, int64_t begin, int64_t n,
                          int64_t columns, float *sums, float *total, void *out) {
  memset(sums, 0, size_t(keep * columns) * sizeof(float));
  memset(total, 0, size_t(keep) * sizeof(float));
  for (int64_t t = 0; t < tokens; ++t)
    if (place[t] >= 0) total[place[t]] += size ? size[t] : 1.0f;
  for (int64_t p = 0; p < keep; ++p) total[p] = total[p] == 0 ? -0.0f : total[p];
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t p = place[t];
    if (p < 0) continue;
    const bool alike = total[p] <= 0;  // of padding only: minus the number of rows so far
    const float weight = alike ? 1.0f : size ? size[t] : 1.0f;
    if (alike) total[p] -= 1.0f;
    const void *row = at(x, element, t * width + begin);
    float *to = sums + p * columns;
    each_vec(n, [&](int64_t i, int64_t lanes) {
      store(to + i, fma(load_element(row, element, i, lanes), broadcast(weight), load(to + i)));
    });
  }
  for (int64_t p = 0; p < keep; ++p) {
    const Vec divisor = broadcast(fabsf(total[p]));
    void *to = at(out, element, p * width + begin);
    each_vec(n, [&](int64_t i, int64_t lanes) {
      store_element(to, element, i, load(sums + p * columns + i) / divisor, lanes);
    });
  }
}

}  // namespace infopt
