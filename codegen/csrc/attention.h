// Scaled dot-product attention, a block of query rows at a time; softmax and sums in f32.
//
// Lanes are query rows, so that maxima, sums and exponentials need no horizontal step: the scores
// are computed transposed, S[key][row], and the result as O[feature][row]. Only q is transposed
// when loaded and O when stored. Keys and values are read where they lie when they have the
// operand's type and neighbouring features; otherwise a block of them is converted first.
#pragma once

#include "attention_exp.h"
#include "attention_mask.h"
#include "attention_output.h"
#include "attention_shape.h"
#include "attention_tile.h"
#include "kv_bytes.h"
#include "kv_int4.h"

namespace infopt {

template <class Steps> constexpr bool kPairs = false;
template <> constexpr bool kPairs<PairSteps> = true;

struct AttentionScratch {
  float *q, *out, *scores, *keys, *values;
  AttentionScratch(const AttentionShape &s, void *scratch) {
    q = static_cast<float *>(scratch);
    out = q + kTaskRows * s.depth;
    scores = out + kTaskRows * s.value_depth;
    keys = scores + kKeyBlock * kTaskRows;
    values = keys + kKeyBlock * (s.depth + 1);
  }
};

// Queries, transposed: panel[d][lanes * 16], for pairs panel[d / 2][lanes * 16][2].
template <class T, class Steps>
static void load_queries(const AttentionShape &s, const T *q, const QueryRows &rows,
                         int64_t lanes, bool negate, float *panel) {
  constexpr int64_t kPerLane = kPairs<Steps> ? 2 : 1;
  const int64_t depth = ceil_div(s.depth, kPerLane);
  const bool direct = s.q[3] == 1 && !(kPairs<Steps> && (negate || s.depth % 2));
  for (int64_t l = 0; l < lanes; ++l)
    for (int64_t d = 0; d < depth; d += 16) {
      const int64_t n = least(16, depth - d);
      Vec block[16];
      for (int i = 0; i < 16; ++i) {
        const T *row = q + rows.batch * s.q[0] + rows.head[l * 16 + i] * s.q[1] +
                       rows.token[l * 16 + i] * s.q[2] + d * kPerLane * s.q[3];
        if (direct) {
          block[i] = kPairs<Steps> ? load((const float *)row, n) : load(row, n);
          if (negate) block[i] = -block[i];
          continue;
        }
        typename Steps::Operand staged[16 * kPerLane] = {};
        for (int64_t j = 0; j < least(n * kPerLane, s.depth - d * kPerLane); ++j) {
          const float x = to_float(row[j * s.q[3]]);
          staged[j] = from_float<typename Steps::Operand>(negate ? -x : x);
        }
        block[i] = load((const float *)staged);
      }
      transpose16(block);
      for (int64_t j = 0; j < n; ++j) store(panel + ((d + j) * lanes + l) * 16, block[j]);
    }
}

// A block of key or value rows in the operand's type: block[token][width], zero-padded.
template <class T, class Operand>
static void stage_rows(const T *from, int64_t token_stride, int64_t stride, int64_t tokens,
                       int64_t depth, int64_t width, Operand *block) {
  for (int64_t t = 0; t < tokens; ++t) {
    const T *row = from + t * token_stride;
    Operand *to = block + t * width;
    if (stride == 1) {
      int64_t d = 0;
      for (; d + 16 <= depth; d += 16) store(to + d, load(row + d));
      store(to + d, load(row + d, depth - d), depth - d);
    } else {
      for (int64_t d = 0; d < depth; ++d) to[d] = from_float<Operand>(to_float(row[d * stride]));
    }
    for (int64_t d = depth; d < width; ++d) to[d] = from_float<Operand>(0.0f);
  }
}

// The keys or values of one head from `key` on, staged as above.
template <class S, class Operand>
static void stage_block(const AttentionShape &s, const S *head, bool values, int64_t key,
                        int64_t keys, int64_t width, Operand *block) {
  const int64_t depth = values ? s.value_depth : s.depth, *stride = values ? s.v : s.k;
  if constexpr (kInGroups<S>)
    stage_int4(Int4Pages(depth), head, s.keys / kGroupTokens, s.complete, values, key, keys, width,
               block);
  else
    stage_rows(head + key * stride[2], stride[2], stride[3], keys, depth, width, block);
}

// How many of the keys from `key` on make one block: of groups of tokens, not also of those behind.
template <class S>
INFOPT_INLINE int64_t block_keys(const AttentionShape &s, int64_t key, int64_t last) {
  return least(kKeyBlock, (kInGroups<S> && key < s.complete ? least(s.complete, last) : last) - key);
}

// Values of neighbouring keys side by side: block[token / 2][depth][2].
static void pair_values(const bf16 *from, int64_t token_stride, int64_t stride, int64_t tokens,
                        int64_t depth, bf16 *block) {
  for (int64_t t = 0; t < tokens; t += 2) {
    const bf16 *even = from + t * token_stride, *odd = even + token_stride;
    const bool alone = t + 1 == tokens;
    bf16 *to = block + t * depth;
    int64_t d = 0;
#ifdef INFOPT_AVX512
    if (stride == 1 && !alone)
      for (; d + 16 <= depth; d += 16) {
        const __m512i a = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(even + d)));
        const __m512i b = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(odd + d)));
        _mm512_storeu_si512(to + 2 * d, _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
      }
