// Strided copies of up to six dimensions, with a cast, whole rows or transposed tiles at a time.
#pragma once

#include "cast.h"

namespace infopt {

constexpr int kCopyDims = 6;
constexpr int64_t kUnit = 4096;    // elements that one unit of work copies, in one or more rows
constexpr int64_t kTileSide = 64;  // sides of the tile that one unit transposes

// Elements moved bit by bit: only their size matters.
template <class Raw>
static void move_strided(const Raw *x, int64_t from, Raw *y, int64_t to, int64_t n) {
  if (to == 1 && from == 0) {
    const Raw value = *x;
    for (int64_t i = 0; i < n; ++i) y[i] = value;
  } else {
    for (int64_t i = 0; i < n; ++i) y[i * to] = x[i * from];
  }
}
static void move_row(const char *x, int64_t from, char *y, int64_t to, int64_t n, int64_t bytes) {
  if (from == 1 && to == 1) {
    int64_t left = n * bytes;
    for (; left >= 64 && left <= 1024; left -= 64, x += 64, y += 64) memcpy(y, x, 64);
    if (left) memcpy(y, x, size_t(left));
  } else if (bytes == 8) move_strided((const uint64_t *)x, from, (uint64_t *)y, to, n);
  else if (bytes == 4) move_strided((const uint32_t *)x, from, (uint32_t *)y, to, n);
  else if (bytes == 2) move_strided((const uint16_t *)x, from, (uint16_t *)y, to, n);
  else move_strided((const uint8_t *)x, from, (uint8_t *)y, to, n);
}

// 16x16 elements: row i of x (from apart) becomes column i of y (rows `to` apart).
static bool transpose_block(const char *x, int64_t from, char *y, int64_t to, int64_t bytes) {
  Vec rows[16];
  if (bytes == 4) {
    for (int i = 0; i < 16; ++i) rows[i] = load((const float *)x + i * from);
    transpose16(rows);
    for (int i = 0; i < 16; ++i) store((float *)y + i * to, rows[i]);
    return true;
  }
#ifdef INFOPT_AVX512
  if (bytes == 2) {
    for (int i = 0; i < 16; ++i)
      rows[i].v = _mm512_castsi512_ps(_mm512_cvtepu16_epi32(
          _mm256_loadu_si256((const __m256i *)((const uint16_t *)x + i * from))));
    transpose16(rows);
    for (int i = 0; i < 16; ++i)
      _mm256_storeu_si256((__m256i *)((uint16_t *)y + i * to),
                          _mm512_cvtepi32_epi16(_mm512_castps_si512(rows[i].v)));
    return true;
  }
#endif
  return false;
}

struct CopyShape {
  int dims = 0;                        // outermost first; 1 at least
  int64_t size[kCopyDims], from[kCopyDims], to[kCopyDims];
  int64_t x_element, y_element;
  bool transposed;                     // x runs along the last dimension but one, y along the last

  CopyShape(int64_t count, int64_t x, int64_t y, const int64_t *sizes, const int64_t *x_strides,
            const int64_t *y_strides)
      : x_element(x), y_element(y) {
    for (int64_t i = 0; i < count; ++i) {  // sorted by the output's strides, ones left out
      if (sizes[i] == 1) continue;
      int at = dims++;
      for (; at > 0 && to[at - 1] < y_strides[i]; --at)
        size[at] = size[at - 1], from[at] = from[at - 1], to[at] = to[at - 1];
      size[at] = sizes[i], from[at] = x_strides[i], to[at] = y_strides[i];
    }
    if (dims == 0) dims = 1, size[0] = 1, from[0] = to[0] = 1;
    int kept = 0;
    for (int i = 1; i < dims; ++i) {  // neighbours that are one dimension in both become one
      if (from[kept] == from[i] * size[i] && to[kept] == to[i] * size[i]) {
        size[kept] *= size[i], from[kept] = from[i], to[kept] = to[i];
      } else {
        ++kept;
        size[kept] = size[i], from[kept] = from[i], to[kept] = to[i];
      }
    }
    dims = kept + 1;
    transposed = false;
    for (int i = 0; i + 1 < dims && from[dims - 1] != 1 && to[dims - 1] == 1; ++i) {
      if (from[i] != 1) continue;
      const int64_t n = size[i], f = from[i], t = to[i];
      for (int j = i; j + 2 < dims; ++j)
        size[j] = size[j + 1], from[j] = from[j + 1], to[j] = to[j + 1];
      size[dims - 2] = n, from[dims - 2] = f, to[dims - 2] = t;
      transposed = true;
      break;
    }
  }

