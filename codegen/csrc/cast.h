// Element casts with torch's results. A source is staged without loss as float, double or int64.
#pragma once

#include <type_traits>

#include "element.h"

namespace infopt {

// What the x86 conversion gives, and so torch: the least integer for what is out of range or NaN.
template <class Float> INFOPT_INLINE int64_t truncated64(Float x) {
  return x >= Float(-0x1p63) && x < Float(0x1p63) ? int64_t(x) : INT64_MIN;
}
template <class Float> INFOPT_INLINE int32_t truncated32(Float x) {
  return x > Float(-0x1p31 - (sizeof(Float) == 8)) && x < Float(0x1p31) ? int32_t(x) : INT32_MIN;
}

template <class To, class From> struct Cast {  // to a floating type, by way of float
  static INFOPT_INLINE To of(From x) { return from_float<To>(float(x)); }
};
template <class From> struct Cast<double, From> {
  static INFOPT_INLINE double of(From x) { return double(x); }
};
template <class From> struct Cast<bool, From> {
  static INFOPT_INLINE bool of(From x) { return x != From(0); }
};
#define INFOPT_CAST_TO_INTEGER(Type, truncated)                                   \
  template <> struct Cast<Type, float> {                                          \
    static INFOPT_INLINE Type of(float x) { return Type(truncated(x)); }          \
  };                                                                              \
  template <> struct Cast<Type, double> {                                         \
    static INFOPT_INLINE Type of(double x) { return Type(truncated(x)); }         \
  };                                                                              \
  template <> struct Cast<Type, int64_t> {                                        \
    static INFOPT_INLINE Type of(int64_t x) { return Type(x); }                   \
  };
INFOPT_CAST_TO_INTEGER(int64_t, truncated64)
INFOPT_CAST_TO_INTEGER(int32_t, truncated32)
INFOPT_CAST_TO_INTEGER(int16_t, truncated32)
INFOPT_CAST_TO_INTEGER(int8_t, truncated32)
INFOPT_CAST_TO_INTEGER(uint8_t, truncated64)
#undef INFOPT_CAST_TO_INTEGER

enum StageKind { kFloatStage, kDoubleStage, kIntegerStage };
constexpr int64_t kStaged = 256;  // elements staged at a time
union Stage {
  float as_float[kStaged];
  double as_double[kStaged];
  int64_t as_integer[kStaged];
};


template <class From, class To>
static void stage_as(const From *x, int64_t stride, int64_t n, To *to) {
  if (stride == 1) for (int64_t i = 0; i < n; ++i) to[i] = To(x[i]);
  else for (int64_t i = 0; i < n; ++i) to[i] = To(x[i * stride]);
}
template <class From>
static void stage_float(const From *x, int64_t stride, int64_t n, float *to) {
  if (stride != 1) {
    for (int64_t i = 0; i < n; ++i) to[i] = to_float(x[i * stride]);
    return;
  }
  each_vec(n, [&](int64_t i, int64_t count) { store(to + i, load(x + i, count), count); });
}

static StageKind stage(const void *x, int64_t element, int64_t stride, int64_t n, Stage *to) {
  switch (element) {
    case kF32: stage_float((const float *)x, stride, n, to->as_float); return kFloatStage;
    case kBf16: stage_float((const bf16 *)x, stride, n, to->as_float); return kFloatStage;
    case kF16: stage_float((const f16 *)x, stride, n, to->as_float); return kFloatStage;
    case kF64: stage_as((const double *)x, stride, n, to->as_double); return kDoubleStage;
    case kI64: stage_as((const int64_t *)x, stride, n, to->as_integer); break;
    case kI32: stage_as((const int32_t *)x, stride, n, to->as_integer); break;
    case kI16: stage_as((const int16_t *)x, stride, n, to->as_integer); break;
    case kI8: stage_as((const int8_t *)x, stride, n, to->as_integer); break;
    default: stage_as((const uint8_t *)x, stride, n, to->as_integer); break;  // bool is 0 or 1
  }
  return kIntegerStage;
}

#ifdef INFOPT_AVX512
template <class T> static void narrow(const float *from, int64_t n, T *y) {
  each_vec(n, [&](int64_t i, int64_t count) { store(y + i, load(from + i, count), count); });
}
#endif

template <class To, class From>
static void cast_as(const From *from, int64_t n, To *y, int64_t stride) {
#ifdef INFOPT_AVX512
  if constexpr (sizeof(From) == 4 && sizeof(To) == 2 && !std::is_integral_v<To>)
    if (stride == 1) return narrow(from, n, y);
#endif
  if (stride == 1) for (int64_t i = 0; i < n; ++i) y[i] = Cast<To, From>::of(from[i]);
  else for (int64_t i = 0; i < n; ++i) y[i * stride] = Cast<To, From>::of(from[i]);
}
template <class To>
static void cast_to(const Stage &from, StageKind kind, int64_t n, To *y, int64_t stride) {
  switch (kind) {
    case kFloatStage: return cast_as<To, float>(from.as_float, n, y, stride);
    case kDoubleStage: return cast_as<To, double>(from.as_double, n, y, stride);
    case kIntegerStage: return cast_as<To, int64_t>(from.as_integer, n, y, stride);
  }
}

static void unstage(const Stage &from, StageKind kind, int64_t n, void *y, int64_t element,
                    int64_t stride) {
  switch (element) {
    case kF32: return cast_to(from, kind, n, (float *)y, stride);
    case kBf16: return cast_to(from, kind, n, (bf16 *)y, stride);
    case kF16: return cast_to(from, kind, n, (f16 *)y, stride);
    case kF64: return cast_to(from, kind, n, (double *)y, stride);
    case kI64: return cast_to(from, kind, n, (int64_t *)y, stride);
    case kI32: return cast_to(from, kind, n, (int32_t *)y, stride);
    case kI16: return cast_to(from, kind, n, (int16_t *)y, stride);
    case kI8: return cast_to(from, kind, n, (int8_t *)y, stride);
    case kU8: return cast_to(from, kind, n, (uint8_t *)y, stride);
    default: return cast_to(from, kind, n, (bool *)y, stride);
  }
}

// n elements, `from` and `to` apart, cast one by one.
static void cast_row(const void *x, int64_t x_element, int64_t from, int64_t n, void *y,
                     int64_t y_element, int64_t to) {
  if (y_element == kF32 && to == 1 && (x_element == kBf16 || x_element == kF16)) {
    if (x_element == kBf16) stage_float((const bf16 *)x, from, n, (float *)y);
    else stage_float((const f16 *)x, from, n, (float *)y);
    return;
  }
  Stage staged;
  for (int64_t i = 0; i < n; i += kStaged) {
    const int64_t m = least(kStaged, n - i);
    const StageKind kind = stage(at(x, x_element, i * from), x_element, from, m, &staged);
    unstage(staged, kind, m, at(y, y_element, i * to), y_element, to);
  }
}

}  // namespace infopt