#endif
    for (; d < depth; ++d) {
      to[2 * d] = even[d * stride];
      to[2 * d + 1] = alone ? bf16{0} : odd[d * stride];
    }
  }
}

// Running softmax of one Vec of rows over a block of scores, which become weights in place: f32,
// or bf16 pairs of neighbouring keys. Returns the factor for what was summed before.
template <bool Pairs>
static Vec weigh(float *scores, int64_t step, int64_t keys, Vec unit, float *maximum,
                 float *total) {
  Vec top0 = broadcast(-INFINITY), top1 = top0;
  int64_t key = 0;
  for (; key + 2 <= keys; key += 2) {
    top0 = max(load(scores + key * step), top0);
    top1 = max(load(scores + (key + 1) * step), top1);
  }
  if (key < keys) top0 = max(load(scores + key * step), top0);
  const Vec before = load(maximum), now = max(max(top0, top1) * unit, before);
  const Vec factor = exp2_weight<true>(before - now);
  Vec sum0 = zero(), sum1 = zero();
  for (key = 0; key + 2 <= keys; key += 2) {
    const Vec a = exp2_weight<!Pairs>(fma(load(scores + key * step), unit, -now));
    const Vec b = exp2_weight<!Pairs>(fma(load(scores + (key + 1) * step), unit, -now));
    sum0 = sum0 + a, sum1 = sum1 + b;
    if (Pairs) {
      store_pairs((bf16 *)(scores + key / 2 * step), weight_pairs(a, b));
    } else {
      store(scores + key * step, a);
      store(scores + (key + 1) * step, b);
    }
  }
  if (key < keys) {
    const Vec a = exp2_weight<!Pairs>(fma(load(scores + key * step), unit, -now));
    sum0 = sum0 + a;
    if (Pairs) store_pairs((bf16 *)(scores + key / 2 * step), weight_pairs(a, zero()));
    else store(scores + key * step, a);
  }
  store(maximum, now);
  store(total, fma(load(total), factor, sum0 + sum1));
  return factor;
}

template <class Steps>
static void product_of(int64_t lanes, const typename Steps::Operand *a, int64_t row_stride,
                       int64_t step_stride, const float *b, int64_t depth, float *c, int64_t rows,
                       bool accumulate) {
  constexpr int k2 = kMaxLanes > 1 ? 2 : 1, k3 = kMaxLanes > 1 ? 3 : 1;
  const auto run = lanes == 1 ? product<Steps, 1> : lanes == 2 ? product<Steps, k2>
                 : lanes == 3 ? product<Steps, k3> : product<Steps, kMaxLanes>;
  run(a, row_stride, step_stride, b, depth, c, rows, accumulate);
}

