// Which engine multiplies a block: the vector micro-kernel, or AMX tiles for bf16 and bytes.
//
// A weight tile is 16 rows x 64 bytes of k straight from row-major memory; a panel tile is 16 words
// (a pair of bf16, four bytes) of k x 16 tokens, contiguous in the panel; a product tile is 16 rows
// x 16 tokens of f32 or int32. 2x2 product tiles share their operands: four loads feed four dot
// products.
#pragma once

#include "microkernel.h"

#if defined(INFOPT_EMULATE_AMX)
#define INFOPT_AMX 1
#include "amx_emulation.h"
#elif defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__)
#define INFOPT_AMX 1
#include <immintrin.h>
#endif

namespace infopt {

// Lives for one kernel call on one thread.
template <class Step> struct TileSession {
  static constexpr bool kVectors = true;  // multiply is multiply_block
  // Panels of the next product where so many are left.
  static INFOPT_INLINE int64_t panels(int64_t left) { return panels_at_once<Step>(left); }
  template <class... Args> INFOPT_INLINE void multiply(Args &&...args) const {
    multiply_block<Step>(args...);
  }
};

#ifdef INFOPT_AMX
constexpr int64_t kTile = 16;

// k of one tile.
template <class Step> constexpr int64_t kTileDepth = 64 / int64_t(sizeof(typename Step::Row));

// The compiler does not know that a tile load reads memory: finish pending stores before it.
INFOPT_INLINE void finish_stores() { __asm__ volatile("" ::: "memory"); }

// The last columns of k, zero-padded to whole tiles.
struct Tail {
  alignas(64) uint8_t tile[2][kTile * 64];
  void copy_rows(int which, const void *rows, int64_t row_bytes, int64_t bytes) {
    memset(tile[which], 0, sizeof tile[which]);
    for (int64_t i = 0; i < kTile; ++i)
      memcpy(tile[which] + i * 64, (const uint8_t *)rows + i * row_bytes, size_t(bytes));
  }
  void copy_panel(int which, const void *panel, int64_t words) {
    memset(tile[which], 0, sizeof tile[which]);
    memcpy(tile[which], panel, size_t(words) * 64);
  }
};

// (R * 16) rows times P panels, R and P in {1, 2}. Tiles 0-3: products, 4-5: rows, 6-7: panels.
template <class Step, int R, int P>
__attribute__((noinline)) void multiply_tiles(const typename Step::Row *rows, int64_t stride,
                                              const typename Step::Panel *panels,
                                              int64_t panel_stride, int64_t k, float *c,
                                              int64_t c_stride, bool accumulate) {
  constexpr int64_t kDepth = kTileDepth<Step>;
  float *c0 = c, *c1 = c + c_stride;                     // panels
  float *c2 = c + kTile * 16, *c3 = c1 + kTile * 16;     // second 16 rows
  finish_stores();
  if (accumulate) {
    _tile_loadd(0, c0, 64);
    if (P == 2) _tile_loadd(1, c1, 64);
    if (R == 2) _tile_loadd(2, c2, 64);
    if (R == 2 && P == 2) _tile_loadd(3, c3, 64);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
#define INFOPT_TILE_DOT(to, row, panel)                  \
  if constexpr (kIntegers<Step>)                         \
    _tile_dpbsud(to, row, panel);                        \
  else                                                   \
    _tile_dpbf16ps(to, row, panel);
  auto step = [](const void *a0, const void *a1, int64_t a_bytes, const void *b0, const void *b1) {
    _tile_loadd(6, b0, 64);
    _tile_loadd(4, a0, a_bytes);
    INFOPT_TILE_DOT(0, 4, 6)
    if (P == 2) {
      _tile_loadd(7, b1, 64);
      INFOPT_TILE_DOT(1, 4, 7)
    }
    if (R == 2) {
      _tile_loadd(5, a1, a_bytes);
      INFOPT_TILE_DOT(2, 5, 6)
    }
    if (R == 2 && P == 2) {
      INFOPT_TILE_DOT(3, 5, 7)
    }
  };
#undef INFOPT_TILE_DOT
  const int64_t row_bytes = stride * int64_t(sizeof(*rows));
  const auto *a0 = rows, *a1 = rows + kTile * stride;
  const auto *b0 = panels, *b1 = panels + panel_stride;
  for (; k >= kDepth; k -= kDepth) {
    step(a0, a1, row_bytes, b0, b1);
    a0 += kDepth, a1 += kDepth, b0 += kDepth * 16, b1 += kDepth * 16;
  }
  if (k) {
    const int64_t bytes = k * int64_t(sizeof(*rows)), words = ceil_div(k, Step::kRowStep);
    Tail a, b;
    a.copy_rows(0, a0, row_bytes, bytes);
    if (R == 2) a.copy_rows(1, a1, row_bytes, bytes);
    b.copy_panel(0, b0, words);
    if (P == 2) b.copy_panel(1, b1, words);
    finish_stores();
    step(a.tile[0], a.tile[1], 64, b.tile[0], b.tile[1]);
  }
  _tile_stored(0, c0, 64);
  if (P == 2) _tile_stored(1, c1, 64);
  if (R == 2) _tile_stored(2, c2, 64);
  if (R == 2 && P == 2) _tile_stored(3, c3, 64);
}

template <class Step> struct Tiles {
  static constexpr bool kVectors = false;
  using Row = typename Step::Row;
  using Panel = typename Step::Panel;

  Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    static_assert(sizeof config == 64, "a tile configuration is 64 bytes");
    finish_stores();
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
  static INFOPT_INLINE int64_t panels(int64_t left) { return least(2, left); }
  Tiles(const Tiles &) = delete;

  template <int R>
  INFOPT_INLINE void multiply_rows(const Row *rows, int64_t stride, const Panel *panels,
                                   int64_t panel_stride, int64_t count, int64_t k, float *c,
                                   int64_t c_stride, bool accumulate) const {
    int64_t p = 0;
    for (; p + 2 <= count; p += 2)
      multiply_tiles<Step, R, 2>(rows, stride, panels + p * panel_stride, panel_stride, k,
                                 c + p * c_stride, c_stride, accumulate);
    if (p < count)
      multiply_tiles<Step, R, 1>(rows, stride, panels + p * panel_stride, panel_stride, k,
                                 c + p * c_stride, c_stride, accumulate);
  }

  // As multiply_block; fewer than 16 last rows go to the vector micro-kernel.
  void multiply(const Row *rows, int64_t stride, int64_t row_count, const Panel *panels,
                int64_t panel_stride, int64_t count, int64_t k, float *c, int64_t c_stride,
                bool accumulate, int64_t row_end, Ahead &out) const {
    while (out.count > 0) out.fetch_out();
    int64_t r = 0;
    for (; r + 32 <= row_count; r += 32)
      multiply_rows<2>(rows + r * stride, stride, panels, panel_stride, count, k, c + r * 16,
                       c_stride, accumulate);
    for (; r + 16 <= row_count; r += 16)
      multiply_rows<1>(rows + r * stride, stride, panels, panel_stride, count, k, c + r * 16,
                       c_stride, accumulate);
    if (r < row_count)
      multiply_block<Step>(rows + r * stride, stride, row_count - r, panels, panel_stride, count,
                           k, c + r * 16, c_stride, accumulate, row_end - r, out);
  }
};
template <> struct TileSession<StepBf16> : Tiles<StepBf16> {};
template <> struct TileSession<StepBytes> : Tiles<StepBytes> {};
#endif  // INFOPT_AMX

}  // namespace infopt
