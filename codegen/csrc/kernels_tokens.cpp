// Exports: merging and dropping tokens. A map, int64 [B, T], is the place of each token, or -1.
// All tensors are contiguous; sizes are f32 [B, T] or null; dtypes are the codes of element.h.
#include "received.h"
#include "tokens.h"

// infopt_token_partners: the best partner of each token at an even position, T / 2 rounded up of them
//   pointers  metric [B, T, D], size|null, out: cosines f32 [B, T / 2], then partners i32 [B, T / 2]
//   numbers   0 T  1 D  2 dtype of metric  3 R tokens of a task  4 B
//   tasks     B * ceil(ceil(T / 2) / R)    scratch  4 * (roundup(T / 2, 16) + 4 * D) bytes
INFOPT_EXPORT void infopt_token_partners(const infopt_call *call, int64_t first, int64_t last) {
  using namespace infopt;
  const int64_t *n = call->numbers;
  const int64_t tokens = n[0], depth = n[1], even = (tokens + 1) / 2, parts = ceil_div(even, n[3]);
  float *values = pointer<float>(call, 2);
  int32_t *partners = reinterpret_cast<int32_t *>(values + n[4] * even);
  for (int64_t task = first; task < last; ++task) {
    const int64_t b = task / parts, begin = task % parts * n[3];
    const float *size = pointer<float>(call, 1);
    with_float_type(n[2], [&](auto type) {
      best_partners(pointer<decltype(type)>(call, 0) + b * tokens * depth,
                    size ? size + b * tokens : nullptr, tokens, depth, begin,
                    least(even, begin + n[3]), static_cast<float *>(call->scratch),
                    values + b * even, partners + b * even);
    });
  }
}

// infopt_match_tokens: maps T tokens to K places by the partners above
//   pointers  partners, size|null, out    numbers  0 T  1 K  2 first  3 B
//   tasks     B    scratch  12 * roundup(T, 16) bytes
INFOPT_EXPORT void infopt_match_tokens(const infopt_call *call, int64_t first, int64_t last) {
  using namespace infopt;
  const int64_t *n = call->numbers;
  const int64_t tokens = n[0], even = (tokens + 1) / 2;
  const float *values = pointer<float>(call, 0);
  const int32_t *partners = reinterpret_cast<const int32_t *>(values + n[3] * even);
  float *value = static_cast<float *>(call->scratch);
  int32_t *partner = reinterpret_cast<int32_t *>(value + round_up(tokens, 16));
  int32_t *order = partner + round_up(tokens, 16);
  for (int64_t b = first; b < last; ++b) {
    const float *size = pointer<float>(call, 1);
    int64_t *out = pointer<int64_t>(call, 2) + b * tokens;
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t i = b * even + t / 2;
      value[t] = t % 2 ? -INFINITY : values[i];
      partner[t] = t % 2 ? 0 : partners[i];
    }
    if (size) gather_padding(size + b * tokens, tokens, value, partner);
    for (int64_t t = 0; t < least(n[2], tokens); ++t) value[t] = -INFINITY;
    greatest_first(value, order, tokens, tokens - n[1]);
    for (int64_t t = 0; t < tokens; ++t) value[t] = 0;
    for (int64_t i = 0; i < tokens - n[1]; ++i) value[order[i]] = 1;  // it goes
    // order becomes the place of each token, or of the one before it that stays
    for (int64_t t = 0, kept = 0; t < tokens; ++t) order[t] = int32_t((kept += value[t] == 0) - 1);
    for (int64_t t = 0; t < tokens; ++t)
      out[t] = greatest(order[value[t] == 0 ? t : partner[t]], 0);
  }
}

// infopt_rank_tokens: the K tokens of the highest score [B, T] keep their order
//   pointers  score, size|null, out    numbers  0 T  1 K  2 first  3 dtype of score
//   tasks     B    scratch  8 * roundup(T, 16) bytes
INFOPT_EXPORT void infopt_rank_tokens(const infopt_call *call, int64_t first, int64_t last) {
  using namespace infopt;
  const int64_t *n = call->numbers, tokens = n[0];
  float *value = static_cast<float *>(call->scratch);
  int32_t *order = reinterpret_cast<int32_t *>(value + round_up(tokens, 16));
  for (int64_t b = first; b < last; ++b) {
    const float *size = pointer<float>(call, 1);
    const void *score = at(pointer<void>(call, 0), n[3], b * tokens);
    int64_t *out = pointer<int64_t>(call, 2) + b * tokens;
    each_vec(tokens, [&](int64_t i, int64_t lanes) {
      store(value + i, load_element(score, n[3], i, lanes), lanes);
    });
    for (int64_t t = 0; t < tokens; ++t) {
      if (value[t] != value[t] || (size && size[b * tokens + t] == 0)) value[t] = -INFINITY;
      if (t < n[2]) value[t] = INFINITY;
      out[t] = -1;
    }
    greatest_first(value, order, tokens, n[1]);
    for (int64_t i = 0; i < least(tokens, n[1]); ++i) out[order[i]] = 0;
    int64_t place = 0;
    for (int64_t t = 0; t < tokens; ++t)
      if (out[t] == 0) out[t] = place++;
  }
}

