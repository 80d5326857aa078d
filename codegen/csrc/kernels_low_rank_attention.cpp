// infopt_low_rank_attention_{f32,bf16,f16}: infopt_attention whose queries, keys and values come as
// thin factors; those of one head are rebuilt in scratch, by the task that attends to them.
//   q_head = q q_up[head]ᵀ + q_bias[head] and so on, rounded to the kernel's dtype
//   pointers  q [B, Tq, Rq], k [B, Tk, Rk], v [B, Tk, Rv], mask (null: none), out,
//             q_up [Hq * D, Rq], k_up [Hkv * D, Rk], v_up [Hkv * Dv, Rv], and their biases, rows of
//             as many numbers, or null; all but biases have the kernel's dtype
//   numbers   as of infopt_attention, with the strides of rows in scratch for q, k and v: batch and
//             head 0, token D or Dv, feature 1; packed heads (Hq > Hkv, Tq <= 16) are not taken;
//             34 Rq  35 Rk  36 Rv      37 q, 40 k, 43 v: strides of batch and token, of rows of up
//             46 formats of the three biases
//   tasks     B * Hkv
//   scratch   that of infopt_attention, rounded up to 64, and
//             size * (Tq * D + Tk * (D + Dv)), each of the three rounded up to 64, size of the dtype
//             512 * (R + 1) + 49152 + 384 * (min(round_up(R, 32), 2048) + 32), R the largest rank
// Source of the idea: FlashSVD (Shao et al., arXiv 2508.01506).
#include "attention_rows.h"
#include "linear.h"

namespace infopt {

constexpr int64_t kRebuiltPanels = 8;  // panels of thin rows that are made wide at a time

// One of q, k and v: its rows, and how they are made from thin ones.
struct Factored {
  const void *x, *up, *bias;
  int64_t rank, batch_stride, stride, up_stride, bias_format;

  // which: 0 q, 1 k, 2 v
  Factored(const infopt_call *call, int which) {
    const int64_t *n = call->numbers;
    x = call->pointers[which], up = call->pointers[5 + which], bias = call->pointers[8 + which];
    rank = n[34 + which];
    batch_stride = n[37 + 3 * which], stride = n[38 + 3 * which], up_stride = n[39 + 3 * which];
    bias_format = bias ? n[46 + which] : int64_t(kAbsent);
  }
};

template <class T> constexpr int64_t kRowFormat = kRowF32;
template <> constexpr int64_t kRowFormat<bf16> = kRowBf16;
template <> constexpr int64_t kRowFormat<f16> = kRowF16;

// to[token][width]: one head's rows of `f`, for all tokens of a batch.
template <class T, class Step>
static void rebuild_rows(const Factored &f, const TileSession<Step> &session, int64_t batch,
                         int64_t head, int64_t tokens, int64_t width, T *to, void *scratch) {
  using Panel = typename Step::Panel;
  const int64_t per_panel = 16 * round_up(f.rank, 4 / int64_t(sizeof(Panel)));
  Panel *const panels = (Panel *)scratch;
  void *const products = panels + kRebuiltPanels * per_panel;
  LinearCall c = {};
  c.n = c.n_chunk = width, c.k = f.rank, c.row_stride = f.up_stride;
  c.panel_chunk = kRebuiltPanels, c.x_stride = per_panel;
  c.x = panels, c.w = (const T *)f.up + head * width * f.up_stride;
  if (f.bias_format != kAbsent) {
    const int64_t bytes = head * width * (f.bias_format == kRowF32 ? 4 : 2);
    c.epilogue.bias = {(char *)f.bias + bytes, 0, f.bias_format};
  }
  const TypedRows<typename Step::Row, T> source(nullptr, c);
  for (int64_t token = 0; token < tokens; token += 16 * kRebuiltPanels) {
    const T *x = (const T *)f.x + batch * f.batch_stride + token * f.stride;
    c.m = least(16 * kRebuiltPanels, tokens - token);
    const Matrix rows = {(void *)x, f.stride, kRowFormat<T>};
    const Matrix packed = {panels, per_panel, sizeof(Panel) == 2 ? kPanelBf16 : kPanelF32};
    for (int64_t p = 0; p < ceil_div(c.m, 16); ++p) pack_panel(rows, packed, c.m, f.rank, p);
    c.epilogue.y = {to + token * width, width, kRowFormat<T>};
    linear_task<Step>(c, source, session, 0, 0, products);
  }
}

// The next 64-byte line behind `bytes` of it.
template <class T> static T *behind(void *scratch, int64_t bytes) {
  return (T *)((char *)scratch + round_up(bytes, 64));
}

template <class T, class Steps, class Step>
static void low_rank_attention(const infopt_call *call, int64_t first_task, int64_t last_task) {
  const AttentionShape s = attention_shape(call);
  const AttentionScratch scratch(s, call->scratch);
  const Factored q(call, 0), k(call, 1), v(call, 2);
  T *const queries = behind<T>(call->scratch, 4 * (kTaskRows * (s.depth + s.value_depth) +
                                                   kKeyBlock * kTaskRows +
                                                   kKeyBlock * (s.depth + 1 + s.value_depth)));
  T *const keys = behind<T>(queries, s.queries * s.depth * int64_t(sizeof(T)));
  T *const values = behind<T>(keys, s.keys * s.depth * int64_t(sizeof(T)));
  void *const rest = behind<char>(values, s.keys * s.value_depth * int64_t(sizeof(T)));
  const Operands<T> operands = {queries, keys, values, pointer<void>(call, 3), pointer<T>(call, 4)};
  const TileSession<Step> session;
  for (int64_t task = first_task; task < last_task; ++task) {
    const int64_t batch = task / s.kv_heads, kv_head = task % s.kv_heads;
    rebuild_rows<T, Step>(k, session, batch, kv_head, s.keys, s.depth, keys, rest);
    rebuild_rows<T, Step>(v, session, batch, kv_head, s.keys, s.value_depth, values, rest);
    for (int64_t i = 0; i < s.group; ++i) {
      rebuild_rows<T, Step>(q, session, batch, kv_head * s.group + i, s.queries, s.depth, queries,
                            rest);
      for (int64_t row = 0; row < s.queries; row += kTaskRows)
        attend_rows<T, Steps>(s, operands, batch, kv_head, i * s.queries + row,
                              i * s.queries + least(s.queries, row + kTaskRows), scratch);
    }
  }
}

}  // namespace infopt

using namespace infopt;

#define INFOPT_LOW_RANK_ATTENTION(name, ...)                                                \
  INFOPT_EXPORT void infopt_low_rank_attention_##name(const infopt_call *call, int64_t first, \
                                                      int64_t last) {                       \
    low_rank_attention<__VA_ARGS__>(call, first, last);                                     \
  }
INFOPT_LOW_RANK_ATTENTION(f32, float, FloatSteps, StepF32)
INFOPT_LOW_RANK_ATTENTION(bf16, bf16, Bf16Steps, StepPairs)
INFOPT_LOW_RANK_ATTENTION(f16, f16, FloatSteps, StepF32)
#undef INFOPT_LOW_RANK_ATTENTION
