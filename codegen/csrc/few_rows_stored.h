// Linear layers for few tokens whose weights are stored in few bits: lanes along K, every byte read
// once as it streams from memory, unpacked in registers.
//
// Activations are bytes (codes and a step and a zero point for each token) or numbers. Numbers are
// brought into the order in which the four bytes of a lane come out of a block:
// xp[block][j][lane] = x[64 block + 4 lane + j].
#pragma once

#include <type_traits>

#include "byte_panels.h"
#include "few_rows.h"
#include "linear_stored.h"

namespace infopt {

struct StoredTokens {
  const void *x;   // codes [M][padded], or numbers [M][padded] in lane order
  int64_t stride;  // elements between tokens
  const RowCode *codes;
};

// Tokens as bytes or in lane order into scratch; `count` of them are zeros beyond c.m.
template <bool as_bytes>
inline StoredTokens stored_tokens(const Matrix &x, int64_t m, int64_t count, int64_t k,
                                  [[maybe_unused]] const Rounding &rounding, void *scratch) {
  const int64_t padded = round_up(k, kBlockDepth);
  RowCode *codes = (RowCode *)scratch;
  void *data = (char *)scratch + round_up(count * int64_t(sizeof(RowCode)), 64);
  for (int64_t t = 0; t < count; ++t) {
    codes[t] = {};
    if constexpr (as_bytes) {
      uint8_t *to = (uint8_t *)data + t * padded;
      memset(to, 0, size_t(padded));
      if (t < m && x.format == kPanelBytes) {
        const BytePanels panels = byte_panels(x.data, m, k);
        codes[t] = {0, panels.steps[t], panels.zeros[t]};
        const uint8_t *from = panels.codes + t / 16 * panels.stride + t % 16 * 4;
        for (int64_t i = 0; i < k; i += 4) memcpy(to + i, from + i * 16, 4);
      } else if (t < m) {
        with_row_type(x.format, [&](auto *type) {
          const auto *row = (decltype(type))x.data + t * x.stride;
          codes[t] = row_code(row, k, rounding);
          for (int64_t i = 0; i < k; i += 16) {
            uint8_t sixteen[16];
            store_row_codes(row + i, least(16, k - i), codes[t], rounding.kind == kStatic, sixteen);
            memcpy(to + i, sixteen, size_t(least(16, k - i)));
          }
        });
      }
    } else {
      float *to = (float *)data + t * padded;
      memset(to, 0, size_t(padded) * sizeof(float));
      if (t < m)
        with_row_type(x.format, [&](auto *type) {
          const auto *row = (decltype(type))x.data + t * x.stride;
          int64_t i = 0;
          for (; i + kBlockDepth <= k; i += kBlockDepth)
            for (int j = 0; j < 4; ++j)
              for (int lane = 0; lane < 16; ++lane)
                to[i + j * 16 + lane] = to_float(row[i + lane * 4 + j]);
          for (int64_t rest = i; rest < k; ++rest)
            to[i + rest % 4 * 16 + rest % kBlockDepth / 4] = to_float(row[rest]);
        });
    }
  }
  return {data, padded, codes};
}

// So far ahead of what is read memory is asked for the weights, at least.
constexpr int64_t kAhead = 4096;

// Scale: the type of a group's factors, void where a row has one.
template <int layout, bool as_bytes, class Scale> struct StoredDot {
  using L = Layout<layout>;
  static constexpr bool grouped = !std::is_void_v<Scale>;
  using Token = std::conditional_t<as_bytes, uint8_t, float>;
  template <class I> static INFOPT_INLINE I dot(I acc, I x, I w) {
    return layout == 4 ? dot_small_quads(acc, x, w) : dot_quads(acc, x, w);
  }
  // R rows from n on (those beyond `last` repeat it) times M tokens; the lanes of P, to be folded.
  template <class P, int R, int M>
  static __attribute__((noinline)) void rows(const StoredRows &w, int64_t n, int64_t last,
                                             const StoredTokens &x, int64_t token, int64_t ahead,
                                             Vec *sums, [[maybe_unused]] Upcoming upcoming) {
    using F = typename P::F;
    using I = typename P::I;
    // Rows that are multiplied by a token after it was loaded: all, where they fit the registers.
    constexpr int together = P::kRegisters > kRegisters ? R : 1;
    const uint8_t *row[R];
    const Scale *scales[R];
    FloatTable<L::bits> tables[R];
    F acc[R][M];
    for (int r = 0; r < R; ++r) {
      row[r] = w.row(least(n + r, last));
      if constexpr (L::table && !as_bytes) tables[r] = FloatTable<L::bits>(row[r]);
      if constexpr (grouped) scales[r] = w.template group_scales<Scale>(least(n + r, last));
      for (int m = 0; m < M; ++m) acc[r][m] = P::of(zero());
    }
    const int group_bits = grouped ? __builtin_ctzll(uint64_t(w.group)) : 0;
    const int64_t groups = grouped ? ceil_div(w.k, w.group) : 0;
    const auto *tokens = (const Token *)x.x + token * x.stride;
    const int64_t token_stride = x.stride, depth = w.k;
    auto step = [&](int64_t b, auto is_whole, auto has_pairs) __attribute__((always_inline)) {
      constexpr bool whole = decltype(is_whole)::value, pairs = decltype(has_pairs)::value;
      const auto scale_of = [&](int r) __attribute__((always_inline)) {
        if constexpr (grouped)
          return P::of(block_scales<whole, pairs>(scales[r], b, group_bits, groups));
        else return P::of(zero());
      };
      if constexpr (!P::kWhole) upcoming.fetch();
#pragma GCC unroll 8
      for (int first = 0; first < R; first += together) {
        if constexpr (as_bytes) {
          I block[together];
          F scale[together];
#pragma GCC unroll 8
          for (int r = 0; r < together; ++r) {
            const uint8_t *of = row[first + r];
            if constexpr (P::kWhole) __builtin_prefetch(of + ahead + b * L::block_bytes, 0, 2);
            scale[r] = scale_of(first + r);
            block[r] = P::of(stored_block<layout, whole>(of, b, depth));
          }
#pragma GCC unroll 8
          for (int m = 0; m < M; ++m) {
            const I codes = P::of(load_quads(tokens + m * token_stride + b * kBlockDepth));
#pragma GCC unroll 8
            for (int r = 0; r < together; ++r) {
              F &sum = acc[first + r][m];
              if (grouped)
                sum = fma(to_float(dot(P::of(ibroadcast(0)), codes, block[r])), scale[r], sum);
              else sum = float_of_bits(dot(bits(sum), codes, block[r]));
            }
          }
        } else {
#pragma GCC unroll 8
          for (int r = first; r < first + together; ++r) {
            if constexpr (P::kWhole)
              __builtin_prefetch(row[r] + ahead + b * L::block_bytes, 0, 2);
            const F scale = scale_of(r);
            Vec part[4];
            stored_floats<layout, whole>(row[r], b, depth, tables[r], part);
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
              const Token *values = tokens + m * token_stride + b * kBlockDepth;
              F sum = grouped ? P::of(zero()) : acc[r][m];
              for (int j = 0; j < 4; ++j)
                sum = fma(P::of(part[j]), P::of(load(values + j * 16)), sum);
              acc[r][m] = grouped ? fma(sum, scale, acc[r][m]) : sum;
            }
          }
        }
      }
    };
    const int64_t blocks = depth / kBlockDepth;
    auto all = [&](auto has_pairs) __attribute__((always_inline)) {
      for (int64_t b = 0; b < blocks; ++b) step(b, Constant<true>(), has_pairs);
      if (depth % kBlockDepth) step(blocks, Constant<false>(), has_pairs);
    };
    if (grouped && w.group < kBlockDepth) all(Constant<true>());
    else all(Constant<false>());
    for (int r = 0; r < R; ++r)
      for (int m = 0; m < M; ++m) P::put(sums[m * 16 + r], acc[r][m]);
  }

