// The C ABI between the executor and every native kernel (docs/architecture.md, version 1).
#pragma once

#include <stdint.h>
#include <string.h>

extern "C" {
typedef struct {
  void *const *pointers;   // the step's tensors in declared order, outputs last; already offset
  const int64_t *numbers;  // sizes, strides in elements, flags; a double travels as its bit pattern
  void *scratch;           // per thread, 64-byte aligned, at least the step's declared bytes
} infopt_call;
typedef void (*infopt_kernel)(const infopt_call *call, int64_t first_task, int64_t last_task);
}

// Kernels are the only visible symbols; libraries are compiled with -fvisibility=hidden.
#define INFOPT_EXPORT extern "C" __attribute__((visibility("default")))
#define INFOPT_INLINE inline __attribute__((always_inline))

namespace infopt {

INFOPT_INLINE double as_double(int64_t number) {
  double value;
  memcpy(&value, &number, sizeof value);
  return value;
}

INFOPT_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
INFOPT_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
INFOPT_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INFOPT_INLINE int64_t greatest(int64_t a, int64_t b) { return a > b ? a : b; }

// The pointer at `index`, typed. An absent optional tensor (bias, residual) is a null pointer.
template <class T>
INFOPT_INLINE T *pointer(const infopt_call *call, int index) {
  return static_cast<T *>(call->pointers[index]);
}

}  // namespace infopt
