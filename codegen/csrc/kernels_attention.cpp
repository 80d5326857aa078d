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
#include "attention.h"
#include "attention_decode.h"
#include "attention_output.h"

namespace infopt {

template <class T, class Steps>
static void attention(const infopt_call *call, int64_t first_task, int64_t last_task) {
  const AttentionShape s = attention_shape(call);
  const AttentionScratch scratch(s, call->scratch);
  const int64_t head_blocks = s.blocks / (s.packed ? 1 : s.group);
  QueryRows rows;
  float total[kTaskRows];
  for (int64_t task = first_task; task < last_task; ++task) {
    const int64_t kv = task / s.blocks, block = task % s.blocks;
    const int64_t start = s.packed ? 0 : block / head_blocks * s.queries;
    const int64_t end = s.packed ? s.group * s.queries : start + s.queries;
    int64_t row = start + block % head_blocks * kTaskRows;
    for (const int64_t stop = least(end, row + kTaskRows); row < stop; row += kMaxLanes * 16) {
      const int64_t count = least(kMaxLanes * 16, stop - row), lanes = ceil_div(count, 16);
      query_rows(s, kv / s.kv_heads, kv % s.kv_heads, row, count, int(lanes), &rows);
      const T *q = pointer<T>(call, 0), *k = pointer<T>(call, 1), *v = pointer<T>(call, 2);
      const void *mask = pointer<void>(call, 3);
      if (few_rows(s, count)) {
        attend_few_rows(s, q, k, v, mask, rows, scratch, pointer<T>(call, 4));
        continue;
      }
      attend<T, Steps>(s, q, k, v, mask, rows, lanes, scratch, total);
      store_output(s, rows, lanes, scratch.out, total, pointer<T>(call, 4));
    }
  }
}

}  // namespace infopt

INFOPT_EXPORT void infopt_attention_f32(const infopt_call *call, int64_t first, int64_t last) {
  infopt::attention<float, infopt::FloatSteps>(call, first, last);
}

INFOPT_EXPORT void infopt_attention_bf16(const infopt_call *call, int64_t first, int64_t last) {
#ifdef __AVX512BF16__
  infopt::attention<infopt::bf16, infopt::PairSteps>(call, first, last);
#else
  infopt::attention<infopt::bf16, infopt::FloatSteps>(call, first, last);
#endif
}

INFOPT_EXPORT void infopt_attention_f16(const infopt_call *call, int64_t first, int64_t last) {
  infopt::attention<infopt::f16, infopt::FloatSteps>(call, first, last);
}