  // 16 features from n on for M tokens; in parts where whole sums would leave too few registers.
  template <int M>
  static void features(const StoredRows &w, int64_t n, int64_t last, const StoredTokens &x,
                       int64_t token, Vec *sums, Upcoming &upcoming) {
    constexpr bool parts = M > 2 && kParts == 2;
    constexpr int registers = parts ? Part<0>::kRegisters : kRegisters;
    constexpr int kTemporaries = as_bytes ? 4 : 5;
    constexpr auto fits = [](int rows) { return rows * M + kTemporaries <= registers; };
    constexpr int R = fits(8) ? 8 : fits(4) ? 4 : fits(2) ? 2 : 1;
    const int64_t ahead = round_up(ceil_div(kAhead, w.stride), R) * w.stride;
    const auto part = [&](auto which, int r) __attribute__((always_inline)) {
      rows<decltype(which), R, M>(w, n + r, last, x, token, ahead, sums + r, upcoming);
      upcoming.at += ceil_div(w.k, kBlockDepth) * upcoming.step;
    };
    for (int r = 0; r < 16; r += R) {
      if constexpr (parts) part(Part<0>(), r), part(Part<1>(), r);
      else part(Whole(), r);
    }
  }
  static void tokens(const StoredRows &w, int64_t n, int64_t last, const StoredTokens &x,
                     int64_t token, int64_t count, Vec *sums, Upcoming &upcoming) {
    if (count == 1) return features<1>(w, n, last, x, token, sums, upcoming);
    if (count == 2) return features<2>(w, n, last, x, token, sums, upcoming);
    features<4>(w, n, last, x, token, sums, upcoming);
  }
  // What the lanes of 16 features add up to, for one token.
  static Vec fold(const StoredRows &w, const float *row_sums, int64_t n, int64_t count,
                  const RowCode &code, const Vec *lanes) {
    if constexpr (!as_bytes) {
      const Vec sum = sums16(lanes);
      return grouped ? sum : sum * load_some((const float *)w.scales + n, count);
    } else if constexpr (grouped) {
      const Vec zeros = broadcast(float(code.zero));
      return fnma(zeros, load_some(row_sums + n, count), sums16(lanes)) * broadcast(code.step);
    } else {
      const IVec sums = to_int(load_some(row_sums + n, count));
      const IVec exact = int_sums16(lanes) - mul(ibroadcast(code.zero), sums);
      const Vec scale = load_some((const float *)w.scales + n, count);
      return to_float(exact) * (broadcast(code.step) * scale);
    }
  }
};

