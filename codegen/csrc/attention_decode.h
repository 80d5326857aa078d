// Attention of very few query rows: decoding, and the grouped query heads of one key head.
//
// With one to four rows, lanes of query rows would be idle. Lanes run along the features instead:
// every key and value is loaded once for all rows, and 16 keys share one transposition in place of
// 16 horizontal sums. Scores lie as S[row][key], so that softmax runs along the keys.
#pragma once

#include "attention.h"
#include "attention_output.h"

namespace infopt {

constexpr int kFewRows = 4;

// S[row][key] of up to kKeyBlock keys.
template <class S, int Rows>
static void few_scores(const S *k, int64_t k_stride, int64_t keys, int64_t depth, const float *q,
                       int64_t q_stride, float *scores) {
  for (int64_t key = 0; key < keys; key += 16) {
    Vec partial[Rows][16];
    for (int64_t j = 0; j < 16; ++j) {
      const S *row = k + least(key + j, keys - 1) * k_stride;
      Vec acc[Rows];
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) acc[r] = zero();
      int64_t d = 0;
      for (; d + 16 <= depth; d += 16) {
        const Vec x = load(row + d);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) acc[r] = fma(x, load(q + r * q_stride + d), acc[r]);
      }
      if (d < depth) {
        const Vec x = load(row + d, depth - d);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) acc[r] = fma(x, load(q + r * q_stride + d), acc[r]);
      }
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) partial[r][j] = acc[r];
    }
    for (int r = 0; r < Rows; ++r) {
      transpose16(partial[r]);
      Vec total[4];
      for (int j = 0; j < 4; ++j)
        total[j] = (partial[r][j] + partial[r][j + 4]) + (partial[r][j + 8] + partial[r][j + 12]);
      store(scores + r * kKeyBlock + key, (total[0] + total[1]) + (total[2] + total[3]));
    }
  }
}

// O[row][d] = O[row][d] * factor[row] + sum over key  P[row][key] * V[key][d]
template <class S, int Rows>
static void few_sums(const S *v, int64_t v_stride, int64_t keys, int64_t depth,
                     const float *weights, const float *factor, float *out, int64_t out_stride) {
  constexpr int kWide = 4, kTurns = Rows == 1 ? 2 : 1;  // enough sums in flight
  for (int64_t d = 0; d < depth; d += 16 * kWide) {
    const int64_t left = depth - d;
    Vec acc[kTurns][Rows][kWide];
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int w = 0; w < kWide; ++w) {
        acc[0][r][w] = load(out + r * out_stride + d + w * 16) * broadcast(factor[r]);
        if (kTurns == 2) acc[kTurns - 1][r][w] = zero();
      }
    const auto add = [&](int turn, int64_t key) {
      const S *row = v + key * v_stride + d;
#pragma GCC unroll 4
      for (int w = 0; w < kWide; ++w) {
        const Vec x = left >= (w + 1) * 16 ? load(row + w * 16)
                                           : load(row + w * 16, greatest(0, left - w * 16));
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r)
          acc[turn][r][w] = fma(x, broadcast(weights[r * kKeyBlock + key]), acc[turn][r][w]);
      }
    };
    int64_t key = 0;
    for (; key + kTurns <= keys; key += kTurns) {
      add(0, key);
      if (kTurns == 2) add(kTurns - 1, key + 1);
    }
    for (; key < keys; ++key) add(0, key);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int w = 0; w < kWide; ++w) {
        const Vec sum = kTurns == 2 ? acc[0][r][w] + acc[kTurns - 1][r][w] : acc[0][r][w];
        store(out + r * out_stride + d + w * 16, sum);
      }
  }
}

