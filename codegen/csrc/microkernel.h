// The register-blocked heart of every matrix product: R rows times P panels of 16 lanes.
//
//   c[p][r][i] (+)= sum_k rows[r][k] * panel[p][k][i]       r < R, p < P, i < 16
//
// `rows` is row-major with any row stride (a weight as torch stores it, or rows of a matrix), its
// elements are broadcast. A panel is [k][16] f32, or [k/2][16][2] bf16 (docs/architecture.md).
#pragma once

#include "vec_bytes.h"

namespace infopt {

// How many Vecs the registers hold, how many of them sum (the rest hold lanes and a broadcast), and
// how many panels they sum for at most. The more panels, the fewer rows: lines of eight rows or fewer
// fit into one set of the first cache, where rows a power of two apart meet. kUnroll: steps along k
// between two jumps; with more of them gcc keeps sums of AVX2 in memory, a twelfth of the f32 rate.
#if defined(INFOPT_AVX512)
constexpr int kRegisters = 32, kSums = 24, kWidenSums = 24, kByteSums = 24;
constexpr int kMostPanels = 4, kWidenPanels = 2, kUnroll = 4;
#elif defined(INFOPT_AVX2)
constexpr int kRegisters = 8, kSums = 6, kWidenSums = 4, kByteSums = 4;
constexpr int kMostPanels = 1, kWidenPanels = 1, kUnroll = 2;
#else
constexpr int kRegisters = 4, kSums = 2, kWidenSums = 1, kByteSums = 1;
constexpr int kMostPanels = 1, kWidenPanels = 1, kUnroll = 4;
#endif
constexpr int kPanels = kMostPanels < 2 ? 1 : 2;  // of blocks that keep half of their sums elsewhere
constexpr int64_t kAtOnce = 4;  // panels of one product, at most, on every level

template <int n> struct Constant { static constexpr int value = n; };

// What one step along k does, by element types. f32 x f32: one k.
struct StepF32 {
  using Row = float;
  using Panel = float;
  static constexpr int kSums = infopt::kSums, kPanels = kMostPanels;
  static constexpr int kRowStep = 1;  // row elements per step of 16 panel lanes
  struct Lanes { Vec v; };
  static INFOPT_INLINE Lanes lanes(const float *p) { return {load(p)}; }
  static INFOPT_INLINE Vec add(Vec acc, const float *row, Lanes x) {
    return fma(broadcast(*row), x.v, acc);
  }
  static INFOPT_INLINE Vec add_last(Vec acc, const float *row, int64_t, Lanes x) {
    return add(acc, row, x);
  }
};

// bf16 x bf16 with the dot instruction: a 32-bit pair of neighbours along k is broadcast.
struct StepBf16 {
  using Row = bf16;
  using Panel = bf16;
  static constexpr int kSums = infopt::kSums, kPanels = kMostPanels;
  static constexpr int kRowStep = 2;
  struct Lanes { BVec v; };
  static INFOPT_INLINE Lanes lanes(const bf16 *p) { return {load_pairs(p)}; }
  static INFOPT_INLINE Vec add(Vec acc, const bf16 *row, Lanes x) {
    return dot_pairs(acc, broadcast_pair(row), x.v);
  }
  static INFOPT_INLINE Vec add_last(Vec acc, const bf16 *row, int64_t, Lanes x) {
    const bf16 pair[2] = {*row, {0}};  // an odd K: never read past the row
    return dot_pairs(acc, broadcast_pair(pair), x.v);
  }
};

// f32 rows x bf16 panels, for levels without the dot instruction: a bf16 widens by one shift.
struct StepWiden {
  using Row = float;
  using Panel = bf16;
  static constexpr int kSums = infopt::kWidenSums, kPanels = kWidenPanels;
  static constexpr int kRowStep = 2;
  struct Lanes { Vec even, odd; };
  static INFOPT_INLINE Lanes lanes(const bf16 *p) {
    const BVec pairs = load_pairs(p);
    return {even_lanes(pairs), odd_lanes(pairs)};
  }
  static INFOPT_INLINE Vec add(Vec acc, const float *row, Lanes x) {
    return fma(broadcast(row[1]), x.odd, fma(broadcast(row[0]), x.even, acc));
  }
  static INFOPT_INLINE Vec add_last(Vec acc, const float *row, int64_t, Lanes x) {
    return fma(broadcast(row[0]), x.even, acc);
  }
};

// With the dot instruction bf16 pairs meet as they are; elsewhere weights widen to f32.
#if defined(__AVX512BF16__) || defined(INFOPT_EMULATE_AMX)
using StepPairs = StepBf16;
#else
using StepPairs = StepWiden;
#endif

// Signed bytes x panels of unsigned bytes, summed in int32: the accumulators hold integers. Exact
// up to K = 65536, where sums could leave 32 bits.
struct StepBytes {
  using Row = int8_t;
  using Panel = uint8_t;
  static constexpr int kSums = infopt::kByteSums, kPanels = kMostPanels;
  static constexpr int kRowStep = 4;
  struct Lanes { IVec v; };
  static INFOPT_INLINE Lanes lanes(const uint8_t *p) { return {load_quads(p)}; }
  static INFOPT_INLINE Vec add(Vec acc, const int8_t *row, Lanes x) {
    return float_of_bits(dot_quads(bits(acc), x.v, broadcast_quad(row)));
  }
  static INFOPT_INLINE Vec add_last(Vec acc, const int8_t *row, int64_t left, Lanes x) {
    int8_t quad[4] = {};  // never read past the row
    memcpy(quad, row, size_t(left));
    return add(acc, quad, x);
  }
};

// The same for levels without the dot instruction: bytes of rows are 16 bits, the order of every
// four 0 2 1 3, zeros behind the last (store_halves).
#ifdef INFOPT_AVX2
struct StepHalves {
  using Row = int16_t;
  using Panel = uint8_t;
  static constexpr int kSums = infopt::kByteSums, kPanels = kMostPanels;
  static constexpr int kRowStep = 4;
  struct Lanes { IVec even, odd; };
  static INFOPT_INLINE Lanes lanes(const uint8_t *p) {
    const IVec quads = load_quads(p);
    return {even_bytes(quads), odd_bytes(quads)};
  }
  static INFOPT_INLINE Vec add(Vec acc, const int16_t *row, Lanes x) {
    const auto pair = [](const int16_t *p) { return broadcast_quad((const int8_t *)p); };
    return float_of_bits(dot_halves(dot_halves(bits(acc), x.even, pair(row)), x.odd, pair(row + 2)));
  }
  static INFOPT_INLINE Vec add_last(Vec acc, const int16_t *row, int64_t, Lanes x) {
    return add(acc, row, x);
  }
};
using StepCodes = StepHalves;
#else
using StepCodes = StepBytes;
#endif
template <class Step> constexpr bool kIntegers = sizeof(typename Step::Panel) == 1;

// Rows of a block of P panels.
template <class Step, int P> constexpr int kBlock = Step::kSums / P < 12 ? Step::kSums / P : 12;
// Panels of the next product where so many are left: one alone would leave registers idle.
template <class Step> INFOPT_INLINE int64_t panels_at_once(int64_t left) {
  constexpr int kMost = Step::kPanels;
  return left > kMost && left - kMost == 1 && kMost > 2 ? kMost - 1 : least(kMost, left);
}

// Pieces of memory wanted soon: `count` of `width` bytes, `stride` apart.
struct Pieces {
  const char *at = nullptr;
  int64_t count = 0, stride = 0, width = 0;
  int64_t at_once = 1;  // pieces to fetch per 64 bytes of a row

