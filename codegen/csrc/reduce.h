// Sums, means, extremes, any and all over some dimensions of a strided tensor.
//
//   pointers  x, out
//   numbers   0 outputs (or, across, blocks of 64 neighbouring outputs) of one task
//             1 sizes of four kept dimensions  5 their strides in x  9 in out
//             13 sizes of three reduced dimensions  16 their strides in x
//   tasks     ceil(outputs or blocks / numbers[0])
//
// Along: the last reduced dimension is contiguous, lanes run over it. Across: the last kept one is,
// lanes are outputs. f32 sums are partial sums of a few terms per lane, joined in double.
#pragma once

#include <limits>

#include "region.h"

namespace infopt {

struct ReduceShape {
  int64_t kept[4], x[4], out[4], reduced[3], step[3];
  explicit ReduceShape(const int64_t *n) {
    for (int i = 0; i < 4; ++i) kept[i] = n[1 + i], x[i] = n[5 + i], out[i] = n[9 + i];
    for (int i = 0; i < 3; ++i) reduced[i] = n[13 + i], step[i] = n[16 + i];
  }
  int64_t count() const { return reduced[0] * reduced[1] * reduced[2]; }
  int64_t outputs() const { return kept[0] * kept[1] * kept[2] * kept[3]; }
};

// How terms meet, and what becomes of the total. start: of an empty reduction.
struct SumOf {
  template <class A> static A start() { return A(0); }
  template <class A> INFOPT_INLINE static A join(A a, A b) { return pw::add(a, b); }
};
struct GreatestOf {
  template <class A> static A start() { return std::numeric_limits<A>::has_infinity
                                              ? -std::numeric_limits<A>::infinity()
                                              : std::numeric_limits<A>::lowest(); }
  template <class A> INFOPT_INLINE static A join(A a, A b) { return pw::maximum(a, b); }
};
struct LeastOf {
  template <class A> static A start() { return std::numeric_limits<A>::has_infinity
                                              ? std::numeric_limits<A>::infinity()
                                              : std::numeric_limits<A>::max(); }
  template <class A> INFOPT_INLINE static A join(A a, A b) { return pw::minimum(a, b); }
};
struct AnyOf {
  template <class A> static A start() { return A(0); }
  template <class A> INFOPT_INLINE static A join(A a, A b) { return A(a | b); }
};
struct AllOf {
  template <class A> static A start() { return A(1); }
  template <class A> INFOPT_INLINE static A join(A a, A b) { return A(a & b); }
};

// The total as an element of Out; a mean is the sum rounded to Out, then divided, as in torch.
template <class Out, bool mean, class A> INFOPT_INLINE void finish(Out *to, A total, int64_t count) {
  constexpr bool half = std::is_same<Out, bf16>::value || std::is_same<Out, f16>::value;
  if constexpr (half) {
    float value = float(total);
    if (mean) value = to_float(from_float<Out>(value)) / float(count);
    *to = from_float<Out>(value);
  } else if constexpr (std::is_same<Out, float>::value) {
    *to = mean ? float(total) / float(count) : float(total);
  } else {
    *to = mean ? Out(total / Out(count)) : Out(total);
  }
}

template <class A, class T> INFOPT_INLINE A term(const T *p) {
  if constexpr (std::is_same<T, bf16>::value || std::is_same<T, f16>::value) return A(to_float(*p));
  else if constexpr (std::is_same<A, bool>::value) return *p != T(0);
  else return A(*p);
}

// Any strides, any type: one output after the other.
template <class T, class Out, class A, class Op, bool mean>
void reduce_scalar(const infopt_call *call, int64_t first, int64_t last) {
  const ReduceShape s(call->numbers);
  const int64_t per_task = call->numbers[0], end = least(last * per_task, s.outputs());
  for (int64_t o = first * per_task; o < end; ++o) {
    const int64_t d = o % s.kept[3], c = o / s.kept[3] % s.kept[2],
                  b = o / s.kept[3] / s.kept[2] % s.kept[1], a = o / s.kept[3] / s.kept[2] / s.kept[1];
    const T *x = pointer<const T>(call, 0) + a * s.x[0] + b * s.x[1] + c * s.x[2] + d * s.x[3];
    A total = Op::template start<A>();
    for (int64_t i = 0; i < s.reduced[0]; ++i)
      for (int64_t j = 0; j < s.reduced[1]; ++j) {
        const T *row = x + i * s.step[0] + j * s.step[1];
        const int64_t n = s.reduced[2], step = s.step[2];
        for (int64_t k = 0; k < n; ++k) total = Op::join(total, term<A>(row + k * step));
      }
    finish<Out, mean>(
        pointer<Out>(call, 1) + a * s.out[0] + b * s.out[1] + c * s.out[2] + d * s.out[3], total,
        s.count());
  }
}

template <class Op> INFOPT_INLINE float join_lanes(Vec v) {
  float lanes[16];
  store(lanes, v);
  float total = lanes[0];
  for (int i = 1; i < 16; ++i) total = Op::join(total, lanes[i]);
  return total;
}

template <class T, class Out, class Op, bool mean>
void reduce_along(const infopt_call *call, int64_t first, int64_t last) {
  constexpr int64_t kTerms = 4 * 16 * 8;  // of one first-level sum: 8 per lane
  const ReduceShape s(call->numbers);
  const int64_t per_task = call->numbers[0], end = least(last * per_task, s.outputs());
  const float start = Op::template start<float>();
  for (int64_t o = first * per_task; o < end; ++o) {
    const int64_t d = o % s.kept[3], c = o / s.kept[3] % s.kept[2],
                  b = o / s.kept[3] / s.kept[2] % s.kept[1], a = o / s.kept[3] / s.kept[2] / s.kept[1];
    const T *x = pointer<const T>(call, 0) + a * s.x[0] + b * s.x[1] + c * s.x[2] + d * s.x[3];
    double total = start;
    for (int64_t i = 0; i < s.reduced[0]; ++i)
      for (int64_t j = 0; j < s.reduced[1]; ++j) {
        const T *row = x + i * s.step[0] + j * s.step[1];
        for (int64_t k0 = 0; k0 < s.reduced[2]; k0 += kTerms) {
          const int64_t k1 = least(s.reduced[2], k0 + kTerms);
          Vec sums[4] = {broadcast(start), broadcast(start), broadcast(start), broadcast(start)};
          int64_t k = k0;
          for (; k + 64 <= k1; k += 64)
            for (int v = 0; v < 4; ++v) sums[v] = Op::join(sums[v], load(row + k + 16 * v));
          for (; k < k1; k += 16) {
            const int64_t n = least(16, k1 - k);
            const Vec part = select(first_lanes(n), load(row + k, n), broadcast(start));
            sums[0] = Op::join(sums[0], part);
          }
          const Vec sum = Op::join(Op::join(sums[0], sums[1]), Op::join(sums[2], sums[3]));
          total = Op::join(total, double(join_lanes<Op>(sum)));
        }
      }
    finish<Out, mean>(
        pointer<Out>(call, 1) + a * s.out[0] + b * s.out[1] + c * s.out[2] + d * s.out[3], total,
        s.count());
  }
}

template <class T, class Out, class Op, bool mean>
void reduce_across(const infopt_call *call, int64_t first, int64_t last) {
  constexpr int kLanes = 4;
  const ReduceShape s(call->numbers);
  const int64_t columns = ceil_div(s.kept[3], 16 * kLanes), per_task = call->numbers[0];
  const int64_t end = least(last * per_task, s.kept[0] * s.kept[1] * s.kept[2] * columns);
  const Vec start = broadcast(Op::template start<float>());
  for (int64_t o = first * per_task; o < end; ++o) {
    const int64_t d = o % columns * 16 * kLanes, c = o / columns % s.kept[2],
                  b = o / columns / s.kept[2] % s.kept[1], a = o / columns / s.kept[2] / s.kept[1];
    const T *x = pointer<const T>(call, 0) + a * s.x[0] + b * s.x[1] + c * s.x[2] + d;
    const int64_t width = least(16 * kLanes, s.kept[3] - d);
    Vec sums[kLanes] = {start, start, start, start};
    double totals[16 * kLanes];
    for (double &total : totals) total = Op::template start<float>();
    const auto flush = [&] {
      float part[16 * kLanes];
      for (int v = 0; v < kLanes; ++v) store(part + 16 * v, sums[v]), sums[v] = start;
      for (int i = 0; i < 16 * kLanes; ++i) totals[i] = Op::join(totals[i], double(part[i]));
    };
    int64_t terms = 0;
    for (int64_t i = 0; i < s.reduced[0]; ++i)
      for (int64_t j = 0; j < s.reduced[1]; ++j)
        for (int64_t k = 0; k < s.reduced[2]; ++k) {
          const T *row = x + i * s.step[0] + j * s.step[1] + k * s.step[2];
          for (int v = 0; v < kLanes; ++v) {
            const int64_t n = least(16, greatest(width - 16 * v, 0));
            sums[v] = Op::join(sums[v], n == 16 ? load(row + 16 * v) : load(row + 16 * v, n));
          }
          if (++terms % 16 == 0) flush();
        }
    flush();
    Out *to = pointer<Out>(call, 1) + a * s.out[0] + b * s.out[1] + c * s.out[2] + d * s.out[3];
    for (int64_t i = 0; i < width; ++i) finish<Out, mean>(to + i * s.out[3], totals[i], s.count());
  }
}

}  // namespace infopt
