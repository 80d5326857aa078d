// Small kernels for the tests of the executor; the C ABI of docs/architecture.md.
#include <cstdint>

#include "call.h"

#define KERNEL extern "C" void

// out[i] = a[i] + b[i]; numbers: n, block; a task is one block.
KERNEL add(const infopt_call *call, int64_t first, int64_t last) {
  const float *a = (const float *)call->pointers[0], *b = (const float *)call->pointers[1];
  float *out = (float *)call->pointers[2];
  const int64_t n = call->numbers[0], block = call->numbers[1];
  for (int64_t i = first * block; i < last * block && i < n; ++i) out[i] = a[i] + b[i];
}

// out[i] = a[i] * numbers[2] (a double), through scratch of one block.
KERNEL scale(const infopt_call *call, int64_t first, int64_t last) {
  const float *a = (const float *)call->pointers[0];
  float *out = (float *)call->pointers[1], *scratch = (float *)call->scratch;
  const int64_t n = call->numbers[0], block = call->numbers[1];
  const double factor = *(const double *)&call->numbers[2];
  for (int64_t task = first; task < last; ++task) {
    const int64_t begin = task * block, end = begin + block < n ? begin + block : n;
    for (int64_t i = begin; i < end; ++i) scratch[i - begin] = a[i];
    for (int64_t i = begin; i < end; ++i) out[i] = (float)(scratch[i - begin] * factor);
  }
}

// out[row] = table[index[row]]; numbers: rows of the table, columns. Sets the error word.
KERNEL gather(const infopt_call *call, int64_t first, int64_t last) {
  const float *table = (const float *)call->pointers[0];
  const int64_t *index = (const int64_t *)call->pointers[1];
  float *out = (float *)call->pointers[2];
  int32_t *error = (int32_t *)call->pointers[3];
  const int64_t rows = call->numbers[0], columns = call->numbers[1];
  for (int64_t row = first; row < last; ++row) {
    if (index[row] < 0 || index[row] >= rows) {
      *error = 1;
      continue;
    }
    for (int64_t i = 0; i < columns; ++i) out[row * columns + i] = table[index[row] * columns + i];
  }
}

// counts[task] += 1; shows that every task runs exactly once.
KERNEL count(const infopt_call *call, int64_t first, int64_t last) {
  int64_t *counts = (int64_t *)call->pointers[0];
  for (int64_t task = first; task < last; ++task) counts[task] += 1;
}

// out[0] = 1 if pointer 0 is null.
KERNEL is_null(const infopt_call *call, int64_t, int64_t) {
  *(int64_t *)call->pointers[1] = call->pointers[0] == nullptr;
}
