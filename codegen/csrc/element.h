// Element types as they travel in a call's numbers, and rows of them brought to and from f32.
#pragma once

#include "vec.h"

namespace infopt {

// The codes of kernels whose dtypes are numbers. Row kernels take the first three.
enum Element : int64_t { kF32, kBf16, kF16, kF64, kI64, kI32, kI16, kI8, kU8, kBool };

INFOPT_INLINE int64_t element_bytes(int64_t element) {
  constexpr int8_t kBytes[] = {4, 2, 2, 8, 8, 4, 2, 1, 1, 1};
  return kBytes[element];
}

INFOPT_INLINE const void *at(const void *base, int64_t element, int64_t index) {
  return static_cast<const char *>(base) + index * element_bytes(element);
}
INFOPT_INLINE void *at(void *base, int64_t element, int64_t index) {
  return static_cast<char *>(base) + index * element_bytes(element);
}

// Up to 16 neighbouring floats of a row whose type is known when the kernel runs. A compiler
// moves the switch out of the loop over a row, or the branch is predicted.
INFOPT_INLINE Vec load_element(const void *row, int64_t element, int64_t i, int64_t n) {
  switch (element) {
    case kF32: return n == 16 ? load((const float *)row + i) : load((const float *)row + i, n);
    case kBf16: return n == 16 ? load((const bf16 *)row + i) : load((const bf16 *)row + i, n);
    default: return n == 16 ? load((const f16 *)row + i) : load((const f16 *)row + i, n);
  }
}
INFOPT_INLINE void store_element(void *row, int64_t element, int64_t i, Vec x, int64_t n) {
  switch (element) {
    case kF32: return n == 16 ? store((float *)row + i, x) : store((float *)row + i, x, n);
    case kBf16: return n == 16 ? store((bf16 *)row + i, x) : store((bf16 *)row + i, x, n);
    default: return n == 16 ? store((f16 *)row + i, x) : store((f16 *)row + i, x, n);
  }
}

// What remains of x after a store and a load in T.
template <class T> INFOPT_INLINE Vec rounded(Vec x) {
  T buffer[16];
  store(buffer, x);
  return load(buffer);
}
template <> INFOPT_INLINE Vec rounded<float>(Vec x) { return x; }
template <> INFOPT_INLINE Vec rounded<bf16>(Vec x) { return even_lanes(to_pairs(x, x)); }

// Calls body(value) with a value of the C++ type of a floating element code.
template <class Body>
INFOPT_INLINE void with_float_type(int64_t element, const Body &body) {
  switch (element) {
    case kF32: return body(float());
    case kBf16: return body(bf16());
    default: return body(f16());
  }
}

// Calls body(i, n) for each Vec of a row: n is 16 but for the last.
template <class Body>
INFOPT_INLINE void each_vec(int64_t width, const Body &body) {
  int64_t i = 0;
  for (; i + 16 <= width; i += 16) body(i, int64_t(16));
  if (i < width) body(i, width - i);
}

}  // namespace infopt
