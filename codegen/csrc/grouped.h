// Linear layers of groups of rows, each with a weight of its own (the experts of a mixture):
//
//   y[r] = x[r] w[g]ᵀ   for ends[g - 1] <= r < ends[g];   0 behind the last end
//
// How many rows a group has is data. So a step has a fixed number of shares, and each takes its
// part of the pieces there really are: a piece is a block of a group's rows times a chunk of its
// weight rows. Pieces that read the same weights follow each other; groups without rows have none.
#pragma once

#include "few_rows.h"
#include "matmul.h"

namespace infopt {

struct GroupedCall {
  int64_t rows, n, k, groups;
  int64_t w_group, w_row, w_column;  // strides of w[groups][n][k]; one of the last two is 1
  int64_t n_chunk, panel_chunk, few, x_stride, y_stride, panel_stride, shares;
  const void *panels;
  const char *x, *w;
  const int32_t *ends;
  char *y;

  // Safe for any ends, though only rising ones mean something.
  int64_t end(int64_t g) const { return greatest(0, least(rows, ends[g])); }
  int64_t begin(int64_t g) const { return g ? end(g - 1) : 0; }
  // Group `groups` is what lies behind the last end.
  int64_t size(int64_t g) const {
    return greatest(0, (g < groups ? end(g) : rows) - begin(g));
  }
  // Panels of a group are whole: this is at least what all groups before take.
  int64_t first_panel(int64_t g) const { return begin(g) / 16 + g; }
  bool in_panels(int64_t g) const { return w_column == 1 && size(g) > few; }
  int64_t blocks(int64_t g) const {
    return g == groups ? (size(g) > 0) : ceil_div(size(g), 16 * panel_chunk);
  }
};

inline GroupedCall read_grouped(const infopt_call *call) {
  const int64_t *v = call->numbers;
  return {v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9], v[10], v[11], v[12], v[13],
          pointer<const void>(call, 0), pointer<const char>(call, 1), pointer<const char>(call, 2),
          pointer<const int32_t>(call, 3), pointer<char>(call, 4)};
}

// Calls body(group, block of rows, first weight row) for shares first to last of all pieces.
template <class Body>
void each_piece(const GroupedCall &c, int64_t first, int64_t last, const Body &body) {
  const int64_t chunks = ceil_div(c.n, c.n_chunk);
  int64_t total = 0;
  for (int64_t g = 0; g <= c.groups; ++g) total += c.blocks(g) * chunks;
  const int64_t from = total * first / c.shares, to = total * last / c.shares;
  int64_t before = 0;
  for (int64_t g = 0; g <= c.groups && before < to; ++g) {
    const int64_t blocks = c.blocks(g), end = before + blocks * chunks;
    for (int64_t i = greatest(from, before); i < least(to, end); ++i)
      body(g, (i - before) % blocks, (i - before) / blocks * c.n_chunk);
    before = end;
  }
}

// Rows of groups that have more than `few`, in panels that no two groups share.
template <class T, class Panel>
void pack_groups(const infopt_call *call, int64_t first, int64_t last) {
  const int64_t *v = call->numbers;
  GroupedCall c = {};
  c.rows = v[0], c.k = v[1], c.groups = v[2], c.few = v[3], c.w_column = 1;
  c.ends = pointer<const int32_t>(call, 1);
  Panel *const panels = pointer<Panel>(call, 2);
  int64_t g = 0;
  for (int64_t panel = first; panel < last; ++panel) {
    while (g + 1 < c.groups && c.first_panel(g + 1) <= panel) ++g;
    const int64_t index = panel - c.first_panel(g);
    if (!c.in_panels(g) || index >= ceil_div(c.size(g), 16)) continue;
    const Matrix x = {(void *)(pointer<const T>(call, 0) + c.begin(g) * v[4]), v[4],
                      format_of<T>()};
    const Matrix to = {panels + c.first_panel(g) * v[5], v[5], panel_format_of<Panel>()};
    pack_panel(x, to, c.size(g), c.k, index);
  }
}

// Step: the micro-kernel; Along: the one for few rows; T: the type of x, w and y.
template <class Step, class Along, class T>
void grouped_linear(const infopt_call *call, int64_t first, int64_t last) {
  const GroupedCall c = read_grouped(call);
  const TileSession<Step> session;
  each_piece(c, first, last, [&](int64_t g, int64_t block, int64_t n0) {
    const int64_t n1 = least(c.n, n0 + c.n_chunk), begin = c.begin(g), rows = c.size(g);
    const T *const x = (const T *)c.x + begin * c.x_stride;
    T *const y = (T *)c.y + begin * c.y_stride;
    if (g == c.groups) {
      for (int64_t r = 0; r < rows; ++r)
        memset(y + r * c.y_stride + n0, 0, size_t(n1 - n0) * sizeof(T));
      return;
    }
    const T *const w = (const T *)c.w + g * c.w_group;
    if (c.w_column == 1) {
      using Panel = typename Step::Panel;
      LinearCall one = {rows, c.n, c.k, c.w_row, c.n_chunk, c.panel_chunk, c.panel_stride,
                        (const Panel *)c.panels + c.first_panel(g) * c.panel_stride, w, nullptr, {}};
      one.epilogue.y = {y, c.y_stride, format_of<T>()};
      if (c.in_panels(g)) {
        const TypedRows<typename Step::Row, T> source(call, one);
        linear_task(one, source, session, block * c.panel_chunk, n0, call->scratch);
      } else {
        const Matrix few = {(void *)x, c.x_stride, format_of<T>()};
        const auto tokens = tokens_as(few, rows, c.k, (typename Along::X *)call->scratch);
        few_rows_task<Along, T>(one, tokens, n0, n1);
      }
      return;
    }
    MatmulCall one = {};
    one.m = rows, one.n = c.n, one.k = c.k, one.m_chunk = 16 * c.panel_chunk,
    one.n_chunk = c.n_chunk, one.a = {x, c.x_stride, 1, {}}, one.b = {w, c.w_column, c.w_row, {}};
    one.c = {y, c.y_stride, 1, {}}, one.c_format = format_of<T>(), one.alpha = 1;
    const int64_t m0 = block * one.m_chunk;
    matmul_task(one, session, x + m0 * c.x_stride, w + n0 * c.w_row, least(one.m_chunk, rows - m0),
                n1 - n0, m0 * c.y_stride + n0, m0, 0, least(kFewRows, c.few), call->scratch);
  });
}

}  // namespace infopt
