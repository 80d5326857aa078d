// Rows in order, and the first of them: values and the places they had.
//
// The algorithms are those of torch's own kernels, of the standard library: equal values come in the
// order that torch gives them. NaN is greater than all numbers.
//
//   pointers  x, values, indices i64 (either null: not wanted)
//   numbers   0 length, 1 its stride in x, 2 in values, 3 in indices  4 four outer sizes
//             8 strides in x  12 in values  16 in indices
//             20 1: the greatest first  21 sort: 1: equal values keep their order;
//             top_k: k, 22 1: in order
//   tasks     product of the outer sizes      scratch  16 * length
#pragma once

#include <algorithm>

#include "region.h"

namespace infopt {

template <class V> struct Placed {
  V value;
  int64_t index;
};

template <class V> INFOPT_INLINE bool is_less(V a, V b) { return (b != b && a == a) || a < b; }

template <class V> struct Ascending {
  bool operator()(const Placed<V> &a, const Placed<V> &b) const { return is_less(a.value, b.value); }
};
template <class V> struct Descending {
  bool operator()(const Placed<V> &a, const Placed<V> &b) const { return is_less(b.value, a.value); }
};
template <class Order> struct Stable {
  template <class Item> bool operator()(const Item &a, const Item &b) const {
    return Order()(a, b) || (!Order()(b, a) && a.index < b.index);
  }
};

// Calls order(items, length) for each row and writes the first `count` of the items.
template <class T, class Order>
void each_row(const infopt_call *call, int64_t first, int64_t last, int64_t count, Order order) {
  using V = decltype(pw::get((const T *)nullptr));
  const int64_t *n = call->numbers;
  auto *const items = static_cast<Placed<V> *>(call->scratch);
  for (int64_t o = first; o < last; ++o) {
    int64_t rest = o, at[3] = {};
    for (int d = 3; d >= 0; --d) {
      const int64_t j = rest % n[4 + d];
      rest /= n[4 + d];
      for (int k = 0; k < 3; ++k) at[k] += j * n[8 + 4 * k + d];
    }
    const T *x = pointer<const T>(call, 0) + at[0];
    T *values = pointer<T>(call, 1);
    int64_t *indices = pointer<int64_t>(call, 2);
    for (int64_t i = 0; i < n[0]; ++i) items[i] = {pw::get(x + i * n[1]), i};
    order(items, n[0]);
    for (int64_t i = 0; i < count; ++i) {
      if (values) values[at[1] + i * n[2]] = x[items[i].index * n[1]];
      if (indices) indices[at[2] + i * n[3]] = items[i].index;
    }
  }
}

template <class T> void sort_rows(const infopt_call *call, int64_t first, int64_t last) {
  const int64_t *n = call->numbers;
  each_row<T>(call, first, last, n[0], [&](auto *items, int64_t length) {
    using V = decltype(items->value);
    auto by = [&](auto order) {
      if (n[21]) std::sort(items, items + length, Stable<decltype(order)>());
      else std::sort(items, items + length, order);
    };
    n[20] ? by(Descending<V>()) : by(Ascending<V>());
  });
}

template <class T> void top_k(const infopt_call *call, int64_t first, int64_t last) {
  const int64_t *n = call->numbers, k = n[21];
  each_row<T>(call, first, last, k, [&](auto *items, int64_t length) {
    using V = decltype(items->value);
    auto by = [&](auto order) {
      if (k * 64 <= length) return std::partial_sort(items, items + k, items + length, order);
      std::nth_element(items, items + k - 1, items + length, order);
      if (n[22]) std::sort(items, items + k - 1, order);
    };
    n[20] ? by(Descending<V>()) : by(Ascending<V>());
  });
}

}  // namespace infopt
