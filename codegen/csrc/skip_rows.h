// Linear layers for few tokens that are zero at many places: w lies as [K][N], and of the rows
// that meet a zero nothing is read. Sums of all features of a task wait in the first cache.
#pragma once

#include <type_traits>

#include "element.h"
#include "linear.h"

namespace infopt {

// Where x is not zero, and what it is there; how many such places there are.
template <class X>
int64_t places_of(const X *x, int64_t k, int32_t *place, float *value) {
  int64_t count = 0;
  float lanes[16];
  for (int64_t i = 0; i < k; i += 16) {
    const int64_t n = least(16, k - i);
    const Vec v = load_some(x + i, n);
#ifdef INFOPT_AVX512
    const __mmask16 kept = _mm512_cmp_ps_mask(v.v, zero().v, _CMP_NEQ_UQ);
    const __m512i at = _mm512_cvtps_epi32((iota() + broadcast(float(i))).v);
    _mm512_storeu_si512(place + count, _mm512_maskz_compress_epi32(kept, at));
    _mm512_storeu_ps(value + count, _mm512_maskz_compress_ps(kept, v.v));
    count += __builtin_popcount(kept);
    continue;
#endif
    store(lanes, v);
    for (int64_t j = 0; j < n; ++j) {
      place[count] = int32_t(i + j), value[count] = lanes[j];
      count += lanes[j] != 0;  // NaN is not zero
    }
  }
  return count;
}

// sums[0..n) += the sum of R rows of w, each times its value. Each line of the R rows at `next`,
// if any, is asked for while the same columns are added.
template <int R, class W>
INFOPT_INLINE void add_rows(const W *w, int64_t stride, const int32_t *place, const float *value,
                            const int32_t *next, int64_t n, float *sums) {
  constexpr int64_t kLine = 64 / int64_t(sizeof(W));
  const W *row[R], *later[R];
  Vec factor[R];
  for (int r = 0; r < R; ++r) {
    row[r] = w + place[r] * stride, factor[r] = broadcast(value[r]);
    later[r] = w + (next ? next[r] : place[r]) * stride;
  }
  int64_t i = 0;
  for (; i + kLine <= n; i += kLine) {
    if (next) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) __builtin_prefetch(later[r] + i, 0, 3);
    }
#pragma GCC unroll 16
    for (int64_t j = i; j < i + kLine; j += 16) {
      Vec a = load(sums + j);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) a = fma(load(row[r] + j), factor[r], a);
      store(sums + j, a);
    }
  }
  for (; i < n; i += 16) {
    const int64_t lanes = least(16, n - i);
    Vec a = load(sums + i);
    for (int r = 0; r < R; ++r) a = fma(load_some(row[r] + i, lanes), factor[r], a);
    store(sums + i, a);
  }
}

template <class W>
void add_all_rows(const W *w, int64_t stride, const int32_t *place, const float *value,
                  int64_t count, int64_t n, float *sums) {
  constexpr int R = kRegisters >= 32 ? 8 : 4;
  memset(sums, 0, size_t(round_up(n, 16)) * sizeof(float));
  int64_t i = 0;
  for (; i + R <= count; i += R)
    add_rows<R>(w, stride, place + i, value + i, i + 2 * R <= count ? place + i + R : nullptr, n,
                sums);
  for (; i < count; ++i) add_rows<1>(w, stride, place + i, value + i, nullptr, n, sums);
}

// A token after the other; its places are found once for all tasks of this call.
template <class W> void skip_rows(const infopt_call *call, int64_t first, int64_t last) {
  const LinearCall c = read_linear(call);
  const int64_t room = round_up(c.k, 16) + 16;  // what is not zero is stored 16 at a time
  int32_t *place = static_cast<int32_t *>(call->scratch);
  float *value = reinterpret_cast<float *>(place + room);
  float *sums = value + room, *up_sums = sums + c.n_chunk;
  for (int64_t m = 0; m < c.m; ++m) {
    int64_t count = 0;
    with_row_type(call->numbers[15], [&](auto *type) {
      count = places_of((decltype(type))c.x + m * c.x_stride, c.k, place, value);
    });
    for (int64_t task = first; task < last; ++task) {
      const int64_t from = task * c.n_chunk, n = least(c.n_chunk, c.n - from);
      add_all_rows((const W *)c.w + from, c.row_stride, place, value, count, n, sums);
      if (c.up)
        add_all_rows((const W *)c.up + from, c.row_stride, place, value, count, n, up_sums);
      for (int64_t i = 0; i < n; i += 16) {
        const Vec up = c.up ? load(up_sums + i) : zero();
        finish_row(c.epilogue, load(sums + i), c.up ? &up : nullptr, m, from + i,
                   least(16, n - i));
      }
    }
  }
}

// The `keep` places of the largest |x| * weight stay, of equal ones the first; 0 elsewhere.
//   score  roundup(n, 16) integers: floats without a sign are in the order of their bits
template <class T>
void keep_largest(const T *x, const float *weight, int64_t n, int64_t keep, int32_t *score,
                  T *out) {
  const IVec unsigned_bits = ibroadcast(0x7fffffff);
  each_vec(n, [&](int64_t i, int64_t lanes) {
    Vec v = load_some(x + i, lanes);
    if (weight) v = v * load_some(weight + i, lanes);
    store((float *)score + i, float_of_bits(bits(v) & unsigned_bits), lanes);
  });
  int32_t least_kept = 0;  // the greatest number that `keep` scores reach
  for (int bit = 30; bit >= 0; --bit) {
    const int32_t tried = least_kept | int32_t(1) << bit;
    int32_t count = 0;
    for (int64_t i = 0; i < n; ++i) count += score[i] >= tried;
    if (count >= keep) least_kept = tried;
  }
  int64_t more = -keep;  // so many of the scores that are just that go
  for (int64_t i = 0; i < n; ++i) more += score[i] >= least_kept;
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;
  const Bits *from = (const Bits *)x;
  Bits *to = (Bits *)out;
  for (int64_t i = 0; i < n; ++i) to[i] = Bits(from[i] & -Bits(score[i] >= least_kept));
  for (int64_t i = n - 1; more > 0; --i)
    if (score[i] == least_kept) to[i] = 0, --more;
}

}  // namespace infopt
