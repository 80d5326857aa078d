// Where a convolution's window lies in its input, for 16 output pixels at a time.
//
// The output pixels of all images are counted through: pixel = (image * out_height + row) *
// out_width + column. A panel is 16 of them. Each tap of the window (one place of the kernel) sees
// 16 elements of every channel's plane: a few pieces, whose lanes lie `stride_width` apart in
// memory; lanes that fall into the padding belong to no piece and read as 0.
#pragma once

#include "element.h"

namespace infopt {

struct ConvShape {
  int64_t batch, groups, channels, features;  // channels and features of one group
  int64_t height, width, out_height, out_width;
  int64_t kernel_height, kernel_width, stride_height, stride_width;
  int64_t pad_top, pad_left, dilation_height, dilation_width;
  int64_t image_stride, channel_stride, row_stride;  // of x, in elements; columns are neighbours

  int64_t taps() const { return kernel_height * kernel_width; }
  int64_t depth() const { return channels * taps(); }
  int64_t out_pixels() const { return out_height * out_width; }
  int64_t pixels() const { return batch * out_pixels(); }
};

// Lane i of `lanes` reads plane[base + i * stride_width].
struct Piece {
  int64_t base;
  uint32_t lanes, spread;  // spread: the lanes as every second bit
};

INFOPT_INLINE uint32_t spread_bits(uint32_t x) {
  x = (x | x << 8) & 0x00ff00ff;
  x = (x | x << 4) & 0x0f0f0f0f;
  x = (x | x << 2) & 0x33333333;
  return (x | x << 1) & 0x55555555;
}

// The pieces of tap t are pieces[first[t]] up to pieces[first[t + 1]]; 16 of each tap at most.
struct TapTable {
  Piece *pieces;
  int32_t *first;
  // Bytes of one table, a multiple of 64.
  static INFOPT_INLINE int64_t bytes(int64_t taps) { return round_up(taps * 260 + 4, 64); }
  TapTable(void *memory, int64_t taps)
      : pieces((Piece *)memory), first((int32_t *)((Piece *)memory + taps * 16)) {}
};

// Neighbouring output pixels of one row of one image, from `lane` on.
struct PixelRun {
  int64_t lane, count, image, row, column;
};

INFOPT_INLINE int64_t pixel_runs(const ConvShape &s, int64_t panel, PixelRun *runs) {
  int64_t found = 0;
  const int64_t total = s.pixels();
  for (int64_t lane = 0; lane < 16 && panel * 16 + lane < total; ++found) {
    const int64_t pixel = panel * 16 + lane, row = pixel / s.out_width;
    const int64_t column = pixel - row * s.out_width, image = row / s.out_height;
    const int64_t count = least(least(16 - lane, s.out_width - column), total - pixel);
    runs[found] = {lane, count, image, row - image * s.out_height, column};
    lane += count;
  }
  return found;
}

// All taps of a window that lies inside of the image, seen by 16 pixels of one row.
INFOPT_INLINE void find_inner_taps(const ConvShape &s, const PixelRun &run, int64_t row,
                                   int64_t column, const TapTable &table) {
  const int64_t corner = run.image * s.image_stride + row * s.row_stride + column;
  int32_t tap = 0;
  for (int64_t kh = 0; kh < s.kernel_height; ++kh)
    for (int64_t kw = 0; kw < s.kernel_width; ++kw, ++tap) {
      table.first[tap] = tap;
      table.pieces[tap] = {
          corner + kh * s.dilation_height * s.row_stride + kw * s.dilation_width, 0xffff,
          0x55555555};
    }
  table.first[tap] = tap;
}

inline void find_taps(const ConvShape &s, int64_t panel, const TapTable &table) {
  PixelRun runs[16];
  const int64_t count = pixel_runs(s, panel, runs);
  if (count == 1 && runs[0].count == 16) {
    const int64_t row = runs[0].row * s.stride_height - s.pad_top;
    const int64_t column = runs[0].column * s.stride_width - s.pad_left;
    const int64_t bottom = row + (s.kernel_height - 1) * s.dilation_height;
    const int64_t right = column + 15 * s.stride_width + (s.kernel_width - 1) * s.dilation_width;
    if (row >= 0 && bottom < s.height && column >= 0 && right < s.width)
      return find_inner_taps(s, runs[0], row, column, table);
  }
  int32_t used = 0;
  for (int64_t kh = 0, tap = 0; kh < s.kernel_height; ++kh) {
    for (int64_t kw = 0; kw < s.kernel_width; ++kw, ++tap) {
      const int32_t first = table.first[tap] = used;
      for (int64_t i = 0; i < count; ++i) {
        const PixelRun &run = runs[i];
        const int64_t row = run.row * s.stride_height - s.pad_top + kh * s.dilation_height;
        const int64_t column = run.column * s.stride_width - s.pad_left + kw * s.dilation_width;
        if (row < 0 || row >= s.height || column >= s.width) continue;
        int64_t from = 0, to = run.count;
        if (column < 0) from = ceil_div(-column, s.stride_width);
        if (column + (to - 1) * s.stride_width >= s.width)
          to = (s.width - 1 - column) / s.stride_width + 1;
        if (from >= to) continue;
        const int64_t base = run.image * s.image_stride + row * s.row_stride + column -
                             run.lane * s.stride_width;
        const uint32_t lanes = ((1u << to) - (1u << from)) << run.lane;
        if (used == first || table.pieces[used - 1].base != base)
          table.pieces[used++] = {base, 0, 0};
        table.pieces[used - 1].lanes |= lanes;
        table.pieces[used - 1].spread |= spread_bits(lanes);
      }
    }
  }
  table.first[s.taps()] = used;
}

// 16 elements of one plane as they lie in memory, 0 where no piece has the lane.
#ifdef INFOPT_AVX512
template <int size> struct Raw16;
template <> struct Raw16<4> { __m512i v; };
template <> struct Raw16<2> { __m256i v; };

// The even elements of 32, those of the piece's lanes read.
INFOPT_INLINE Raw16<4> every_second(Raw16<4> old, const uint32_t *p, const Piece &piece) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i low = _mm512_maskz_loadu_epi32(__mmask16(piece.spread), p);
  const __m512i high = _mm512_maskz_loadu_epi32(__mmask16(piece.spread >> 16), p + 16);
  const __m512i both = _mm512_permutex2var_epi32(low, even, high);
  return {_mm512_mask_mov_epi32(old.v, __mmask16(piece.lanes), both)};
}
INFOPT_INLINE Raw16<2> every_second(Raw16<2> old, const uint16_t *p, const Piece &piece) {
  const __m512i all = _mm512_maskz_loadu_epi16(piece.spread, p);
  return {_mm256_mask_mov_epi16(old.v, __mmask16(piece.lanes), _mm512_cvtepi32_epi16(all))};
}
INFOPT_INLINE Raw16<4> neighbours(Raw16<4> old, const uint32_t *p, uint32_t lanes) {
  return {_mm512_mask_loadu_epi32(old.v, __mmask16(lanes), p)};
}
INFOPT_INLINE Raw16<2> neighbours(Raw16<2> old, const uint16_t *p, uint32_t lanes) {
  return {_mm256_mask_loadu_epi16(old.v, __mmask16(lanes), p)};
}
INFOPT_INLINE Raw16<4> no_lanes(const uint32_t *) { return {_mm512_setzero_si512()}; }
INFOPT_INLINE Raw16<2> no_lanes(const uint16_t *) { return {_mm256_setzero_si256()}; }
#endif

