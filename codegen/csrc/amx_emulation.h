// The AMX tile instructions in plain C++, so that the AMX path can be tested on any machine.
//
// Enabled by -DINFOPT_EMULATE_AMX. Palette 1: 8 tiles of up to 16 rows x 64 bytes. Only what the
// kernels use: dot products of bf16, and of signed with unsigned bytes; tile shapes come from the
// configuration, as in hardware.
#pragma once

#include "half.h"

namespace infopt {

struct EmulatedTiles {
  uint8_t rows[8];
  uint16_t row_bytes[8];
  alignas(64) uint8_t data[8][16][64];
};
inline thread_local EmulatedTiles tiles;

inline void emulated_loadconfig(const void *config) {
  const uint8_t *bytes = static_cast<const uint8_t *>(config);
  memcpy(tiles.row_bytes, bytes + 16, sizeof tiles.row_bytes);
  memcpy(tiles.rows, bytes + 48, sizeof tiles.rows);
  memset(tiles.data, 0, sizeof tiles.data);
}
inline void emulated_zero(int t) { memset(tiles.data[t], 0, sizeof tiles.data[t]); }
inline void emulated_load(int t, const void *base, int64_t stride) {
  emulated_zero(t);
  for (int i = 0; i < tiles.rows[t]; ++i)
    memcpy(tiles.data[t][i], static_cast<const uint8_t *>(base) + i * stride, tiles.row_bytes[t]);
}
inline void emulated_store(int t, void *base, int64_t stride) {
  for (int i = 0; i < tiles.rows[t]; ++i)
    memcpy(static_cast<uint8_t *>(base) + i * stride, tiles.data[t][i], tiles.row_bytes[t]);
}
// c[i][j] += sum over pairs p of a[i][2p] b[p][2j] + a[i][2p+1] b[p][2j+1]
inline void emulated_dot_bf16(int c, int a, int b) {
  for (int i = 0; i < tiles.rows[c]; ++i) {
    float sums[16];
    bf16 left[32], right[32];
    memcpy(sums, tiles.data[c][i], sizeof sums);
    memcpy(left, tiles.data[a][i], sizeof left);
    for (int p = 0; p < tiles.row_bytes[a] / 4; ++p) {
      memcpy(right, tiles.data[b][p], sizeof right);
      for (int j = 0; j < tiles.row_bytes[c] / 4; ++j)
        for (int s = 0; s < 2; ++s)
          sums[j] += to_float(left[2 * p + s]) * to_float(right[2 * j + s]);
    }
    memcpy(tiles.data[c][i], sums, sizeof sums);
  }
}
// c[i][j] += sum over quads p, s < 4 of a[i][4p+s], signed, times b[p][4j+s], unsigned
inline void emulated_dot_bytes(int c, int a, int b) {
  for (int i = 0; i < tiles.rows[c]; ++i) {
    int32_t sums[16];
    memcpy(sums, tiles.data[c][i], sizeof sums);
    for (int p = 0; p < tiles.row_bytes[a] / 4; ++p)
      for (int j = 0; j < tiles.row_bytes[c] / 4; ++j)
        for (int s = 0; s < 4; ++s)
          sums[j] += int8_t(tiles.data[a][i][4 * p + s]) * int(tiles.data[b][p][4 * j + s]);
    memcpy(tiles.data[c][i], sums, sizeof sums);
  }
}

}  // namespace infopt

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbsud
#define _tile_loadconfig(config) infopt::emulated_loadconfig(config)
#define _tile_release() ((void)0)
#define _tile_zero(t) infopt::emulated_zero(t)
#define _tile_loadd(t, base, stride) infopt::emulated_load(t, base, stride)
#define _tile_stored(t, base, stride) infopt::emulated_store(t, base, stride)
#define _tile_dpbf16ps(c, a, b) infopt::emulated_dot_bf16(c, a, b)
#define _tile_dpbsud(c, a, b) infopt::emulated_dot_bytes(c, a, b)
