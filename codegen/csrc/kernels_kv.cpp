// Exports: writing the new keys or values of each sequence into its cache, in place.
//
// infopt_kv_append: store[b][h][starts[b] + t] = x[b][h][t] for t < counts[b], where that is inside
//   pointers  x, starts (int64 [B]), counts (int64 [B]), store [B, H, S, D]
//   numbers    0 sequences B   1 heads H   2 tokens T of x   3 tokens S of the store
//              4 bytes of a row of D features
//              5 x, 8 store: 3 strides each in bytes, of sequence, head, token
//   tasks     B * H
//
// infopt_kv_append_int8_{f32,bf16,f16}: the same into bytes: each row becomes round(row / factor)
// in 8 bits, then its factor (f32), the largest magnitude / 127; 4 is D, strides of x in elements.
//
// infopt_kv_append_paged, infopt_kv_append_paged_int8_{f32,bf16,f16}: the two into pages of a store
// that all sequences share: token place of sequence b goes to row table[b][place / page] * page +
// place % page, where that is inside
//   pointers  x, starts, counts, table (int64 [B, numbers[11]]), store [1, H, S, D]
//   numbers   as above, 11 pages of a sequence   12 tokens of a page     tasks  B * H
//
// infopt_kv_append_int4_{f32,bf16,f16}: the same into groups of tokens in 4 bits (kv_int4.h): rows go
// to the ring, and a group that they complete becomes a page; 3 is pages * 32, 4 is D, strides of x
// in elements, 8 store: 2 strides in bytes, of sequence and head, 10 1: values, else keys;
// scratch 32 * wide floats.
#include <float.h>
#include <math.h>

#include "kv_bytes.h"
#include "kv_int4.h"