template <class T> struct Bits;  // the unsigned integer that an element is moved as
template <> struct Bits<float> { using type = uint32_t; };
template <> struct Bits<bf16> { using type = uint16_t; };
template <> struct Bits<f16> { using type = uint16_t; };

// Lane by lane, for strides beyond 2 and levels without masked loads.
template <class T>
INFOPT_INLINE void read_lanes_one_by_one(const T *plane, const Piece *piece, const Piece *end,
                                         int64_t step, T *out) {
  for (; piece < end; ++piece) {
    const T *p = plane + piece->base;
    if (step == 1 && piece->lanes == 0xffff) {
      memcpy(out, p, 16 * sizeof(T));
      continue;
    }
    for (uint32_t left = piece->lanes; left; left &= left - 1) {
      const int lane = __builtin_ctz(left);
      out[lane] = p[lane * step];
    }
  }
}

// Sixteen elements of type T, to be read as f32 or paired as bf16.
#ifdef INFOPT_AVX512
template <class T> struct Sixteen {
  Raw16<sizeof(T)> raw;
  INFOPT_INLINE Vec widened() const;
};
template <> INFOPT_INLINE Vec Sixteen<float>::widened() const {
  return {_mm512_castsi512_ps(raw.v)};
}
template <> INFOPT_INLINE Vec Sixteen<bf16>::widened() const { return {widen_bf16(raw.v)}; }
template <> INFOPT_INLINE Vec Sixteen<f16>::widened() const { return {_mm512_cvtph_ps(raw.v)}; }