  INFOPT_INLINE void fetch() {
    for (int64_t i = least(at_once, count); i > 0; --i, --count, at += stride)
      for (const char *p = at - (uintptr_t)at % 64; p < at + width; p += 64)
        __builtin_prefetch(p, 0, 2);
  }
};

// Memory wanted soon, fetched a little at a time while the registers are busy: as few lines per 64
// bytes of a row as will do, because a burst of misses would stall the loads of the product itself.
// What will be written is fetched in the last part of every block, into the first cache and to be
// written: before that the panels would push it out again.
constexpr int64_t kLate = 1024;  // bytes of a row
struct Ahead {
  const char *out[kAtOnce];  // `count` pieces of `width` bytes, `stride` apart, of the first `parts`
  int64_t parts = 0;
  int64_t count = 0, stride = 0, width = 0;
  int64_t beside = 0;           // bytes from `out` to what is read where that is written, 0: nothing
  int64_t at_once = 1;          // pieces per 64 bytes of a row
  Pieces in;                    // what is read after this product

  INFOPT_INLINE void fetch_out() {
    for (int64_t i = least(at_once, count); i > 0; --i, --count)
      for (int64_t part = 0; part < parts; ++part) {
        for (int64_t b = 0; b < width; b += 64) {
          __builtin_prefetch(out[part] + b, 1, 3);
          if (beside) __builtin_prefetch(out[part] + beside + b, 0, 2);
        }
        out[part] += stride;
      }
  }
  // To be spread over so many blocks of rows of so many bytes.
  INFOPT_INLINE void spread(int64_t blocks, int64_t row_bytes) {
    if (count > 0) at_once = ceil_div(count, blocks * (least(kLate, row_bytes) / 64 + 1));
    if (in.count > 0) in.at_once = ceil_div(in.count, blocks * greatest(1, row_bytes / 64));
  }
};

// What becomes of a finished block, rows r to r + R: it is kept in c. Others take it while it is in
// registers.
struct Keep {
  // The same from row r and panel p on.
  INFOPT_INLINE Keep from(int64_t, int64_t) const { return {}; }
  template <int R, int P>
  INFOPT_INLINE void take(const Vec (&acc)[R][P], int64_t r0, float *c, int64_t c_stride) const {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) store(c + p * c_stride + (r0 + r) * 16, acc[r][p]);
  }
};

