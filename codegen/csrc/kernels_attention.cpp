// Exports: scaled dot-product attention in f32, bf16 and f16.
//
// infopt_attention_{f32,bf16,f16}: out = softmax(scale * q kᵀ, masked) v, accumulated in f32.
//   pointers  q, k, v, mask (null: none), out         q, k, v and out have the kernel's dtype
//   numbers    0 batches B   1 heads Hq   2 kv heads Hkv (Hq % Hkv == 0)   3 queries Tq
//              4 keys Tk     5 depth D    6 value depth Dv
//              7 q, 11 k, 15 v: 4 element strides each, of batch, head, token, feature
//             19 mask: 4 element strides of batch, head, query, key; 0 where it is broadcast
//             23 mask kind: 0 none, 1 bool (true: attend), 2 f32, 3 bf16, 4 f16 (added)
//             24 out: 4 element strides of batch, head, token, feature
//             28 1: out is in token panels [B*Tq, Hq*Dv] (f32 or bf16 as the kernel), no strides
//             29 causal: 1: query i sees key j iff j <= i + offset      30 offset
//             31 window: if > 0, and causal: also only j > i + offset - window
//             32 scale (a double)      33 softcap (a double; 0: none): s = cap * tanh(s / cap)
//   tasks     if Hq > Hkv and Tq <= 16: B * Hkv * ceil(Hq / Hkv * Tq / 64)
//             else: B * Hq * ceil(Tq / 64)
//   scratch   4 * (64 * (D + Dv) + 128 * 64 + 128 * (D + 1 + Dv)) bytes
//
// As torch's scaled_dot_product_attention: a row that sees no key gives 0; a NaN score or an
// infinite one gives NaN; rows masked with the lowest finite float attend to all keys alike.
//
// infopt_ragged_attention_{f32,bf16,f16}: the same for sequences of different lengths that lie one
// after the other: q [N, H, D], k and v [N, Hkv, D], each sequence attending to itself.
//   pointers  q, k, v, starts (int64 [B + 1]: the first row of each sequence, and the end), out
//   numbers    0 sequences B   1 heads Hq   2 kv heads Hkv   3 longest sequence there may be
//              4 rows N        5 depth D    6 value depth Dv
//              7 q, 10 k, 13 v, 16 out: 3 element strides each, of token, head, feature
//             19 scale (a double)
//   tasks     B * Hq * ceil(longest / 64)     scratch   as above
// Rows of out past the last sequence are 0.
//
// infopt_kv_attention_{f32,bf16,f16}: infopt_attention over a cache; query i of sequence b sees key
// j iff j <= starts[b] + i, and with a window also only j > starts[b] + i - window.
//   pointers  q, keys, values, starts (int64 [B]), out     numbers, tasks, scratch as above,
//             without mask; causal is 1, offset is not read
//
// infopt_kv_attention_int8_{f32,bf16,f16}: the same with keys and values in bytes: rows of D bytes
// and a factor (f32), so that strides count bytes.
//
// infopt_attention_part_{f32,bf16,f16}: infopt_attention, and of each row of scores the logarithm of
// its sum of exponentials, so that results over parts of the keys can be merged
//   pointers  q, k, v, mask, out, logsum (f32 [B, Hq, Tq])     numbers, tasks, scratch as above
//
// infopt_attention_sinks_{f32,bf16,f16}: infopt_attention with one more score in the softmax of each
// row, which has no value
//   pointers  q, k, v, mask, out, sinks (the kernel's dtype [Hq])     numbers, tasks, scratch as above
//
// infopt_kv_attention_pages_{f32,bf16,f16}: infopt_kv_attention; where Tq is 1, only over the pages
// that are listed, in ascending order
//   pointers  q, keys, values, starts, pages (int64 [B, Hkv, numbers[34]]), out
//   numbers   as above, 34 pages of a list   35 keys of a page     tasks, scratch as above
//
// infopt_kv_attention_paged_{f32,bf16,f16}, _paged_int8_{...}: infopt_kv_attention where sequences
// have their keys in pages of one store that all share, keys and values [1, Hkv, rows, D]
//   pointers  q, keys, values, starts, table (int64 [B, numbers[34]]), out
//   numbers   as above, 34 pages of a sequence   35 keys of a page   36 pages of the store; Tk is the
//             product of 34 and 35, strides of batch of k and v are 0     tasks, scratch as above
// Numbers of pages outside the store are taken for the nearest one inside.
//
// infopt_kv_attention_int4_{f32,bf16,f16}: the same over groups of tokens in 4 bits (kv_int4.h);
// pointer 5 is counts (int64 [B]): of sequence b, all groups that end at or before starts[b] +
// counts[b] are complete. Strides of k and v count bytes, those of token and feature are not read;
// Tk is a multiple of 32.
#include "attention_rows.h"

