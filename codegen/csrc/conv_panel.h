// Panels of a convolution: 16 output pixels each, and along k all channels times all taps.
//
// This is the matrix whose product with the weights is the convolution (im2col), made for some
// panels and a cut of k at a time, in the order in which the weights lie: by channel then tap for
// torch's contiguous weights, by tap then channel for weights in channels_last.
#pragma once

#include <type_traits>

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

// What every tap of some neighbouring panels sees.
struct PanelTaps {
  char *tables;   // one TapTable per panel
  Piece *single;  // [tap][panel], where no tap of any panel has two pieces
  Piece *joined;  // [tap][panel / 2]: 32 lanes, where every second panel goes on where one ends
  int64_t taps, count;
  bool all_single, all_joined;

  // Bytes for so many taps of so many panels.
  static int64_t bytes(int64_t taps, int64_t panels) {
    return panels * TapTable::bytes(taps) + taps * (panels + panels / 2) * int64_t(sizeof(Piece));
  }
  PanelTaps(void *memory, int64_t taps, int64_t panels)
      : tables((char *)memory), single((Piece *)(tables + panels * TapTable::bytes(taps))),
        joined(single + taps * panels), taps(taps), count(0), all_single(false),
        all_joined(false) {}

  TapTable table(int64_t panel) const {
    return TapTable(tables + panel * TapTable::bytes(taps), taps);
  }

  void find(const ConvShape &s, int64_t first_panel, int64_t panels) {
    count = panels;
    all_single = true, all_joined = s.stride_width == 1;
    for (int64_t p = 0; p < count; ++p) {
      const TapTable t = table(p);
      find_taps(s, first_panel + p, t);
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int32_t pieces = t.first[tap + 1] - t.first[tap];
        all_single = all_single && pieces <= 1;
        single[tap * count + p] = pieces ? t.pieces[t.first[tap]] : Piece{0, 0, 0};
      }
    }
    for (int64_t tap = 0; tap < taps && all_single && all_joined; ++tap)
      for (int64_t p = 0; p + 2 <= count; p += 2) {
        const Piece &a = single[tap * count + p], &b = single[tap * count + p + 1];
        all_joined = all_joined && (!a.lanes || !b.lanes || b.base == a.base + 16);
        joined[tap * (count / 2) + p / 2] = {a.lanes ? a.base : b.base - 16,
                                             a.lanes | b.lanes << 16, 0};
      }
  }
};

// One row of k of all panels; k counts from the beginning of the cut.
template <int step, class X>
INFOPT_INLINE void pack_row(const PanelTaps &at, const X *plane, int64_t tap, int64_t stride,
                            float *out, int64_t panel_stride) {
  if (at.all_single) {
    const Piece *piece = at.single + tap * at.count;
    for (int64_t p = 0; p < at.count; ++p, out += panel_stride)
      store(out, read_piece<step>(plane, piece[p], stride).widened());
    return;
  }
  for (int64_t p = 0; p < at.count; ++p) {
    const TapTable t = at.table(p);
    const Piece *first = t.pieces + t.first[tap], *end = t.pieces + t.first[tap + 1];
    store(out + p * panel_stride, read_lanes<step>(plane, first, end, stride).widened());
  }
}

// Two neighbouring rows of k, as pairs.
template <int step, class X>
INFOPT_INLINE void pack_pair(const PanelTaps &at, const X *plane0, int64_t tap0, const X *plane1,
                             int64_t tap1, int64_t stride, bf16 *out, int64_t panel_stride) {
  if (at.all_single) {
    int64_t p = 0;
#ifdef INFOPT_AVX512
    if constexpr (step == 1 && std::is_same_v<X, bf16>)
      if (at.all_joined) {
        const int64_t half = at.count / 2;
        const Piece *even = at.joined + tap0 * half, *odd = at.joined + tap1 * half;
        for (; p < half; ++p, out += 2 * panel_stride)
          store_two_panels(plane0, even[p], plane1, odd[p], out, out + panel_stride);
        p *= 2;
      }
#endif
    const Piece *even = at.single + tap0 * at.count, *odd = at.single + tap1 * at.count;
    for (; p < at.count; ++p, out += panel_stride)
      store_pairs(out, pairs_of(read_piece<step>(plane0, even[p], stride),
                                read_piece<step>(plane1, odd[p], stride)));
    return;
  }
  for (int64_t p = 0; p < at.count; ++p) {
    const TapTable t = at.table(p);
    const Sixteen<X> even = read_lanes<step>(plane0, t.pieces + t.first[tap0],
                                             t.pieces + t.first[tap0 + 1], stride);
    const Sixteen<X> odd = read_lanes<step>(plane1, t.pieces + t.first[tap1],
                                            t.pieces + t.first[tap1 + 1], stride);
    store_pairs(out + p * panel_stride, pairs_of(even, odd));
  }
}

// Rows k to k + depth of the panels; x: the first channel of the group, in the first image.
template <int step, class X>
inline void pack_steps(const ConvShape &s, const X *x, const PanelTaps &at, bool by_tap, int64_t k,
                       int64_t depth, float *out, int64_t panel_stride) {
  Walk walk(s.channels, s.taps(), by_tap, k);
  for (int64_t i = 0; i < depth; ++i, walk.next())
    pack_row<step>(at, x + walk.channel * s.channel_stride, walk.tap, s.stride_width, out + i * 16,
                   panel_stride);
}

template <int step, class X>
inline void pack_steps(const ConvShape &s, const X *x, const PanelTaps &at, bool by_tap, int64_t k,
                       int64_t depth, bf16 *out, int64_t panel_stride) {
  Walk walk(s.channels, s.taps(), by_tap, k);
  int64_t i = 0;
  for (; i + 2 <= depth; i += 2, walk.next()) {
    const Walk even = walk;
    walk.next();
    pack_pair<step>(at, x + even.channel * s.channel_stride, even.tap,
                    x + walk.channel * s.channel_stride, walk.tap, s.stride_width, out + i * 16,
                    panel_stride);
  }
  if (i == depth) return;
  for (int64_t p = 0; p < at.count; ++p) {
    const TapTable t = at.table(p);
    const Piece *first = t.pieces + t.first[walk.tap], *end = t.pieces + t.first[walk.tap + 1];
    const X *plane = x + walk.channel * s.channel_stride;
    const Vec even = read_lanes<step>(plane, first, end, s.stride_width).widened();
    store_pairs(out + i * 16 + p * panel_stride, to_pairs(even, zero()));
  }
}

template <class X, class Panel>
inline void pack_taps(const ConvShape &s, const X *x, const PanelTaps &at, bool by_tap, int64_t k,
                      int64_t depth, Panel *out, int64_t panel_stride) {
  if (s.stride_width == 1) pack_steps<1>(s, x, at, by_tap, k, depth, out, panel_stride);
  else if (s.stride_width == 2) pack_steps<2>(s, x, at, by_tap, k, depth, out, panel_stride);
  else pack_steps<0>(s, x, at, by_tap, k, depth, out, panel_stride);
}

}  // namespace infopt
