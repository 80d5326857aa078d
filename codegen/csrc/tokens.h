// Which tokens go on, and rows of tokens brought together: the parts of kernels_tokens.cpp.
#pragma once

#include <math.h>

#include <algorithm>

#include "few_rows.h"

namespace infopt {

// The positions 0..n-1 with the `count` greatest values first, in any order; of equal values those
// of lower positions. No value is NaN.
inline void greatest_first(const float *value, int32_t *order, int64_t n, int64_t count) {
  for (int64_t i = 0; i < n; ++i) order[i] = int32_t(i);
  if (count >= n) return;
  std::nth_element(order, order + count, order + n, [&](int32_t a, int32_t b) {
    return value[a] > value[b] || (value[a] == value[b] && a < b);
  });
}

// 1 / length of a row
template <class T> INFOPT_INLINE float unit_factor(const T *row, int64_t depth) {
  Vec square = zero(), other = zero();
  int64_t i = 0;
  for (; i + 32 <= depth; i += 32) {
    const Vec a = load(row + i), b = load(row + i + 16);
    square = fma(a, a, square), other = fma(b, b, other);
  }
  for (; i < depth; i += 16) {
    const Vec a = load_some(row + i, least(16, depth - i));
    square = fma(a, a, square);
  }
  const float length = sqrtf(sum(square + other));
  return 1.0f / (length > 1e-12f ? length : 1e-12f);
}

// The tokens at even positions 2 * [begin, end) of one sequence: each one's best partner at an odd
// position and their cosine; neither is padding. Without one, -infinity and partner 0. Four rows
// meet 16 at a time.
//   scratch  roundup(T / 2, 16) + 4 * D floats
template <class T>
void best_partners(const T *metric, const float *size, int64_t tokens, int64_t depth,
                   int64_t begin, int64_t end, float *scratch, float *value, int32_t *partner) {
  const int64_t odd = tokens / 2;
  float *factor = scratch, *unit = scratch + round_up(odd, 16);
  for (int64_t j = 0; j < odd; ++j) factor[j] = unit_factor(metric + (2 * j + 1) * depth, depth);
  for (int64_t i = begin; i < end; i += 4) {
    const int64_t count = least(4, end - i);
    for (int64_t t = 0; t < 4; ++t) {  // the last row again in the place of missing ones
      const T *row = metric + 2 * (i + least(t, count - 1)) * depth;
      const Vec own = broadcast(unit_factor(row, depth));
      each_vec(depth, [&](int64_t d, int64_t n) {
        store(unit + t * depth + d, load_some(row + d, n) * own, n);
      });
    }
    for (int64_t t = 0; t < count; ++t) value[i + t] = -INFINITY, partner[i + t] = 0;
    for (int64_t j = 0; j < odd; j += 16) {
      const int64_t lanes = least(16, odd - j);
      Vec sums[4 * 16];
      for (Vec &s : sums) s = zero();
      dot_tokens<AlongF32<T>>(metric + (2 * j + 1) * depth, 2 * depth, lanes, unit, depth, 4, depth,
                              sums);
      for (int64_t t = 0; t < count; ++t) {
        if (size && size[2 * (i + t)] == 0) continue;
        float cosine[16];
        store(cosine, sums16(sums + t * 16) * load(factor + j));
        for (int64_t k = 0; k < lanes; ++k) {
          const int64_t other = 2 * (j + k) + 1;
          if (size && size[other] == 0) continue;
          if (cosine[k] > value[i + t]) value[i + t] = cosine[k], partner[i + t] = int32_t(other);
        }
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