namespace infopt {

enum AttentionKind { kPlain, kPart, kSinks };

template <class T, class Steps, AttentionKind Kind = kPlain>
static void attention(const infopt_call *call, int64_t first_task, int64_t last_task) {
  AttentionShape s = attention_shape(call);
  if (Kind == kPart) s.logsum = pointer<float>(call, 5);
  if (Kind == kSinks) s.sinks = pointer<void>(call, 5);
  const AttentionScratch scratch(s, call->scratch);
  const int64_t head_blocks = s.blocks / (s.packed ? 1 : s.group);
  for (int64_t task = first_task; task < last_task; ++task) {
    const int64_t kv = task / s.blocks, block = task % s.blocks;
    const int64_t start = s.packed ? 0 : block / head_blocks * s.queries;
    const int64_t end = s.packed ? s.group * s.queries : start + s.queries;
    const int64_t row = start + block % head_blocks * kTaskRows;
    attend_rows<T, Steps>(s, {pointer<T>(call, 0), pointer<T>(call, 1), pointer<T>(call, 2),
                              pointer<void>(call, 3), pointer<T>(call, 4)},
                          kv / s.kv_heads, kv % s.kv_heads, row, least(end, row + kTaskRows),
                          scratch);
  }
}

// The first token that is not in a group: all before the last new one are where they belong.
static int64_t complete_tokens(const AttentionShape &s, int64_t start, int64_t count) {
  const int64_t end = least(start + least(count, s.queries), s.keys);
  return end - end % kGroupTokens;
}

enum KeysRead { kInOrder, kListed, kPaged };

// The keys of a cache: how many of them a sequence sees is read from `starts`.
template <class T, class Steps, class S = T, KeysRead Read = kInOrder>
static void kv_attention(const infopt_call *call, int64_t first_task, int64_t last_task) {
  AttentionShape s = attention_shape(call);
  if (Read != kInOrder) {
    (Read == kListed ? s.listed : s.table) = pointer<int64_t>(call, 4);
    s.list = call->numbers[34], s.page = call->numbers[35];
    if (Read == kPaged) s.pages = call->numbers[36];
  }
  s.mask_kind = kNoMask;
  const int64_t *starts = pointer<int64_t>(call, 3);
  const AttentionScratch scratch(s, call->scratch);
  const Operands<T, S> operands = {pointer<T>(call, 0), pointer<S>(call, 1), pointer<S>(call, 2),
                                   nullptr, pointer<T>(call, Read == kInOrder ? 4 : 5)};
  const int64_t head_blocks = s.blocks / (s.packed ? 1 : s.group);
  for (int64_t task = first_task; task < last_task; ++task) {
    const int64_t kv = task / s.blocks, block = task % s.blocks, batch = kv / s.kv_heads;
    const int64_t start = s.packed ? 0 : block / head_blocks * s.queries;
    const int64_t end = s.packed ? s.group * s.queries : start + s.queries;
    const int64_t row = start + block % head_blocks * kTaskRows;
    s.offset = starts[batch];
    if (kInGroups<S>) s.complete = complete_tokens(s, starts[batch], pointer<int64_t>(call, 5)[batch]);
    attend_rows<T, Steps, S>(s, operands, batch, kv % s.kv_heads, row,
                             least(end, row + kTaskRows), scratch);
  }
}

// Sequences one after the other: each is a batch of its own, at its own place and length. A task
// is one head's block of rows of the longest sequence there may be; shorter ones have none there.
template <class T, class Steps>
static void ragged_attention(const infopt_call *call, int64_t first_task, int64_t last_task) {
  const int64_t *n = call->numbers, *starts = pointer<int64_t>(call, 3);
  AttentionShape s = {};
  s.batches = 1, s.heads = n[1], s.kv_heads = n[2], s.depth = n[5], s.value_depth = n[6];
  for (int i = 0; i < 3; ++i) {  // token, head, feature
    const int axis = i == 0 ? 2 : i == 1 ? 1 : 3;
    s.q[axis] = n[7 + i], s.k[axis] = n[10 + i], s.v[axis] = n[13 + i], s.out[axis] = n[16 + i];
  }
  s.mask_kind = kNoMask, s.scale = as_double(n[19]), s.group = s.heads / s.kv_heads;
  const AttentionScratch scratch(s, call->scratch);
  const int64_t blocks = ceil_div(n[3], kTaskRows), rows = n[4];
  for (int64_t task = first_task; task < last_task; ++task) {
    const int64_t sequence = task / (s.heads * blocks), head = task / blocks % s.heads;
    const int64_t token = starts[sequence], row = task % blocks * kTaskRows;
    s.queries = s.keys = least(starts[sequence + 1], rows) - token;
    if (row < s.queries) {
      const int64_t first = head % s.group * s.queries;
      attend_rows<T, Steps>(
          s, {pointer<T>(call, 0) + token * s.q[2], pointer<T>(call, 1) + token * s.k[2],
              pointer<T>(call, 2) + token * s.v[2], nullptr, pointer<T>(call, 4) + token * s.out[2]},
          0, head / s.group, first + row, first + least(s.queries, row + kTaskRows), scratch);
    }
  }
  if (last_task < n[0] * s.heads * blocks) return;
  for (int64_t token = starts[n[0]]; token < rows; ++token) {
    for (int64_t i = 0; i < s.heads * s.value_depth; ++i) {
      pointer<T>(call, 4)[token * s.out[2] + i / s.value_depth * s.out[1] +
                          i % s.value_depth * s.out[3]] = T{0};
    }
  }
}

}  // namespace infopt

