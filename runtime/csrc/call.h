// The C ABI of kernels as the executor calls them (docs/architecture.md, version 1).
#pragma once

#include <cstdint>

extern "C" {
typedef struct {
  void *const *pointers;
  const int64_t *numbers;
  void *scratch;
} infopt_call;
typedef void (*infopt_kernel)(const infopt_call *call, int64_t first_task, int64_t last_task);
}
