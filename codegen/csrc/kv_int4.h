// Keys and values in 4 bits, as KIVI keeps them (Liu et al., 2024): groups of 32 tokens, keys with a
// least value and a step per channel, values with one per token and 32 features. Tokens of a group
// that is not complete yet are read in full precision, from a ring of the last 64 tokens.
//
// The store of one head: pages of 32 tokens, then the ring, f32 [64][depth]. With `wide` = depth
// rounded up to 32 (features past depth are 0), a page is
//   codes  uint8 [32 tokens][wide / 32][16]   low halves: features 0 to 15 of 32, high: 16 to 31
//   keys   bf16 least[wide], step[wide]       values  bf16 least[32 tokens][wide / 32], step[...]
#pragma once

#include <float.h>
#include <math.h>

#include "vec.h"
#include "vec_bytes.h"

namespace infopt {

constexpr int64_t kGroupTokens = 32, kRingTokens = 64;

struct i4 { uint8_t pair; };
template <class S> constexpr bool kInGroups = false;
template <> constexpr bool kInGroups<i4> = true;

struct Int4Pages {
  int64_t depth, wide, codes, page;  // codes and page: bytes
  explicit Int4Pages(int64_t features)
      : depth(features), wide(round_up(features, 32)), codes(kGroupTokens * wide / 2),
        page(codes + 4 * wide) {}
  const bf16 *least_of(const i4 *at) const { return (const bf16 *)(at + codes); }
  const bf16 *step_of(const i4 *at) const { return least_of(at) + wide; }
};

// 32 codes of 16 bytes as floats.
INFOPT_INLINE void load_codes(const i4 *p, Vec *low, Vec *high) {
#ifdef INFOPT_AVX512
  const __m512 table = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
  *low = {_mm512_permutexvar_ps(codes, table)};
  *high = {_mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4), table)};
#else
  int8_t codes[32];
  for (int i = 0; i < 16; ++i) {
    codes[i] = int8_t(p[i].pair & 15);
    codes[i + 16] = int8_t(p[i].pair >> 4);
  }
  *low = widen_bytes(codes), *high = widen_bytes(codes + 16);
#endif
}

// rows [32][wide] become the codes of a page, whose least values and steps are at `factors`; a group
// of numbers is `count` of them, `step` apart.
struct Range4 { float least, inverse; };
INFOPT_INLINE Range4 range_of(const float *x, int64_t count, int64_t stride, bf16 *least_at,
                              bf16 *step_at) {
  float low = x[0], high = x[0];
  for (int64_t i = 1; i < count; ++i) {
    const float v = x[i * stride];
    if (v < low || v != v) low = v;  // a NaN stays
    if (v > high || v != v) high = v;
  }
  *least_at = from_float<bf16>(low), *step_at = from_float<bf16>((high - low) / 15.0f);
  const float inverse = 1.0f / to_float(*step_at);
  const bool usual = inverse > 0 && inverse <= FLT_MAX && fabsf(to_float(*least_at)) <= FLT_MAX;
  return {to_float(*least_at), usual ? inverse : 0.0f};
}
INFOPT_INLINE uint8_t code_of(float x, Range4 range) {
  if (range.inverse == 0) return 0;
  const float code = nearbyintf((x - range.least) * range.inverse);
  return uint8_t(code < 0 ? 0 : code > 15 ? 15 : code);
}
static void to_page(const Int4Pages &shape, const float *rows, bool per_token, i4 *page) {
  bf16 *least_at = (bf16 *)(page + shape.codes), *step_at = least_at + shape.wide;
  const int64_t groups = shape.wide / 32;
  memset(page, 0, size_t(shape.codes));
  const auto put = [&](int64_t token, int64_t feature, uint8_t code) {
    const int64_t in_group = feature % 32;
    page[(token * groups + feature / 32) * 16 + in_group % 16].pair |=
        uint8_t(code << (in_group < 16 ? 0 : 4));
  };
  if (per_token) {
    for (int64_t i = 0; i < kGroupTokens * groups; ++i) {
      const float *x = rows + i / groups * shape.wide + i % groups * 32;
      const Range4 range = range_of(x, 32, 1, least_at + i, step_at + i);
      for (int64_t d = 0; d < 32; ++d)
        put(i / groups, i % groups * 32 + d, code_of(x[d], range));
    }
  } else {
    for (int64_t d = 0; d < shape.wide; ++d) {
      const Range4 range = range_of(rows + d, kGroupTokens, shape.wide, least_at + d, step_at + d);
      for (int64_t t = 0; t < kGroupTokens; ++t)
        put(t, d, code_of(rows[t * shape.wide + d], range));
    }
  }
}

// What follows a head's pages: the rows of its last tokens.
INFOPT_INLINE const float *ring_row(const Int4Pages &shape, const i4 *head, int64_t pages,
                                    int64_t token) {
  return (const float *)(head + pages * shape.page) + token % kRingTokens * shape.depth;
}

