// Exports: rows of a cache by their places, and the best of scores.
//
// infopt_kv_write: store[b][h][places[b][h][t]] = x[b][h][t], in the order of t; places that are
// outside write nothing
//   pointers  x, places (int64 [B, H, T]), store [B, H, S, D]
//   numbers    0 sequences B   1 heads H   2 tokens T of x   3 rows S of the store
//              4 bytes of a row
//              5 x, 8 places, 11 store: 3 strides each in bytes, of sequence, head, row; those of
//              places are in elements
//   tasks     B * H
//
// infopt_kv_read: out[b][h][t] = store[b][h][places[b][h][t]], 0 for places that are outside
//   pointers  store, places, out     numbers  as above, with out in the place of x     tasks  B * H
//
// infopt_top_places: the places of the largest of each row of scores (f32): with numbers[3] in
// ascending order, else the largest first; of equal ones the first. NaN is larger than all.
//   pointers  scores [rows, width], places (int64 [rows, count])
//   numbers    0 rows   1 width   2 count   3 1: by place
//   tasks     rows     scratch  8 * width bytes
#include <algorithm>

#include "abi.h"

namespace infopt {

template <bool Write>
static void move_rows(const infopt_call *call, int64_t first, int64_t last) {
  const int64_t *n = call->numbers, heads = n[1], tokens = n[2], room = n[3];
  const int64_t *places = pointer<int64_t>(call, 1);
  char *rows = pointer<char>(call, Write ? 0 : 2), *store = pointer<char>(call, Write ? 2 : 0);
  for (int64_t task = first; task < last; ++task) {
    const int64_t batch = task / heads, head = task % heads;
    const int64_t *place = places + batch * n[8] + head * n[9];
    char *row = rows + batch * n[5] + head * n[6], *to = store + batch * n[11] + head * n[12];
    for (int64_t t = 0; t < tokens; ++t, row += n[7]) {
      const int64_t at = place[t * n[10]];
      const bool inside = at >= 0 && at < room;
      if (Write && inside) memcpy(to + at * n[13], row, size_t(n[4]));
      if (!Write && inside) memcpy(row, to + at * n[13], size_t(n[4]));
      if (!Write && !inside) memset(row, 0, size_t(n[4]));
    }
  }
}

static void top_places(const infopt_call *call, int64_t first, int64_t last) {
  const int64_t *n = call->numbers, width = n[1], count = n[2];
  int64_t *order = static_cast<int64_t *>(call->scratch);
  for (int64_t row = first; row < last; ++row) {
    const float *scores = pointer<float>(call, 0) + row * width;
    int64_t *to = pointer<int64_t>(call, 1) + row * count;
    const auto better = [scores](int64_t i, int64_t j) {
      const float a = scores[i], b = scores[j];
      if (a != a || b != b) return a != a && (b == b || i < j);
      return a > b || (a == b && i < j);
    };
    for (int64_t i = 0; i < width; ++i) order[i] = i;
    if (n[3]) {
      if (count < width) std::nth_element(order, order + count, order + width, better);
      std::sort(order, order + count);
    } else {
      std::partial_sort(order, order + count, order + width, better);
    }
    memcpy(to, order, size_t(count) * sizeof(int64_t));
  }
}

}  // namespace infopt

INFOPT_EXPORT void infopt_kv_write(const infopt_call *call, int64_t first, int64_t last) {
  infopt::move_rows<true>(call, first, last);
}

INFOPT_EXPORT void infopt_kv_read(const infopt_call *call, int64_t first, int64_t last) {
  infopt::move_rows<false>(call, first, last);
}

INFOPT_EXPORT void infopt_top_places(const infopt_call *call, int64_t first, int64_t last) {
  infopt::top_places(call, first, last);
}