using namespace infopt;

#define INFOPT_ATTENTION(name, ...)                                                              \
  INFOPT_EXPORT void infopt_##name(const infopt_call *call, int64_t first, int64_t last) {       \
    __VA_ARGS__(call, first, last);                                                              \
  }
INFOPT_ATTENTION(attention_f32, attention<float, FloatSteps>)
INFOPT_ATTENTION(attention_bf16, attention<bf16, Bf16Steps>)
INFOPT_ATTENTION(attention_f16, attention<f16, FloatSteps>)
INFOPT_ATTENTION(attention_part_f32, attention<float, FloatSteps, kPart>)
INFOPT_ATTENTION(attention_part_bf16, attention<bf16, Bf16Steps, kPart>)
INFOPT_ATTENTION(attention_part_f16, attention<f16, FloatSteps, kPart>)
INFOPT_ATTENTION(attention_sinks_f32, attention<float, FloatSteps, kSinks>)
INFOPT_ATTENTION(attention_sinks_bf16, attention<bf16, Bf16Steps, kSinks>)
INFOPT_ATTENTION(attention_sinks_f16, attention<f16, FloatSteps, kSinks>)
INFOPT_ATTENTION(ragged_attention_f32, ragged_attention<float, FloatSteps>)
INFOPT_ATTENTION(ragged_attention_bf16, ragged_attention<bf16, Bf16Steps>)
INFOPT_ATTENTION(ragged_attention_f16, ragged_attention<f16, FloatSteps>)
INFOPT_ATTENTION(kv_attention_f32, kv_attention<float, FloatSteps>)
INFOPT_ATTENTION(kv_attention_bf16, kv_attention<bf16, Bf16Steps>)
INFOPT_ATTENTION(kv_attention_f16, kv_attention<f16, FloatSteps>)
INFOPT_ATTENTION(kv_attention_int8_f32, kv_attention<float, FloatSteps, i8>)
INFOPT_ATTENTION(kv_attention_int8_bf16, kv_attention<bf16, Bf16Steps, i8>)
INFOPT_ATTENTION(kv_attention_int8_f16, kv_attention<f16, FloatSteps, i8>)
INFOPT_ATTENTION(kv_attention_int4_f32, kv_attention<float, FloatSteps, i4>)
INFOPT_ATTENTION(kv_attention_int4_bf16, kv_attention<bf16, Bf16Steps, i4>)
INFOPT_ATTENTION(kv_attention_int4_f16, kv_attention<f16, FloatSteps, i4>)
INFOPT_ATTENTION(kv_attention_pages_f32, kv_attention<float, FloatSteps, float, kListed>)
INFOPT_ATTENTION(kv_attention_pages_bf16, kv_attention<bf16, Bf16Steps, bf16, kListed>)
INFOPT_ATTENTION(kv_attention_pages_f16, kv_attention<f16, FloatSteps, f16, kListed>)
INFOPT_ATTENTION(kv_attention_paged_f32, kv_attention<float, FloatSteps, float, kPaged>)
INFOPT_ATTENTION(kv_attention_paged_bf16, kv_attention<bf16, Bf16Steps, bf16, kPaged>)
INFOPT_ATTENTION(kv_attention_paged_f16, kv_attention<f16, FloatSteps, f16, kPaged>)
INFOPT_ATTENTION(kv_attention_paged_int8_f32, kv_attention<float, FloatSteps, i8, kPaged>)
INFOPT_ATTENTION(kv_attention_paged_int8_bf16, kv_attention<bf16, Bf16Steps, i8, kPaged>)
INFOPT_ATTENTION(kv_attention_paged_int8_f16, kv_attention<f16, FloatSteps, i8, kPaged>)
#undef INFOPT_ATTENTION