namespace infopt {

static void kv_append(const infopt_call *call, int64_t first, int64_t last) {
  const int64_t *n = call->numbers;
  const int64_t heads = n[1], tokens = n[2], room = n[3], bytes = n[4];
  const char *x = pointer<char>(call, 0);
  const int64_t *starts = pointer<int64_t>(call, 1), *counts = pointer<int64_t>(call, 2);
  char *store = pointer<char>(call, 3);
  for (int64_t task = first; task < last; ++task) {
    const int64_t batch = task / heads, head = task % heads, start = starts[batch];
    if (start < 0) continue;
    const int64_t count = least(least(counts[batch], tokens), room - start);
    const char *from = x + batch * n[5] + head * n[6];
    char *to = store + batch * n[8] + head * n[9] + start * n[10];
    for (int64_t t = 0; t < count; ++t) memcpy(to + t * n[10], from + t * n[7], size_t(bytes));
  }
}

template <class T>
static void row_to_bytes(const T *x, int64_t depth, int8_t *to) {
  float largest = 0;
  for (int64_t d = 0; d < depth; ++d) {
    const float size = fabsf(to_float(x[d]));
    if (size > largest || size != size) largest = size;  // a NaN stays
  }
  const float factor = largest / 127.0f, inverse = 127.0f / largest;
  const bool usual = inverse > 0 && inverse <= FLT_MAX;  // else the factor alone tells
  for (int64_t d = 0; d < depth; ++d)
    to[d] = usual ? int8_t(nearbyintf(to_float(x[d]) * inverse)) : int8_t(0);
  memcpy(to + depth, &factor, sizeof factor);
}

template <class T>
static void kv_append_int8(const infopt_call *call, int64_t first, int64_t last) {
  const int64_t *n = call->numbers;
  const int64_t heads = n[1], tokens = n[2], room = n[3], depth = n[4];
  const T *x = pointer<T>(call, 0);
  const int64_t *starts = pointer<int64_t>(call, 1), *counts = pointer<int64_t>(call, 2);
  int8_t *store = pointer<int8_t>(call, 3);
  for (int64_t task = first; task < last; ++task) {
    const int64_t batch = task / heads, head = task % heads, start = starts[batch];
    if (start < 0) continue;
    const int64_t count = least(least(counts[batch], tokens), room - start);
    const T *from = x + batch * n[5] + head * n[6];
    int8_t *to = store + batch * n[8] + head * n[9] + start * n[10];
    for (int64_t t = 0; t < count; ++t) row_to_bytes(from + t * n[7], depth, to + t * n[10]);
  }
}

// put(from, to): one row, `from` in units of the strides of x, `to` in those of the store.
template <class T, class U, class Put>
static void kv_append_paged(const infopt_call *call, int64_t first, int64_t last, Put put) {
  const int64_t *n = call->numbers;
  const int64_t heads = n[1], tokens = n[2], room = n[3], list = n[11], page = n[12];
  const int64_t *starts = pointer<int64_t>(call, 1), *counts = pointer<int64_t>(call, 2);
  for (int64_t task = first; task < last; ++task) {
    const int64_t batch = task / heads, head = task % heads, start = starts[batch];
    const int64_t *table = pointer<int64_t>(call, 3) + batch * list;
    const int64_t count = start < 0 ? 0 : least(least(counts[batch], tokens), list * page - start);
    const T *from = pointer<T>(call, 0) + batch * n[5] + head * n[6];
    U *to = pointer<U>(call, 4) + head * n[9];
    for (int64_t t = 0; t < count; ++t) {
      const int64_t at = table[(start + t) / page], row = at * page + (start + t) % page;
      if (at >= 0 && row < room) put(from + t * n[7], to + row * n[10]);
    }
  }
}

template <class T>
static void kv_append_paged_int8(const infopt_call *call, int64_t first, int64_t last) {
  const int64_t depth = call->numbers[4];
  kv_append_paged<T, int8_t>(call, first, last, [depth](const T *from, int8_t *to) {
    row_to_bytes(from, depth, to);
  });
}

template <class T>
static void kv_append_int4(const infopt_call *call, int64_t first, int64_t last) {
  const int64_t *n = call->numbers;
  const int64_t heads = n[1], tokens = n[2], room = n[3], pages = room / kGroupTokens;
  const Int4Pages shape(n[4]);
  const int64_t *starts = pointer<int64_t>(call, 1), *counts = pointer<int64_t>(call, 2);
  float *group = static_cast<float *>(call->scratch);
  for (int64_t task = first; task < last; ++task) {
    const int64_t batch = task / heads, head = task % heads, start = starts[batch];
    if (start < 0) continue;
    const int64_t end = start + least(least(counts[batch], tokens), room - start);
    const T *from = pointer<T>(call, 0) + batch * n[5] + head * n[6];
    i4 *to = pointer<i4>(call, 3) + batch * n[8] + head * n[9];
    for (int64_t token = start; token < end; ++token) {
      const T *x = from + (token - start) * n[7];
      float *row = const_cast<float *>(ring_row(shape, to, pages, token));
      for (int64_t d = 0; d < shape.depth; ++d) row[d] = to_float(x[d]);
      if ((token + 1) % kGroupTokens) continue;
      const int64_t group_start = token + 1 - kGroupTokens;
      memset(group, 0, size_t(kGroupTokens * shape.wide) * sizeof(float));
      for (int64_t t = 0; t < kGroupTokens; ++t)
        memcpy(group + t * shape.wide, ring_row(shape, to, pages, group_start + t),
               size_t(shape.depth) * sizeof(float));
      to_page(shape, group, n[10], to + group_start / kGroupTokens * shape.page);
    }
  }
}

}  // namespace infopt

using namespace infopt;

INFOPT_EXPORT void infopt_kv_append(const infopt_call *call, int64_t first, int64_t last) {
  kv_append(call, first, last);
}

INFOPT_EXPORT void infopt_kv_append_paged(const infopt_call *call, int64_t first, int64_t last) {
  const size_t bytes = size_t(call->numbers[4]);
  kv_append_paged<char, char>(
      call, first, last, [bytes](const char *from, char *to) { memcpy(to, from, bytes); });
}

#define INFOPT_APPEND(name, run)                                                            \
  INFOPT_EXPORT void infopt_##name(const infopt_call *call, int64_t first, int64_t last) {  \
    run(call, first, last);                                                                 \
  }
INFOPT_APPEND(kv_append_int8_f32, kv_append_int8<float>)
INFOPT_APPEND(kv_append_int8_bf16, kv_append_int8<bf16>)
INFOPT_APPEND(kv_append_int8_f16, kv_append_int8<f16>)
INFOPT_APPEND(kv_append_int4_f32, kv_append_int4<float>)
INFOPT_APPEND(kv_append_int4_bf16, kv_append_int4<bf16>)
INFOPT_APPEND(kv_append_int4_f16, kv_append_int4<f16>)
INFOPT_APPEND(kv_append_paged_int8_f32, kv_append_paged_int8<float>)
INFOPT_APPEND(kv_append_paged_int8_bf16, kv_append_paged_int8<bf16>)
INFOPT_APPEND(kv_append_paged_int8_f16, kv_append_paged_int8<f16>)
#undef INFOPT_APPEND