// `blocks` times R rows of `k` elements; strides in elements; c_stride is the distance between
// panels of c. The blocks are inside, for what is computed once takes as long as six steps of k.
// Rows before row_end, counted from the first, are fetched ahead.
template <class Step, int R, int P, class Finish>
__attribute__((noinline)) void multiply(const typename Step::Row *rows, int64_t row_stride,
                                        int64_t blocks, const typename Step::Panel *panels,
                                        int64_t panel_stride, int64_t k, float *c,
                                        int64_t c_stride, bool accumulate, int64_t row_end,
                                        Ahead &ahead, const Finish &finish) {
  using Row = typename Step::Row;
  constexpr int kLanes = 16 * int(sizeof(int32_t) / sizeof(typename Step::Panel));
  constexpr int kBases = (R + 2) / 3;
  constexpr int64_t kLine = 64 / sizeof(Row), kLast = kLate / sizeof(Row);
  const int64_t row_bytes = row_stride * int64_t(sizeof(Row));

  for (int64_t r0 = 0; r0 < blocks * R; r0 += R, rows += R * row_stride) {
    Vec acc[R][P];
    // Unrolled, or gcc makes them in memory: as much as a twentieth of the time at k = 64.
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p)
        acc[r][p] = accumulate ? load(c + p * c_stride + (r0 + r) * 16) : zero();

    // Three rows share a base pointer: base, base + stride, base + 2 * stride are x86 addresses.
    const Row *base[kBases];
#pragma GCC unroll 8
    for (int b = 0; b < kBases; ++b) base[b] = rows + b * 3 * row_stride;
    const typename Step::Panel *x[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) x[p] = panels + p * panel_stride;
    const char *next = r0 + 2 * R <= row_end ? (const char *)(rows + R * row_stride) : nullptr;

    auto step = [&](int u, auto add) __attribute__((always_inline)) {
      typename Step::Lanes lanes[P];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) lanes[p] = Step::lanes(x[p] + u * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Row *row = base[r / 3] + (r % 3) * row_stride + u * Step::kRowStep;
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) acc[r][p] = add(acc[r][p], row, lanes[p]);
      }
    };
    auto advance = [&](int steps) __attribute__((always_inline)) {
#pragma GCC unroll 8
      for (int b = 0; b < kBases; ++b) base[b] += steps * Step::kRowStep;
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) x[p] += steps * kLanes;
    };

    int64_t left = k;
    while (left >= kLine) {  // one cache line of every row
      // Hides that the pointers advance evenly, of which gcc makes a dozen more in memory.
#pragma GCC unroll 8
      for (int b = 0; b < kBases; ++b) asm("" : "+r"(base[b]));
      if (next) {
        for (int r = 0; r < R; ++r) __builtin_prefetch(next + r * row_bytes, 0, 2);
        next += 64;
      }
      if (left <= kLast && ahead.count > 0) ahead.fetch_out();
      if (ahead.in.count > 0) ahead.in.fetch();
      for (int r = 0; r < R; ++r)  // the panels have pushed the rows out of the first cache
        __builtin_prefetch((const char *)(base[r / 3] + (r % 3) * row_stride) + 64, 0, 3);
      for (int64_t i = 0; i < kLine; i += kUnroll * Step::kRowStep) {
#pragma GCC unroll 4
        for (int u = 0; u < kUnroll; ++u) step(u, Step::add);
        advance(kUnroll);
      }
      left -= kLine;
    }
    for (; left >= Step::kRowStep; left -= Step::kRowStep) {
      step(0, Step::add);
      advance(1);
    }
    if (left)
      step(0, [left](Vec c, const Row *row, typename Step::Lanes lanes)
                  __attribute__((always_inline)) { return Step::add_last(c, row, left, lanes); });

    finish.take(acc, r0, c, c_stride);
  }
}

