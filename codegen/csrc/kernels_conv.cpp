// Exports: convolutions and poolings of images. Formats and activations are those of kernels_linear.cpp.
#include "conv.h"
#include "depthwise.h"
#include "pool.h"

using namespace infopt;

// infopt_conv_<panel type>_<weight type>: y = act(conv(x, w) * scale + shift) + residual
//   pointers: x, w, scale or null, shift or null, residual or null, y
//   numbers:  0 batch, 1 groups, 2 channels and 3 features of a group, 4 height, 5 width,
//             6 out height, 7 out width, kernel 8 height 9 width, stride 10 height 11 width,
//             12 rows of padding above, 13 columns to the left, dilation 14 height 15 width,
//             strides of x: 16 image, 17 channel, 18 row (columns are neighbours);
//             19 elements between features of w, 20 1: w is by tap then channel,
//             21 feature_chunk, 22 panel_chunk, formats: 23 x, 24 scale, 25 shift,
//             26 activation, 27 1: the residual is added before it, 28 format of residual and y,
//             29 up to so many pixels (0 to 4) of a last panel are multiplied one by one
//   tasks:    groups * ceil(P / panel_chunk) * ceil(features / feature_chunk),
//             P = ceil(batch * out height * out width / 16)
//   scratch:  64 * panel_chunk * (B * Q / 4 + 1 + round_up(feature_chunk, 16)) + 400 * (Q + 32)
//             + panel_chunk * (664 + 24 * taps + round_up(260 * taps + 4, 64)), where B is the bytes
//             of a panel element (4 or 2) and Q = min(round_up(channels * taps, 32), 4096 / B)
//   residual and y are contiguous; residual may be y itself.
#define INFOPT_CONV(name, Step, W)                                                        \
  INFOPT_EXPORT void infopt_conv_##name(const infopt_call *call, int64_t first, int64_t last) { \
    conv<Step, W>(call, first, last);                                                     \
  }
INFOPT_CONV(f32_f32, StepF32, float)
INFOPT_CONV(f32_f16, StepF32, f16)
INFOPT_CONV(bf16_bf16, StepPairs, bf16)
INFOPT_CONV(bf16_f32, StepPairs, float)
#undef INFOPT_CONV

// infopt_depthwise_<type>: the same for groups of one channel, with all numbers of infopt_conv.
//   21 is unused, 22 is R, the output rows of one task
//   tasks:    batch * groups * features * ceil(out height / R)
//   scratch:  4 * round_up(V * L, 2) + 8 * kernel width + 4 * taps, where
//             V = (R - 1) * stride height + (kernel height - 1) * dilation height + 1 and
//             L = stride width * (round_up(out width, 16)
//                 + ceil(((kernel width - 1) * dilation width + 1) / stride width))
#define INFOPT_DEPTHWISE(name, T)                                                              \
  INFOPT_EXPORT void infopt_depthwise_##name(const infopt_call *call, int64_t first, int64_t last) { \
    depthwise<T>(call, first, last);                                                           \
  }
INFOPT_DEPTHWISE(f32, float)
INFOPT_DEPTHWISE(bf16, bf16)
INFOPT_DEPTHWISE(f16, f16)
#undef INFOPT_DEPTHWISE

// infopt_pool_<type>: the maximum (a NaN wins) or the average of every window.
//   pointers: x, y
//   numbers:  0 to 18 as infopt_conv's (groups are the channels; 2 and 3 are 1), 19 pooling
//             (0 maximum, 1 average), 20 R, 21 1: an average counts padding, 22 its divisor or 0
//   tasks:    batch * groups * ceil(out height / R)
//   scratch:  as infopt_depthwise's, with 4 * round_up(out width, 16) instead of 4 * taps
// infopt_adaptive_average_<type>: averages of out height x out width parts.
//   pointers: x, y    numbers: 0 to 18 of the above    tasks: batch * groups    scratch: 0
#define INFOPT_POOL(name, T)                                                                   \
  INFOPT_EXPORT void infopt_pool_##name(const infopt_call *call, int64_t first, int64_t last) { \
    pool_planes<T>(call, first, last);                                                         \
  }                                                                                            \
  INFOPT_EXPORT void infopt_adaptive_average_##name(const infopt_call *call, int64_t first,    \
                                                    int64_t last) {                            \
    adaptive_average<T>(call, first, last);                                                    \
  }
INFOPT_POOL(f32, float)
INFOPT_POOL(bf16, bf16)
INFOPT_POOL(f16, f16)
#undef INFOPT_POOL