// known: the step between lanes if it is 1 or 2, else 0.
template <int known, class T>
INFOPT_INLINE Sixteen<T> read_lanes(const T *plane, const Piece *piece, const Piece *end,
                                    int64_t step) {
  using Integer = typename Bits<T>::type;
  Raw16<sizeof(T)> v = no_lanes((const Integer *)plane);
  if (known == 1) {
    for (; piece < end; ++piece)
      v = neighbours(v, (const Integer *)plane + piece->base, piece->lanes);
  } else if (known == 2) {
    for (; piece < end; ++piece)
      v = every_second(v, (const Integer *)plane + piece->base, *piece);
  } else {
    T lanes[16] = {};
    read_lanes_one_by_one(plane, piece, end, step, lanes);
    memcpy(&v, lanes, sizeof v);
  }
  return {v};
}

// The same of one piece, if there is one.
template <int known, class T>
INFOPT_INLINE Sixteen<T> read_piece(const T *plane, const Piece &piece, int64_t step) {
  using Integer = typename Bits<T>::type;
  const Integer *at = (const Integer *)plane;
  if (known == 1) return {neighbours(no_lanes(at), at + piece.base, piece.lanes)};
  if (known == 2) return {every_second(no_lanes(at), at + piece.base, piece)};
  return read_lanes<known>(plane, &piece, &piece + 1, step);
}

template <class T> INFOPT_INLINE BVec pairs_of(Sixteen<T> even, Sixteen<T> odd) {
  return to_pairs(even.widened(), odd.widened());
}
template <> INFOPT_INLINE BVec pairs_of(Sixteen<bf16> even, Sixteen<bf16> odd) {
  const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd.raw.v), 16);
  return {_mm512_or_si512(_mm512_cvtepu16_epi32(even.raw.v), high)};
}

// 32 neighbours of two planes as the pairs of two panels.
INFOPT_INLINE void store_two_panels(const bf16 *plane0, const Piece &even, const bf16 *plane1,
                                    const Piece &odd, bf16 *first, bf16 *second) {
  alignas(64) static constexpr uint16_t kLow[32] = {
      0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
      8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kLow);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  const __m512i a = _mm512_maskz_loadu_epi16(even.lanes, plane0 + even.base);
  const __m512i b = _mm512_maskz_loadu_epi16(odd.lanes, plane1 + odd.base);
  store_pairs(first, {_mm512_permutex2var_epi16(a, low, b)});
  store_pairs(second, {_mm512_permutex2var_epi16(a, high, b)});
}
#else
template <class T> struct Sixteen {
  T raw[16];
  INFOPT_INLINE Vec widened() const { return load(raw); }
};

