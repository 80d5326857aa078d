// One panel of a convolution: 16 output pixels, and along k all channels times all taps.
//
// This is the matrix whose product with the weights is the convolution (im2col), made a panel and
// a cut of k at a time, in the order in which the weights lie: by channel then tap for torch's
// contiguous weights, by tap then channel for weights in channels_last.
#pragma once

#include "conv_window.h"

namespace infopt {

// Walks k in the weights' order: which channel, which tap.
struct Walk {
  int64_t channels, taps, channel, tap;
  bool by_tap;
  Walk(int64_t channels, int64_t taps, bool by_tap, int64_t k)
      : channels(channels), taps(taps), channel(by_tap ? k % channels : k / taps),
        tap(by_tap ? k / channels : k % taps), by_tap(by_tap) {}
  INFOPT_INLINE void next() {
    if (by_tap) {
      if (++channel == channels) channel = 0, ++tap;
    } else {
      if (++tap == taps) tap = 0, ++channel;
    }
  }
};

// Rows k to k + depth of a panel; x: the first channel of the group, in the first image.
template <class X>
inline void pack_taps(const ConvShape &s, const X *x, const TapTable &table, bool by_tap,
                      int64_t k, int64_t depth, float *out) {
  Walk at(s.channels, s.taps(), by_tap, k);
  for (int64_t i = 0; i < depth; ++i, at.next()) {
    const X *plane = x + at.channel * s.channel_stride;
    const Piece *first = table.pieces + table.first[at.tap];
    const Piece *end = table.pieces + table.first[at.tap + 1];
    store(out + i * 16, read_lanes(plane, first, end, s.stride_width).widened());
  }
}

template <class X>
inline void pack_taps(const ConvShape &s, const X *x, const TapTable &table, bool by_tap,
                      int64_t k, int64_t depth, bf16 *out) {
  Walk at(s.channels, s.taps(), by_tap, k);
  auto next = [&]() __attribute__((always_inline)) {
    const X *plane = x + at.channel * s.channel_stride;
    const Piece *first = table.pieces + table.first[at.tap];
    const Piece *end = table.pieces + table.first[at.tap + 1];
    at.next();
    return read_lanes(plane, first, end, s.stride_width);
  };
  int64_t i = 0;
  for (; i + 2 <= depth; i += 2) {
    const Sixteen<X> even = next(), odd = next();
    store_pairs(out + i * 16, pairs_of(even, odd));
  }
  if (i < depth) store_pairs(out + i * 16, to_pairs(next().widened(), zero()));
}

}  // namespace infopt
