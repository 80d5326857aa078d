// All query rows of a range of one key head's group, each as the kernel that suits their number.
#pragma once

#include "attention.h"
#include "attention_decode.h"
#include "attention_output.h"

namespace infopt {

template <class T, class S = T>
struct Operands {
  const T *q;
  const S *k, *v;
  const void *mask;
  T *out;
};

// Rows `row` to `stop` of a key head's group (row = head in group * queries + token).
template <class T, class Steps, class S = T>
static void attend_rows(const AttentionShape &s, const Operands<T, S> &o, int64_t batch,
                        int64_t kv_head, int64_t row, int64_t stop,
                        const AttentionScratch &scratch) {
  QueryRows rows;
  float total[kTaskRows];
  const int64_t most = s.listed && s.queries == 1 ? kFewRows : kMaxLanes * 16;
  for (; row < stop; row += most) {
    const int64_t count = least(most, stop - row), lanes = ceil_div(count, 16);
    query_rows(s, batch, kv_head, row, count, int(lanes), &rows);
    if (few_rows(s, count)) {
      attend_few_rows(s, o.q, o.k, o.v, o.mask, rows, scratch, o.out);
      continue;
    }
    attend<T, Steps, S>(s, o.q, o.k, o.v, o.mask, rows, lanes, scratch, total);
    store_output(s, rows, lanes, scratch.out, total, o.out);
  }
}

// With the dot instruction bf16 pairs meet as they are; elsewhere they widen to f32.
#ifdef __AVX512BF16__
using Bf16Steps = PairSteps;
#else
using Bf16Steps = FloatSteps;
#endif

}  // namespace infopt