// One row's scores become weights; maximum and total are brought up to date. Returns the factor
// for what was summed before.
static float weigh_row(const AttentionShape &s, const void *mask, const QueryRows &rows, int row,
                       int64_t key0, int64_t keys, float *scores, float *maximum, float *total) {
  const int64_t padded = round_up(keys, 16);
  Vec unit = broadcast(float(fabs(s.scale) * 1.4426950408889634));
  if (s.softcap > 0) {
    cap_scores(s, padded / 16, scores);
    unit = broadcast(1.0f);
  }
  const int64_t mask_at = rows.batch * s.mask[0] + rows.head[row] * s.mask[1] +
                          rows.token[row] * s.mask[2] + key0 * s.mask[3];
  const Vec hidden = broadcast(-INFINITY), limit = broadcast(rows.limit[row]);
  const Vec before = s.window > 0 ? limit - broadcast(float(s.window)) : broadcast(-FLT_MAX);
  Vec top = hidden;
  for (int64_t i = 0; i < padded; i += 16) {
    const int64_t n = least(16, keys - i);
    Vec x = load(scores + i) * unit;
    if (s.mask_kind != kNoMask) {
      if (s.mask[3] == 1) {
        x = x + mask_vec(s.mask_kind, mask, mask_at + i, n);
      } else {
        float column[16] = {};
        for (int64_t j = 0; j < n; ++j)
          column[j] = mask_value(s.mask_kind, mask, mask_at + (i + j) * s.mask[3]);
        x = x + load(column);
      }
    }
    if (s.causal) {
      const Vec key = broadcast(float(key0 + i)) + iota();
      x = select(le(key, limit) & lt(before, key), x, hidden);
    }
    if (n < 16) x = select(first_lanes(n), x, hidden);
    store(scores + i, x);
    top = max(x, top);
  }
  const float now = fmaxf(greatest(top), *maximum);
  const Vec peak = broadcast(now);
  Vec sums = zero();
  for (int64_t i = 0; i < padded; i += 16) {
    const Vec w = exp2_weight<true>(load(scores + i) - peak);
    sums = sums + w;
    store(scores + i, w);
  }
  float factor[16];
  store(factor, exp2_weight<true>(broadcast(*maximum - now)));
  *maximum = now;
  *total = *total * factor[0] + sum(sums);
  return factor[0];
}

// few_scores of one head's keys from row `key` on, whatever they are stored as.
template <class S, int Rows>
static void block_scores(const AttentionShape &s, const S *head, int64_t key, int64_t keys,
                         const AttentionScratch &scratch, int64_t q_stride) {
  if constexpr (kInGroups<S>) {
    const Int4Pages shape(s.depth);
    if (key >= s.complete)
      return few_scores<float, Rows>(ring_row(shape, head, s.keys / kGroupTokens, key), s.depth,
                                     keys, s.depth, scratch.q, q_stride, scratch.scores);
    for (int64_t i = 0; i < keys; i += kGroupTokens)
      few_scores_int4<Rows>(shape, head + (key + i) / kGroupTokens * shape.page,
                            least(kGroupTokens, keys - i), scratch.q, q_stride, scratch.keys,
                            scratch.scores + i, kKeyBlock);
  } else {
    const S *block = head + key * s.k[2];
    few_scores<S, Rows>(block, s.k[2], keys, s.depth, scratch.q, q_stride, scratch.scores);
    if constexpr (kInBytes<S>)
      times_factors<Rows>(block, s.k[2], s.depth, keys, kKeyBlock, scratch.scores);
  }
}

// few_sums of one head's values from row `key` on.
template <class S, int Rows>
static void block_sums(const AttentionShape &s, const S *head, int64_t key, int64_t keys,
                       const AttentionScratch &scratch, const float *factor, int64_t o_stride) {
  if constexpr (kInGroups<S>) {
    const Int4Pages shape(s.value_depth);
    if (key >= s.complete)
      return few_sums<float, Rows>(ring_row(shape, head, s.keys / kGroupTokens, key),
                                   s.value_depth, keys, s.value_depth, scratch.scores, factor,
                                   scratch.out, o_stride);
    constexpr float kKept[] = {1, 1, 1, 1};
    for (int64_t i = 0; i < keys; i += kGroupTokens)
      few_sums_int4<Rows>(shape, head + (key + i) / kGroupTokens * shape.page,
                          least(kGroupTokens, keys - i), scratch.scores + i, kKeyBlock,
                          i ? kKept : factor, scratch.out, o_stride);
  } else {
    const S *block = head + key * s.v[2];
    if constexpr (kInBytes<S>)
      times_factors<Rows>(block, s.v[2], s.value_depth, keys, kKeyBlock, scratch.scores);
    few_sums<S, Rows>(block, s.v[2], keys, s.value_depth, scratch.scores, factor, scratch.out,
                      o_stride);
  }
}

