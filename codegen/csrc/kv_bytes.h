// Keys and values stored in bytes: a row is its features as integers of 8 bits, then the factor
// (f32) that makes numbers of them.
#pragma once

#include "vec.h"
#include "vec_bytes.h"

namespace infopt {

struct i8 { int8_t value; };
template <class S> constexpr bool kInBytes = false;
template <> constexpr bool kInBytes<i8> = true;

INFOPT_INLINE float to_float(i8 x) { return float(x.value); }
INFOPT_INLINE Vec load(const i8 *p) { return widen_bytes((const int8_t *)p); }
INFOPT_INLINE Vec load(const i8 *p, int64_t n) {
  i8 part[16] = {};
  memcpy(part, p, size_t(n));
  return load(part);
}

INFOPT_INLINE float factor_of(const i8 *row, int64_t depth) {
  float factor;
  memcpy(&factor, row + depth, sizeof factor);
  return factor;
}

// A block of rows as numbers of the operand's type: block[token][width], zero-padded.
template <class Operand>
static void stage_rows(const i8 *from, int64_t token_stride, int64_t, int64_t tokens,
                       int64_t depth, int64_t width, Operand *block) {
  for (int64_t t = 0; t < tokens; ++t) {
    const i8 *row = from + t * token_stride;
    const Vec factor = broadcast(factor_of(row, depth));
    Operand *to = block + t * width;
    int64_t d = 0;
    for (; d + 16 <= depth; d += 16) store(to + d, load(row + d) * factor);
    if (d < depth) store(to + d, load(row + d, depth - d) * factor, depth - d);
    for (d = depth; d < width; ++d) to[d] = from_float<Operand>(0.0f);
  }
}

// scores[row][key] *= factor of the key's row
template <int Rows>
static void times_factors(const i8 *block, int64_t token_stride, int64_t depth, int64_t keys,
                          int64_t row_stride, float *scores) {
  for (int64_t key = 0; key < keys; ++key) {
    const float factor = factor_of(block + key * token_stride, depth);
    for (int r = 0; r < Rows; ++r) scores[r * row_stride + key] *= factor;
  }
}

}  // namespace infopt