// What the remainders of `features` rows from n on add to their products with one token, given in
// lane order. All their entries are one stream: loops over those of a row would end unforeseen.
inline Vec remainder_products(const Remainder &remainder, int64_t n, int64_t features,
                              const float *token) {
  constexpr int64_t kStretch = 512;
  alignas(64) float products[kStretch];
  const int32_t *starts = remainder.starts + n;
  Vec lanes[16];
  for (Vec &lane : lanes) lane = zero();
  for (int64_t from = starts[0]; from < starts[features]; from += kStretch) {
    const int64_t count = least(kStretch, starts[features] - from);
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t entry = uint32_t(remainder.entries[from + i]), column = entry & 0xffff;
      const uint32_t place = (column & ~63u) | (column & 3) << 4 | (column >> 2 & 15);
      products[i] = float_of(entry & 0xffff0000u) * token[place];
    }
    for (int64_t f = 0; f < features; ++f) {
      const int64_t end = least(count, starts[f + 1] - from);
      for (int64_t i = starts[f] < from ? 0 : starts[f] - from; i < end; i += 16)
        lanes[f] = lanes[f] + load_some(products + i, least(16, end - i));
    }
  }
  return sums16(lanes);
}

template <int layout, bool as_bytes, class Scale>
void few_rows_stored(const infopt_call *call, int64_t first, int64_t last) {
  using Dot = StoredDot<layout, as_bytes, Scale>;
  const LinearCall c = read_linear(call);
  const StoredRows w[2] = {stored_rows(call, c, false), stored_rows(call, c, true)};
  const float *sums[2] = {pointer<float>(call, 10), pointer<float>(call, 11)};
  const Remainder remainder[2] = {remainder_of(call, c, false), remainder_of(call, c, true)};
  const Matrix x_in_memory = {call->pointers[0], c.x_stride, call->numbers[19]};
  const StoredTokens x =
      stored_tokens<as_bytes>(x_in_memory, c.m, round_up(c.m, 4), c.k,
                              read_rounding(call->numbers[20], call->numbers + 21), call->scratch);
  for (int64_t task = first; task < last; ++task) {
    const int64_t n1 = least(c.n, (task + 1) * c.n_chunk);
    if (task == 0) store_fixed_codes(c, 0, ceil_div(c.m, 16));
    for (int64_t n = task * c.n_chunk; n < n1; n += 16) {
      const int64_t features = least(16, n1 - n);
      // 8 steps along k for two rows of 16, in every part; the next features come in meanwhile
      const int64_t in_parts = c.m > 3 ? (c.m + 1) / 4 : 1;
      const int64_t steps = ceil_div(c.k, kBlockDepth) * 8 * kParts * in_parts;
      const auto next = [&](const StoredRows &rows) {
        return Upcoming(rows.row(n + 16), 16 * rows.stride, steps);
      };
      Upcoming upcoming[2] = {next(w[0]), next(w[c.up ? 1 : 0])};
      for (int64_t m = 0; m < c.m; m += 4) {
        const int64_t tokens = least(4, c.m - m);
        Vec lanes[2][4 * 16];
        for (int side = 0; side < (c.up ? 2 : 1); ++side)
          Dot::tokens(w[side], n, n + features - 1, x, m, tokens, lanes[side], upcoming[side]);
        for (int64_t i = 0; i < tokens; ++i) {
          const RowCode &code = x.codes[m + i];
          Vec y = Dot::fold(w[0], sums[0], n, features, code, lanes[0] + i * 16);
          Vec up = zero();
          if (c.up) up = Dot::fold(w[1], sums[1], n, features, code, lanes[1] + i * 16);
          if constexpr (!as_bytes) {
            const float *token = (const float *)x.x + (m + i) * x.stride;
            if (remainder[0]) y = y + remainder_products(remainder[0], n, features, token);
            if (remainder[1]) up = up + remainder_products(remainder[1], n, features, token);
          }
          finish_row(c.epilogue, y, c.up ? &up : nullptr, m + i, n, features);
        }
      }
    }
  }
}

}  // namespace infopt