template <class T, class S, int Rows>
static void attend_few(const AttentionShape &s, const T *q, const S *k, const S *v,
                       const void *mask, const QueryRows &rows, const AttentionScratch &scratch,
                       T *out) {
  const int64_t q_stride = round_up(s.depth, 16), o_stride = round_up(s.value_depth, 64);
  const int64_t kv_head = rows.head[0] / s.group;
  float maximum[Rows], total[Rows], factor[Rows], highest = rows.limit[0], lowest = rows.limit[0];
  memset(scratch.q, 0, size_t(Rows * q_stride) * sizeof(float));
  memset(scratch.out, 0, size_t(Rows * o_stride) * sizeof(float));
  for (int r = 0; r < Rows; ++r) {
    const T *row = q + rows.batch * s.q[0] + rows.head[r] * s.q[1] + rows.token[r] * s.q[2];
    for (int64_t d = 0; d < s.depth; ++d) {
      const float x = to_float(row[d * s.q[3]]);
      scratch.q[r * q_stride + d] = s.scale < 0 ? -x : x;
    }
    highest = fmaxf(highest, rows.limit[r]), lowest = fminf(lowest, rows.limit[r]);
    maximum[r] = -FLT_MAX, total[r] = 0;
  }
  const KeyRange range = key_range(s, lowest, highest);
  const S *k_head = k + rows.batch * s.k[0] + kv_head * s.k[1];
  const S *v_head = v + rows.batch * s.v[0] + kv_head * s.v[1];
  const auto read = [&](int64_t first, int64_t last) {
    for (int64_t key = first, keys; key < last; key += keys) {
      const KeyRun run = key_run(s, rows.batch, key, block_keys<S>(s, key, last));
      keys = run.keys;
      if constexpr (kInGroups<S>)
        if (key >= s.complete) keys = least(keys, kRingTokens - key % kRingTokens);
      block_scores<S, Rows>(s, k_head, run.row, keys, scratch, q_stride);
      for (int r = 0; r < Rows; ++r)
        factor[r] = weigh_row(s, mask, rows, r, key, keys, scratch.scores + r * kKeyBlock,
                              &maximum[r], &total[r]);
      block_sums<S, Rows>(s, v_head, run.row, keys, scratch, factor, o_stride);
    }
  };
  if (s.listed && s.queries == 1) {
    const int64_t *page = s.listed + (rows.batch * s.kv_heads + kv_head) * s.list;
    for (int64_t i = 0, run; i < s.list; i += run) {  // neighbouring pages are read as one
      for (run = 1; i + run < s.list && page[i + run] == page[i] + run;) ++run;
      read(greatest(range.first, page[i] * s.page),
           least(range.last, (page[i] + run) * s.page));
    }
  } else {
    read(range.first - (kInGroups<S> ? range.first % kGroupTokens : 0), range.last);
  }
  for (int r = 0; r < Rows; ++r) {
    total[r] += sink_weight<T>(s, rows.head[r], maximum[r]);
    const Vec scale = broadcast(total[r] == 0 ? 0 : 1 / total[r]);
    float *o = scratch.out + r * o_stride;
    for (int64_t d = 0; d < s.value_depth; d += 16) store(o + d, load(o + d) * scale);
    store_row(s, rows, r, o, out);
    if (s.logsum) store_logsum(s, rows, r, maximum[r], total[r]);
  }
}

// Whether the rows of a block are few enough, and lie so that this file's way is the faster one.
INFOPT_INLINE bool few_rows(const AttentionShape &s, int64_t count) {
  return count <= kFewRows && s.k[3] == 1 && s.v[3] == 1 && s.keys > 0 &&
         s.value_depth >= kFewRows;  // below, the padded sums would not fit the scratch memory
}

template <class T, class S>
static void attend_few_rows(const AttentionShape &s, const T *q, const S *k, const S *v,
                            const void *mask, const QueryRows &rows,
                            const AttentionScratch &scratch, T *out) {
  switch (rows.count) {
    case 1: return attend_few<T, S, 1>(s, q, k, v, mask, rows, scratch, out);
    case 2: return attend_few<T, S, 2>(s, q, k, v, mask, rows, scratch, out);
    case 3: return attend_few<T, S, 3>(s, q, k, v, mask, rows, scratch, out);
    default: return attend_few<T, S, 4>(s, q, k, v, mask, rows, scratch, out);
  }
}

}  // namespace infopt
