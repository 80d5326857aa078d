// What a convolution fetches while it computes a product: where the results of the next product go,
// and the part of the images that the panels after these are made of.
#pragma once

#include "conv_epilogue.h"
#include "microkernel.h"

namespace infopt {

// The lines of the results and residuals of some rows of panels that follow each other.
INFOPT_INLINE Ahead pixels_ahead(const ConvShape &s, const ConvEpilogue &e, const PixelLanes *at,
                                 int64_t panels, int64_t feature, int64_t rows) {
  Ahead ahead;
  const int64_t size = e.y.format == kRowF32 ? 4 : 2;
  if (rows <= 0 || !follow_each_other(at, panels)) return ahead;
  ahead.out[0] = (const char *)e.y.data + at[0].offset(s, 0, feature) * size;
  ahead.parts = 1, ahead.count = rows;
  ahead.stride = s.out_pixels() * size, ahead.width = panels * 16 * size;
  if (e.residual.present()) ahead.beside = (const char *)e.residual.data - (const char *)e.y.data;
  return ahead;
}

// What the lowest taps of some neighbouring pixels see of every channel's plane; what the taps
// above see has mostly been read for the pixels before. Channels lie a page or more apart, so no
// hardware guesses them.
class ImageAhead {
 public:
  ImageAhead() = default;
  // `panels` panels from p0 on, rows k to k + depth of them, spread over `products` products.
  ImageAhead(const ConvShape &s, const void *x, int64_t size, bool by_tap, int64_t group,
             int64_t p0, int64_t panels, int64_t k, int64_t depth, int64_t products) {
    const int64_t image = p0 * 16 / s.out_pixels(), pixel = p0 * 16 - image * s.out_pixels();
    const int64_t from = lowest(s, pixel);
    const int64_t to = lowest(s, least(pixel + panels * 16, s.out_pixels()) - 1) + 1;
    const int64_t first = by_tap ? 0 : k / s.taps();
    const int64_t channels = (by_tap ? s.channels : ceil_div(k + depth, s.taps())) - first;
    const int64_t plane = (group * s.channels + first) * s.channel_stride;
    pieces_.at = (const char *)x + (image * s.image_stride + plane + from) * size;
    pieces_.count = channels, pieces_.stride = s.channel_stride * size;
    pieces_.width = greatest(0, to - from) * size;
    share_ = ceil_div(channels, products);
  }
  // The share of the next product.
  INFOPT_INLINE Pieces take() {
    Pieces some = pieces_;
    some.count = least(share_, pieces_.count);
    pieces_.at += some.count * pieces_.stride, pieces_.count -= some.count;
    return some;
  }

 private:
  Pieces pieces_;
  int64_t share_ = 0;

  // The place of the element that the lowest tap of a pixel sees, or the nearest one to it.
  static int64_t lowest(const ConvShape &s, int64_t pixel) {
    const int64_t row = pixel / s.out_width, column = pixel - row * s.out_width;
    const int64_t bottom =
        row * s.stride_height - s.pad_top + (s.kernel_height - 1) * s.dilation_height;
    return greatest(0, least(bottom, s.height - 1)) * s.row_stride +
           least(column * s.stride_width, s.width - 1);
  }
};

}  // namespace infopt