// Tokens `first` to `first + count` as numbers, block[token][width], zero-padded. `first` begins a
// page, or is at or past `complete`, the first token that is read from the ring.
template <class Operand>
static void stage_int4(const Int4Pages &shape, const i4 *head, int64_t pages, int64_t complete,
                       bool per_token, int64_t first, int64_t count, int64_t width,
                       Operand *block) {
  for (int64_t t = 0; t < count; ++t) {
    const int64_t token = first + t, within = token % kGroupTokens, groups = shape.wide / 32;
    const float *row = ring_row(shape, head, pages, token);
    float numbers[32];
    Operand *to = block + t * width;
    const i4 *page = head + token / kGroupTokens * shape.page;
    const bf16 *least = shape.least_of(page), *step = shape.step_of(page);
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t n = ::infopt::least(32, shape.depth - g * 32);
      if (token < complete) {
        Vec part[2];
        load_codes(page + (within * groups + g) * 16, part, part + 1);
        for (int half = 0; half < 2; ++half) {
          const int64_t at = per_token ? within * groups + g : g * 32 + half * 16;
          const Vec unit = per_token ? broadcast(to_float(step[at])) : load(step + at);
          const Vec low = per_token ? broadcast(to_float(least[at])) : load(least + at);
          store(numbers + half * 16, fma(part[half], unit, low));
        }
      } else {
        memcpy(numbers, row + g * 32, size_t(n) * sizeof(float));
      }
      for (int64_t d = 0; d < n; ++d) to[g * 32 + d] = from_float<Operand>(numbers[d]);
    }
    for (int64_t d = shape.depth; d < width; ++d) to[d] = from_float<Operand>(0.0f);
  }
}

// S[row][key] of one page, from `keys` of its tokens: q of a row takes the channels' steps once, and
// its product with the least values is the same for all keys. scaled: Rows * wide floats.
template <int Rows>
static void few_scores_int4(const Int4Pages &shape, const i4 *page, int64_t keys, const float *q,
                            int64_t q_stride, float *scaled, float *scores, int64_t stride) {
  const bf16 *least = shape.least_of(page), *step = shape.step_of(page);
  const int64_t groups = shape.wide / 32;
  Vec base[Rows];
  for (int r = 0; r < Rows; ++r) {
    Vec low = zero();
    for (int64_t d = 0; d < shape.depth; d += 16) {
      const Vec x = load(q + r * q_stride + d);
      low = fma(x, load(least + d), low);
      store(scaled + r * shape.wide + d, x * load(step + d));
    }
    for (int64_t d = round_up(shape.depth, 16); d < shape.wide; d += 16)
      store(scaled + r * shape.wide + d, zero());
    base[r] = broadcast(sum(low));
  }
  for (int64_t key = 0; key < keys; key += 16) {
    Vec partial[Rows][16];
    for (int64_t j = 0; j < 16; ++j) {
      const i4 *row = page + (key + j) * groups * 16;
      Vec acc[Rows][2];
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) acc[r][0] = acc[r][1] = zero();
      for (int64_t g = 0; g < groups; ++g) {
        Vec low, high;
        load_codes(row + g * 16, &low, &high);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) {
          acc[r][0] = fma(low, load(scaled + r * shape.wide + g * 32), acc[r][0]);
          acc[r][1] = fma(high, load(scaled + r * shape.wide + g * 32 + 16), acc[r][1]);
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) partial[r][j] = acc[r][0] + acc[r][1];
    }
    for (int r = 0; r < Rows; ++r)
      store(scores + r * stride + key, sums16(partial[r]) + base[r]);
  }
}

// O[row][d] = O[row][d] * factor[row] + sum over key  P[row][key] * V[key][d], of one page
template <int Rows>
static void few_sums_int4(const Int4Pages &shape, const i4 *page, int64_t keys,
                          const float *weights, int64_t stride, const float *factor, float *out,
                          int64_t out_stride) {
  const bf16 *least = shape.least_of(page), *step = shape.step_of(page);
  const int64_t groups = shape.wide / 32;
  for (int64_t g = 0; g < groups; ++g) {
    Vec acc[Rows][2];
    float low_sum[Rows];
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      acc[r][0] = load(out + r * out_stride + g * 32) * broadcast(factor[r]);
      acc[r][1] = load(out + r * out_stride + g * 32 + 16) * broadcast(factor[r]);
      low_sum[r] = 0;
    }
    for (int64_t key = 0; key < keys; ++key) {
      Vec low, high;
      load_codes(page + (key * groups + g) * 16, &low, &high);
      const float unit = to_float(step[key * groups + g]), from = to_float(least[key * groups + g]);
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        const float weight = weights[r * stride + key];
        const Vec x = broadcast(weight * unit);
        acc[r][0] = fma(low, x, acc[r][0]), acc[r][1] = fma(high, x, acc[r][1]);
        low_sum[r] += weight * from;
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      store(out + r * out_stride + g * 32, acc[r][0] + broadcast(low_sum[r]));
      store(out + r * out_stride + g * 32 + 16, acc[r][1] + broadcast(low_sum[r]));
    }
  }
}

}  // namespace infopt