  void run(const char *x, char *y, int64_t first_task, int64_t last_task, int64_t tasks) const {
    // A unit is `side` indices of the last dimension but one times `along` of the last.
    const int inner = dims - 1, outer = greatest(0, dims - 2);
    const int64_t rows = dims > 1 ? size[inner - 1] : 1;
    const int64_t along = transposed ? kTileSide : kUnit;
    const int64_t side = transposed ? kTileSide
                                    : greatest(1, kUnit / greatest(1, size[inner]));
    const int64_t parts = ceil_div(size[inner], along), groups = ceil_div(rows, side);
    int64_t units = parts * groups;
    for (int i = 0; i < outer; ++i) units *= size[i];
    int64_t unit = units * first_task / tasks;
    const int64_t end = units * last_task / tasks;
    if (unit >= end) return;
    int64_t index[kCopyDims], rest = unit / (parts * groups), f = 0, t = 0;
    for (int i = outer; i-- > 0; rest /= size[i]) {
      index[i] = rest % size[i];
      f += index[i] * from[i], t += index[i] * to[i];
    }
    int64_t part = unit % (parts * groups);
    for (; unit < end; ++unit) {
      const int64_t a = part / parts * side, b = part % parts * along;
      const int64_t a_end = least(a + side, rows), b_end = least(b + along, size[inner]);
      if (transposed) tile(x, y, f, t, a, a_end, b, b_end);
      else copy_rows(x, y, f, t, a, a_end, b, b_end);
      if (++part < parts * groups) continue;
      part = 0;
      for (int i = outer; i-- > 0;) {  // the next outer index
        f += from[i], t += to[i];
        if (++index[i] < size[i]) break;
        f -= size[i] * from[i], t -= size[i] * to[i], index[i] = 0;
      }
    }
  }

 private:
  void copy_rows(const char *x, char *y, int64_t f, int64_t t, int64_t a, int64_t a_end, int64_t b,
                 int64_t b_end) const {
    const int64_t sx = from[dims - 1], sy = to[dims - 1];
    const int64_t row_x = dims > 1 ? from[dims - 2] : 0, row_y = dims > 1 ? to[dims - 2] : 0;
    const int64_t bytes = element_bytes(x_element);
    for (; a < a_end; ++a) {
      const int64_t from_row = f + a * row_x + b * sx, to_row = t + a * row_y + b * sy;
      if (x_element == y_element)
        move_row(x + from_row * bytes, sx, y + to_row * bytes, sy, b_end - b, bytes);
      else
        cast_row(at(x, x_element, from_row), x_element, sx, b_end - b, at(y, y_element, to_row),
                 y_element, sy);
    }
  }

  // Up to 64x64 elements: a.. along x's contiguous dimension, b.. along y's.
  void tile(const char *x, char *y, int64_t f, int64_t t, int64_t a, int64_t a_end, int64_t b,
            int64_t b_end) const {
    const int64_t sx = from[dims - 1], sy = to[dims - 2], bytes = element_bytes(x_element);
    for (int64_t i = a; i < a_end; i += 16)
      for (int64_t j = b; j < b_end; j += 16) {
        const int64_t n = least(16, a_end - i), m = least(16, b_end - j);
        if (x_element == y_element && n == 16 && m == 16 &&
            transpose_block(x + (f + i + j * sx) * bytes, sx, y + (t + i * sy + j) * bytes, sy,
                            bytes))
          continue;
        for (int64_t k = 0; k < n; ++k) {
          const char *source = (const char *)at(x, x_element, f + i + k + j * sx);
          char *target = (char *)at(y, y_element, t + (i + k) * sy + j);
          if (x_element == y_element) move_row(source, sx, target, 1, m, bytes);
          else cast_row(source, x_element, sx, m, target, y_element, 1);
        }
      }
  }
};

}  // namespace infopt
