// Group norm: the channels of a group are one row for the statistics, each has its own factor.
#pragma once

#include "norm.h"

namespace infopt {

struct GroupNorm {
  int64_t channels, plane, groups, weight_element;  // channels of a group, elements of a channel
  double eps;
  const void *weight, *bias;  // null: 1, 0

  // One group of one batch entry; `group` counts over all of them.
  template <class T> void run(int64_t group, const T *x, T *out) const {
    NormShape s = {};
    s.width = channels * plane, s.eps = eps;
    float shift, scale, offset;
    row_statistics(s, x, &shift, &scale, &offset);
    const Vec center = broadcast(shift), factor = broadcast(scale), rest = broadcast(offset);
    const int64_t first = group % groups * channels;
    for (int64_t c = 0; c < channels; ++c, x += plane, out += plane) {
      const Vec w = broadcast(weight ? element(weight, first + c) : 1.0f);
      const Vec b = broadcast(bias ? element(bias, first + c) : 0.0f);
      each_vec(plane, [&](int64_t i, int64_t n) {
        const Vec v = n == 16 ? load(x + i) : load(x + i, n);
        const Vec y = fma(fma(v - center, factor, rest), w, b);
        n == 16 ? store(out + i, y) : store(out + i, y, n);
      });
    }
  }

 private:
  float element(const void *from, int64_t i) const {
    float value;
    store(&value, load_element(from, weight_element, i, 1), 1);
    return value;
  }
};

}  // namespace infopt
