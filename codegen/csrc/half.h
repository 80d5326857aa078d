// 16-bit floats as storage: bf16 and f16, converted to and from float in plain integer code.
#pragma once

#include <stdint.h>
#include <string.h>

#include "abi.h"

namespace infopt {

struct bf16 { uint16_t raw; };
struct f16 { uint16_t raw; };

INFOPT_INLINE float float_of(uint32_t raw) {
  float value;
  memcpy(&value, &raw, sizeof value);
  return value;
}
INFOPT_INLINE uint32_t raw_of(float value) {
  uint32_t raw;
  memcpy(&raw, &value, sizeof raw);
  return raw;
}

INFOPT_INLINE float to_float(float x) { return x; }
INFOPT_INLINE float to_float(bf16 x) { return float_of(uint32_t(x.raw) << 16); }
INFOPT_INLINE float to_float(f16 x) {
  const uint32_t sign = uint32_t(x.raw & 0x8000) << 16, body = x.raw & 0x7fff;
  if (body >= 0x7c00) return float_of(sign | 0x7f800000 | (body & 0x3ff) << 13);
  if (body < 0x0400) {  // zero and denormals: body * 2^-24, exact in f32
    return float_of(sign | raw_of(float(body) * 0x1p-24f));
  }
  return float_of(sign | ((body << 13) + (112u << 23)));
}

// Round to nearest even; a NaN stays a (quiet) NaN, overflow becomes infinity.
template <class T> INFOPT_INLINE T from_float(float x);
template <> INFOPT_INLINE float from_float<float>(float x) { return x; }
template <> INFOPT_INLINE bf16 from_float<bf16>(float x) {
  const uint32_t u = raw_of(x);
  if ((u & 0x7fffffff) > 0x7f800000) return {uint16_t(u >> 16 | 0x40)};
  return {uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}
template <> INFOPT_INLINE f16 from_float<f16>(float x) {
  const uint32_t u = raw_of(x), body = u & 0x7fffffff;
  const uint16_t sign = uint16_t(u >> 16 & 0x8000);
  if (body > 0x7f800000) return {uint16_t(sign | 0x7e00)};
  if (body >= 0x477ff000) return {uint16_t(sign | 0x7c00)};  // 65520 and above round to infinity
  if (body < 0x38800000) {  // a denormal result: adding 0.5 makes the FPU round at bit 2^-24
    return {uint16_t(sign | (raw_of(float_of(body) + 0.5f) - 0x3f000000))};
  }
  return {uint16_t(sign | ((body - (112u << 23) + 0xfff + (body >> 13 & 1)) >> 13))};
}

}  // namespace infopt
