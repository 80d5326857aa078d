// Floats of 8 bits (codegen/weight_formats/floats.py) as floats, exact, on every level.
//
//   small_floats<mantissa>(v)         what the highest byte of each lane stands for, a float with so
//                                     many bits of mantissa
//   bytes_as_small_floats<m>(v, f)    byte j of lane i of v as lane i of f[j]
#pragma once

#include "vec_bytes.h"

namespace infopt {

// The bits move to where those of a float are, and the exponent's bias is made up for. Where the
// exponent is 0, so that steps count from 0, the float is off: it has half the step and starts at
// half the smallest of the others. Twice it less that smallest is right there, and more elsewhere.
template <int mantissa> INFOPT_INLINE Vec small_floats(IVec top) {
  constexpr int bias = (1 << (6 - mantissa)) - 1;
  const IVec number = shr<1 + mantissa>(top) & ibroadcast(0x7f << (23 - mantissa));
  const Vec found = float_of_bits(number + ibroadcast((127 - bias) << 23));
  const Vec smallest = broadcast(float_of(uint32_t(127 + 1 - bias) << 23));
  const Vec size = min(found, fma(found, broadcast(2.0f), -smallest));
  return float_of_bits(bits(size) | (top & ibroadcast(int32_t(0x80000000u))));
}
template <int mantissa> INFOPT_INLINE void bytes_as_small_floats(IVec bytes, Vec *part) {
  part[0] = small_floats<mantissa>(shl<24>(bytes));
  part[1] = small_floats<mantissa>(shl<16>(bytes));
  part[2] = small_floats<mantissa>(shl<8>(bytes));
  part[3] = small_floats<mantissa>(bytes);
}

}  // namespace infopt
