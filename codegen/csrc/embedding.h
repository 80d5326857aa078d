// Rows of embedding tables by index. A bad index reads nothing: it gives zeros and sets the error
// word, which the caller checks after the run.
#pragma once

#include "element.h"

namespace infopt {

struct EmbeddingTable {
  const void *ids, *rows;
  int64_t ids_element;     // kI64 or kI32
  int64_t count, stride;   // rows of the table, elements from one to the next
  int64_t element;

  // The table's row for the id at `index`, or null for an id that is not in the table.
  const void *row(int64_t index) const {
    const int64_t id = ids_element == kI64 ? ((const int64_t *)ids)[index]
                                           : int64_t(((const int32_t *)ids)[index]);
    return id >= 0 && id < count ? at(rows, element, id * stride) : nullptr;
  }
};

INFOPT_INLINE void report(int32_t *error) {
  if (error) __atomic_store_n(error, 1, __ATOMIC_RELAXED);  // several threads may say the same
}

static void copy_row(const void *from, int64_t from_element, void *to, int64_t to_element,
                     int64_t width) {
  if (!from) {
    memset(to, 0, size_t(width * element_bytes(to_element)));
  } else if (from_element == to_element) {
    memcpy(to, from, size_t(width * element_bytes(to_element)));
  } else {
    each_vec(width, [&](int64_t i, int64_t n) {
      store_element(to, to_element, i, load_element(from, from_element, i, n), n);
    });
  }
}

// The sum of up to three tables' rows, each with its own ids [batch, token] (0-stride where
// broadcast); a table without ids takes the token's position. Sums are rounded to `element` one
// by one, as separate additions in that type would be.
struct EmbeddedRows {
  static constexpr int kTables = 3;
  EmbeddingTable table[kTables];
  int64_t batch_stride[kTables], token_stride[kTables];  // of the ids
  int64_t tokens, width, element;
  int32_t *error;

  const float *operator()(int64_t row, float *buffer) const {
    const int64_t batch = row / tokens, token = row % tokens;
    bool first = true;
    for (int t = 0; t < kTables; ++t) {
      const EmbeddingTable &from = table[t];
      if (!from.rows) continue;
      const void *source = nullptr;
      if (from.ids) source = from.row(batch * batch_stride[t] + token * token_stride[t]);
      else if (token < from.count) source = at(from.rows, from.element, token * from.stride);
      if (!source) {
        report(error);
        memset(buffer, 0, size_t(width) * sizeof(float));
        return buffer;
      }
      with_float_type(element, [&](auto type) {
        using T = decltype(type);
        const T *values = static_cast<const T *>(source);
        each_vec(width, [&](int64_t i, int64_t n) {
          const Vec x = n == 16 ? load(values + i) : load(values + i, n);
          const Vec y = first ? x : rounded<T>(load(buffer + i, n) + x);
          n == 16 ? store(buffer + i, y) : store(buffer + i, y, n);
        });
      });
      first = false;
    }
    return buffer;
  }
};

}  // namespace infopt