// infopt_merge_rows: weighted means of the rows of x [B, T, W] that come to each of K places
//   pointers  x, map, size|null, out    numbers  0 T  1 W  2 K  3 C columns of a task  4 dtype of x
//   tasks     B * ceil(W / C)    scratch  4 * (C + 1) * roundup(K, 16) bytes
INFOPT_EXPORT void infopt_merge_rows(const infopt_call *call, int64_t first, int64_t last) {
  using namespace infopt;
  const int64_t *n = call->numbers;
  const int64_t tokens = n[0], width = n[1], keep = n[2], columns = n[3], e = n[4];
  const int64_t parts = ceil_div(width, columns);
  float *sums = static_cast<float *>(call->scratch), *total = sums + keep * columns;
  for (int64_t task = first; task < last; ++task) {
    const int64_t b = task / parts, begin = task % parts * columns;
    const float *size = pointer<float>(call, 2);
    merge_columns(at(pointer<void>(call, 0), e, b * tokens * width), e,
                  pointer<int64_t>(call, 1) + b * tokens, size ? size + b * tokens : nullptr,
                  tokens, width, keep, begin, least(columns, width - begin), columns, sums, total,
                  at(pointer<void>(call, 3), e, b * keep * width));
  }
}

// infopt_merge_sizes: the sum of the sizes that come to each of K places, or their number
//   pointers  map, size|null, out (f32)    numbers  0 T  1 K    tasks  B
INFOPT_EXPORT void infopt_merge_sizes(const infopt_call *call, int64_t first, int64_t last) {
  using namespace infopt;
  const int64_t tokens = call->numbers[0], keep = call->numbers[1];
  const float *size = pointer<float>(call, 1);
  for (int64_t b = first; b < last; ++b) {
    const int64_t *place = pointer<int64_t>(call, 0) + b * tokens;
    float *out = pointer<float>(call, 2) + b * keep;
    memset(out, 0, size_t(keep) * sizeof(float));
    for (int64_t t = 0; t < tokens; ++t)
      if (place[t] >= 0) out[place[t]] += size ? size[b * tokens + t] : 1.0f;
  }
}

// infopt_unmerge_rows: each token's row of y [B, K, W] by its place, of old [B, T, W] without one
//   pointers  y, map, old|null, out    numbers  0 T  1 K  2 bytes of a row  3 R rows of a task
//   tasks     B * ceil(T / R)
INFOPT_EXPORT void infopt_unmerge_rows(const infopt_call *call, int64_t first, int64_t last) {
  using namespace infopt;
  const int64_t *n = call->numbers;
  const int64_t tokens = n[0], keep = n[1], bytes = n[2], parts = ceil_div(tokens, n[3]);
  const char *y = pointer<char>(call, 0), *old = pointer<char>(call, 2);
  char *out = pointer<char>(call, 3);
  for (int64_t task = first; task < last; ++task) {
    const int64_t b = task / parts, begin = task % parts * n[3];
    for (int64_t t = begin; t < least(tokens, begin + n[3]); ++t) {
      const int64_t row = b * tokens + t, place = pointer<int64_t>(call, 1)[row];
      const bool stays = old && place < 0;
      const char *from =
          stays ? old + row * bytes : y + (b * keep + greatest(place, 0)) * bytes;
      memcpy(out + row * bytes, from, size_t(bytes));
    }
  }
}

// infopt_attention_received: out[b][h][key] = the mean over queries of softmax(scale q kT + bias)
//   pointers  q [B, H, T, D], k [B, H / groups, S, D], bias|null (f32 [B, S]), out (f32 [B, H, S])
//   numbers   0 T  1 S  2 D  3 H  4 heads of k  5 q strides of batch, head, token  8 k's
//             11 dtype of q and k  12 scale (a double)
//   tasks     B * H    scratch  4 * (roundup(S, 16) * (D + 5) + 4 * D + 16) bytes
INFOPT_EXPORT void infopt_attention_received(const infopt_call *call, int64_t first, int64_t last) {
  using namespace infopt;
  const int64_t *n = call->numbers;
  const Received s = {n[0], n[1], n[2], n[11], n[7], n[10], float(as_double(n[12]))};
  const int64_t heads = n[3], groups = n[3] / n[4], width = round_up(s.keys, 16);
  float *columns = static_cast<float *>(call->scratch), *received = columns + width * s.depth;
  float *scores = received + width, *row = scores + 4 * width;
  for (int64_t task = first; task < last; ++task) {
    const int64_t b = task / heads, h = task % heads;
    const void *q = at(pointer<void>(call, 0), s.element, b * n[5] + h * n[6]);
    const void *k = at(pointer<void>(call, 1), s.element, b * n[8] + h / groups * n[9]);
    const float *bias = pointer<float>(call, 2);
    key_columns(s, k, columns);
    memset(received, 0, size_t(width) * sizeof(float));
    for (int64_t t = 0; t < s.queries; t += 4)
      four_queries(s, q, t, columns, bias ? bias + b * s.keys : nullptr, row, scores, received);
    float *out = pointer<float>(call, 3) + task * s.keys;
    for (int64_t j = 0; j < s.keys; ++j) out[j] = received[j] / float(s.queries);
  }
}
