// What one attention call says in its numbers, and how its query rows are divided into tasks.
#pragma once

#include <float.h>
#include <math.h>

#include "vec.h"

namespace infopt {

constexpr int kTaskRows = 64;    // query rows of one task
constexpr int kKeyBlock = 128;   // keys scored before their values are summed

enum MaskKind { kNoMask, kBoolMask, kFloatMask, kBf16Mask, kF16Mask };

struct AttentionShape {
  int64_t batches, heads, kv_heads, queries, keys, depth, value_depth;
  int64_t q[4], k[4], v[4];  // element strides of batch, head, token, feature
  int64_t mask[4];           // element strides of batch, head, query, key; 0 where broadcast
  int64_t out[4];
  MaskKind mask_kind;
  bool panels;               // out is in token panels; its strides are ignored
  bool causal;               // key j is seen by query i iff j <= i + offset
  int64_t offset, window;    // and, with window > 0, iff j > i + offset - window
  double scale, softcap;     // softcap 0: none
  int64_t group;             // query heads of one key head
  bool packed;               // a task's rows may belong to several heads of a group
  int64_t blocks;            // tasks of one (batch, key head)
  int64_t complete;          // keys in groups of tokens: those from here on are not, yet
  const int64_t *listed;     // [batch][key head][list]: the pages to read, ascending; null: all
  const int64_t *table;      // [batch][list]: the pages of a sequence, in its order; null: none
  int64_t list, page;        // the number of a list, and the keys of a page
  int64_t pages;             // of the store that `table` counts
  const void *sinks;         // [head], of q's dtype: a score without a value; null: none
  float *logsum;             // [batch][head][query]: log of the sum of exponentials; null: not asked
};

INFOPT_INLINE AttentionShape attention_shape(const infopt_call *call) {
  const int64_t *n = call->numbers;
  AttentionShape s;
  s.batches = n[0], s.heads = n[1], s.kv_heads = n[2], s.queries = n[3], s.keys = n[4];
  s.depth = n[5], s.value_depth = n[6];
  for (int i = 0; i < 4; ++i) {
    s.q[i] = n[7 + i], s.k[i] = n[11 + i], s.v[i] = n[15 + i];
    s.mask[i] = n[19 + i], s.out[i] = n[24 + i];
  }
  s.mask_kind = pointer<void>(call, 3) ? MaskKind(n[23]) : kNoMask;
  s.panels = n[28], s.causal = n[29], s.offset = n[30], s.window = n[31];
  s.scale = as_double(n[32]), s.softcap = as_double(n[33]);
  s.group = s.heads / s.kv_heads;
  s.packed = s.group > 1 && s.queries <= 16;
  s.blocks = s.packed ? ceil_div(s.group * s.queries, kTaskRows)
                      : s.group * ceil_div(s.queries, kTaskRows);
  s.complete = 0, s.listed = s.table = nullptr, s.logsum = nullptr, s.sinks = nullptr;
  return s;
}

// The query rows in the lanes of one block. Lanes past `count` repeat the last row: they are
// computed and never stored.
struct QueryRows {
  int64_t batch, count;
  int64_t head[kTaskRows], token[kTaskRows];
  float limit[kTaskRows];  // the last key each row may see, as far as causality goes
};

// Rows `first` to `first + count` of a key head's group; row = head in group * queries + token.
INFOPT_INLINE void query_rows(const AttentionShape &s, int64_t batch, int64_t kv_head,
                              int64_t first, int64_t count, int lanes, QueryRows *rows) {
  rows->batch = batch, rows->count = count;
  for (int i = 0; i < lanes * 16; ++i) {
    const int64_t r = first + (i < count ? i : count - 1);
    rows->head[i] = kv_head * s.group + r / s.queries;
    rows->token[i] = r % s.queries;
    rows->limit[i] = s.causal ? float(rows->token[i] + s.offset) : FLT_MAX;
  }
}

// What a head's sink adds to the sum of weights; maximum: in units of log2, as the weights are.
template <class T>
INFOPT_INLINE float sink_weight(const AttentionShape &s, int64_t head, float maximum) {
  if (!s.sinks) return 0;
  return exp2f(to_float(((const T *)s.sinks)[head]) * 1.4426950408889634f - maximum);
}

// Where a sequence's key `key` lies, as a row of the store, and how many of `keys` follow it there:
// pages that are neighbours in the store too are read as one.
struct KeyRun { int64_t row, keys; };
INFOPT_INLINE KeyRun key_run(const AttentionShape &s, int64_t batch, int64_t key, int64_t keys) {
  if (!s.table) return {key, keys};
  const int64_t *entry = s.table + batch * s.list + key / s.page, within = key % s.page;
  const int64_t page = least(greatest(*entry, 0), s.pages - 1);
  int64_t run = s.page - within;
  for (int64_t next = page + 1; run < keys && *++entry == next && next < s.pages; ++next)
    run += s.page;
  return {page * s.page + within, least(run, keys)};
}

// The keys that any of a block's rows may see, given the least and the greatest limit.
struct KeyRange { int64_t first, last; };
INFOPT_INLINE KeyRange key_range(const AttentionShape &s, float lowest, float highest) {
  if (!s.causal) return {0, s.keys};
  const int64_t last = greatest(0, least(s.keys, int64_t(highest) + 1));
  return {s.window > 0 ? greatest(0, int64_t(lowest) - s.window + 1) : 0, last};
}

}  // namespace infopt