// O[feature][row] of one block of rows, not yet divided by `total`. S: how keys and values are
// stored, T itself, bytes or groups of tokens.
template <class T, class Steps, class S>
static void attend(const AttentionShape &s, const T *q, const S *k, const S *v, const void *mask,
                   const QueryRows &rows, int64_t lanes, const AttentionScratch &scratch,
                   float *total) {
  using Operand = typename Steps::Operand;
  constexpr int64_t kPerLane = kPairs<Steps> ? 2 : 1;
  load_queries<T, Steps>(s, q, rows, lanes, s.scale < 0, scratch.q);
  const int64_t kv_head = rows.head[0] / s.group, step = lanes * 16;
  float lowest = rows.limit[0], highest = rows.limit[0];
  float maximum[kTaskRows];
  for (int64_t i = 0; i < step; ++i) {
    lowest = rows.limit[i] < lowest ? rows.limit[i] : lowest;
    highest = rows.limit[i] > highest ? rows.limit[i] : highest;
    maximum[i] = -FLT_MAX, total[i] = 0;
  }
  auto [first, last] = key_range(s, lowest, highest);
  if (kInGroups<S>) first -= first % kGroupTokens;
  const float unit = float(fabs(s.scale) * 1.4426950408889634);
  const int64_t depth = ceil_div(s.depth, kPerLane);
  const bool keys_in_place = sizeof(S) == sizeof(Operand) && s.k[3] == 1 && s.depth % kPerLane == 0;
  const bool values_in_place = !kPairs<Steps> && sizeof(S) == sizeof(Operand) && s.v[3] == 1;
  const S *k_head = k + rows.batch * s.k[0] + kv_head * s.k[1];
  const S *v_head = v + rows.batch * s.v[0] + kv_head * s.v[1];
  for (int64_t key = first, keys; key < last; key += keys) {
    const KeyRun run = key_run(s, rows.batch, key, block_keys<S>(s, key, last));
    keys = run.keys;
    const S *v_block = v_head + run.row * s.v[2];
    const Operand *k_rows = (const Operand *)(k_head + run.row * s.k[2]);
    const Operand *v_rows = (const Operand *)v_block;
    int64_t k_stride = s.k[2], v_stride = s.v[2];
    if (!keys_in_place) {
      k_stride = depth * kPerLane;
      stage_block(s, k_head, false, run.row, keys, k_stride, (Operand *)scratch.keys);
      k_rows = (const Operand *)scratch.keys;
    }
    product_of<Steps>(lanes, k_rows, k_stride, kPerLane, scratch.q, depth, scratch.scores, keys,
                      false);
    Vec scale = broadcast(unit);
    if (s.softcap > 0) {
      cap_scores(s, keys * lanes, scratch.scores);
      scale = broadcast(1.0f);
    }
    if (s.mask_kind != kNoMask) {
      add_mask(s, mask, rows, lanes, key, keys, scale, scratch.scores);
      scale = broadcast(1.0f);
    }
    if (s.causal && (float(key + keys - 1) > lowest ||
                     (s.window > 0 && float(key) <= highest - float(s.window))))
      hide_keys(s, rows, lanes, key, keys, scratch.scores);
    for (int64_t l = 0; l < lanes; ++l) {
      const Vec factor = weigh<kPairs<Steps>>(scratch.scores + l * 16, step, keys, scale,
                                              maximum + l * 16, total + l * 16);
      if (key == first) continue;
      for (int64_t d = 0; d < s.value_depth; ++d) {
        float *o = scratch.out + d * step + l * 16;
        store(o, load(o) * factor);
      }
    }
    if constexpr (kPairs<Steps>) {
      const bf16 *rows_of_bf16 = (const bf16 *)v_block;
      int64_t stride = s.v[2], step_of_row = s.v[3];
      if constexpr (kInBytes<S> || kInGroups<S>) {  // behind the pairs, which need half of the memory
        bf16 *staged = (bf16 *)scratch.values + kKeyBlock * s.value_depth;
        stage_block(s, v_head, true, run.row, keys, s.value_depth, staged);
        rows_of_bf16 = staged, stride = s.value_depth, step_of_row = 1;
      }
      pair_values(rows_of_bf16, stride, step_of_row, keys, s.value_depth,
                  (bf16 *)scratch.values);
      product_of<Steps>(lanes, (const bf16 *)scratch.values, 2, 2 * s.value_depth, scratch.scores,
                        ceil_div(keys, 2), scratch.out, s.value_depth, key != first);
    } else {
      if (!values_in_place) {
        v_stride = s.value_depth;
        stage_block(s, v_head, true, run.row, keys, v_stride, (Operand *)scratch.values);
        v_rows = (const Operand *)scratch.values;
      }
      product_of<Steps>(lanes, v_rows, 1, v_stride, scratch.scores, keys, scratch.out,
                        s.value_depth, key != first);
    }
  }
  for (int64_t i = 0; s.sinks && i < step; ++i)
    total[i] += sink_weight<T>(s, rows.head[i], maximum[i]);
  for (int64_t i = 0; s.logsum && i < rows.count; ++i)
    store_logsum(s, rows, i, maximum[i], total[i]);
  if (first >= last) memset(scratch.out, 0, size_t(s.value_depth * step) * sizeof(float));
}

}  // namespace infopt