template <int known, class T>
INFOPT_INLINE Sixteen<T> read_lanes(const T *plane, const Piece *piece, const Piece *end,
                                    int64_t step) {
  Sixteen<T> v = {};
  read_lanes_one_by_one(plane, piece, end, known ? known : step, v.raw);
  return v;
}

#ifdef INFOPT_AVX2
template <> struct Sixteen<float> {
  Vec lanes;
  INFOPT_INLINE Vec widened() const { return lanes; }
};

// Which of 32 lanes are read, the bit of every lane eight times.
struct Lanes32 {
  __m256i bits;
  explicit INFOPT_INLINE Lanes32(const uint32_t &lanes) : bits(_mm256_set1_epi32(int(lanes))) {}
  // Eight neighbours from p on, 0 for those of lanes first to first + 8 that are not read.
  template <int first> INFOPT_INLINE __m256 read(const float *p) const {
    constexpr int k = 31 - first;  // a load looks at the highest bit
    const __m256i up = _mm256_setr_epi32(k, k - 1, k - 2, k - 3, k - 4, k - 5, k - 6, k - 7);
    return _mm256_maskload_ps(p, _mm256_sllv_epi32(bits, up));
  }
};
// Every second of two times eight: the even ones of a; of b the even ones, or the odd ones.
template <bool odd> INFOPT_INLINE __m256 every_second(__m256 a, __m256 b) {
  constexpr int kPick = odd ? _MM_SHUFFLE(3, 1, 2, 0) : _MM_SHUFFLE(2, 0, 2, 0);
  const __m256 both = _mm256_shuffle_ps(a, b, kPick);
  return _mm256_castpd_ps(
      _mm256_permute4x64_pd(_mm256_castps_pd(both), _MM_SHUFFLE(3, 1, 2, 0)));
}
// The even elements of 31.
INFOPT_INLINE Vec every_second(const float *p) {
  return {every_second<false>(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)),
          every_second<true>(_mm256_loadu_ps(p + 16), _mm256_loadu_ps(p + 23))};
}
// The even elements of 32, those whose bits are set read.
INFOPT_INLINE Vec every_second(const float *p, Lanes32 spread) {
  return {every_second<false>(spread.read<0>(p), spread.read<8>(p + 8)),
          every_second<false>(spread.read<16>(p + 16), spread.read<24>(p + 24))};
}
// Sixteen neighbours likewise.
INFOPT_INLINE Vec neighbours(const float *p, Lanes32 lanes) {
  return {lanes.read<0>(p), lanes.read<8>(p + 8)};
}

template <int known>
INFOPT_INLINE Sixteen<float> read_lanes(const float *plane, const Piece *piece, const Piece *end,
                                        int64_t step) {
  if constexpr (known == 0) {
    float lanes[16] = {};
    read_lanes_one_by_one(plane, piece, end, step, lanes);
    return {load(lanes)};
  }
  Vec v = zero();
  for (; piece < end; ++piece) {  // every lane is in one piece at most
    const float *p = plane + piece->base;
    if (piece->lanes == 0xffff) return {known == 1 ? load(p) : every_second(p)};
    const Vec found = known == 1 ? neighbours(p, Lanes32(piece->lanes))
                                 : every_second(p, Lanes32(piece->spread));
    v = {_mm256_or_ps(v.a, found.a), _mm256_or_ps(v.b, found.b)};
  }
  return {v};
}
#endif

template <int known, class T>
INFOPT_INLINE Sixteen<T> read_piece(const T *plane, const Piece &piece, int64_t step) {
  return read_lanes<known>(plane, &piece, &piece + 1, step);
}

template <class T> INFOPT_INLINE BVec pairs_of(const Sixteen<T> &even, const Sixteen<T> &odd) {
  return to_pairs(even.widened(), odd.widened());
}
#endif

}  // namespace infopt