// The same for any number of rows.
template <class Step, int P, class Finish>
INFOPT_INLINE void multiply_rows(const typename Step::Row *rows, int64_t row_stride,
                                 int64_t row_count, const typename Step::Panel *panels,
                                 int64_t panel_stride, int64_t k, float *c, int64_t c_stride,
                                 bool accumulate, int64_t row_end, Ahead &ahead,
                                 const Finish &finish) {
  constexpr int kMost = kBlock<Step, P>;
  int64_t r = 0;
  auto some = [&](auto size, int64_t blocks) __attribute__((always_inline)) {
    constexpr int R = decltype(size)::value;
    multiply<Step, R, P>(rows + r * row_stride, row_stride, blocks, panels, panel_stride, k,
                         c + r * 16, c_stride, accumulate, row_end - r, ahead, finish.from(r, 0));
    r += blocks * R;
  };
  if (row_count >= kMost) some(Constant<kMost>(), row_count / kMost);
  if constexpr (kMost > 8) if (r + 8 <= row_count) some(Constant<8>(), 1);
  if constexpr (kMost > 4) if (r + 4 <= row_count) some(Constant<4>(), 1);
  if constexpr (kMost > 2) if (r + 2 <= row_count) some(Constant<2>(), 1);
  if (r < row_count) some(Constant<1>(), 1);
}

// The same for any number of panels. `ahead` is spread over all of it.
template <class Step, class Finish = Keep>
void multiply_block(const typename Step::Row *rows, int64_t row_stride, int64_t row_count,
                    const typename Step::Panel *panels, int64_t panel_stride, int64_t count,
                    int64_t k, float *c, int64_t c_stride, bool accumulate, int64_t row_end,
                    Ahead &ahead, const Finish &finish = Finish()) {
  constexpr int kMost = Step::kPanels;
  ahead.spread(ceil_div(row_count, kBlock<Step, kMost>) * ceil_div(count, kMost),
               k * int64_t(sizeof(*rows)));
  for (int64_t p = 0, taken; p < count; p += taken, row_end = 0) {
    taken = panels_at_once<Step>(count - p);
    auto some = [&](auto size) __attribute__((always_inline)) {
      multiply_rows<Step, decltype(size)::value>(rows, row_stride, row_count,
                                                 panels + p * panel_stride, panel_stride, k,
                                                 c + p * c_stride, c_stride, accumulate, row_end,
                                                 ahead, finish.from(0, p));
    };
    if constexpr (kMost > 3) if (taken == 4) some(Constant<4>());
    if constexpr (kMost > 2) if (taken == 3) some(Constant<3>());
    if constexpr (kMost > 1) if (taken == 2) some(Constant<2>());
    if (taken == 1) some(Constant<1>());
  }
}

}  // namespace infopt
