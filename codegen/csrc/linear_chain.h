// Linear layers one after another: what lies between two of them never leaves a task's scratch.
//
// A task takes `panel_chunk` panels of tokens through all products. Each product's epilogue writes
// the panels that the next one reads; two buffers take turns, and a third holds what is multiplied
// beside a gate.
#pragma once

#include "linear.h"

namespace infopt {

// The rows of a row-major matrix from `row` on.
inline Matrix rows_from(const Matrix &m, int64_t row) {
  const int64_t size = m.format == kRowF32 ? 4 : 2;
  return {(char *)m.data + row * m.stride * size, m.stride, m.format};
}

// The order of pointers and numbers is in kernels_linear.cpp.
template <class Step, class W>
void linear_chain(const infopt_call *call, int64_t first, int64_t last) {
  using Source = TypedRows<typename Step::Row, W>;
  constexpr bool kPairs = sizeof(typename Step::Panel) == sizeof(bf16);
  void *const *p = call->pointers;
  const int64_t *v = call->numbers;
  const int64_t m = v[0], count = v[2], panel_chunk = v[3];
  const Matrix x = {p[0], v[5], v[4]}, y = {p[2], v[7], v[6]};
  const Matrix residual = {p[1], v[9], p[1] ? v[8] : int64_t(kAbsent)};
  char *const scratch = (char *)call->scratch;
  const auto panels = [&](int64_t product, int64_t width) -> Matrix {
    return {scratch + (product % 2 ? v[11] : 0), round_up(width, kPairs ? 2 : 1) * 16,
            kPairs ? kPanelBf16 : kPanelF32};
  };
  const TileSession<Step> session;
  for (int64_t task = first; task < last; ++task) {
    const int64_t row = task * panel_chunk * 16, rows = least(panel_chunk * 16, m - row);
    Matrix given = panels(0, v[1]);
    int64_t k = v[1];
    for (int64_t panel = 0; panel < ceil_div(rows, 16); ++panel)
      pack_panel(rows_from(x, row), given, rows, k, panel);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t *product = v + 15 + 3 * i;
      void *const *operands = p + 6 + 2 * i;
      const bool ends = i + 1 == count;
      const int64_t n = product[0];
      LinearCall c = {rows, n, k, product[1], n, panel_chunk, given.stride, given.data,
                      operands[0], nullptr, {}};
      c.epilogue.bias = {operands[1], 0, operands[1] ? v[10] : int64_t(kAbsent)};
      c.epilogue.activation = product[2];
      if (ends && residual.present()) c.epilogue.residual = rows_from(residual, row);
      c.epilogue.y = ends ? rows_from(y, row) : panels(i + 1, n);
      if (i == 0 && p[3]) {
        LinearCall beside = c;
        beside.w = p[3];
        beside.row_stride = v[13];
        beside.epilogue = {};
        beside.epilogue.y = {scratch + v[14], c.epilogue.y.stride, c.epilogue.y.format};
        linear_task(beside, Source(call, beside), session, 0, 0, scratch + v[12]);
      }
      if (i == 1 && p[4]) {
        c.up = p[4];
        c.epilogue.up_bias = {p[5], 0, p[5] ? v[10] : int64_t(kAbsent)};
        if (p[3]) c.up_x = scratch + v[14];
      }
      linear_task(c, Source(call, c), session, 0, 0, scratch + v[12]);
      given = c.epilogue.y;
      k = n;
    }
  }
}

}  // namespace infopt
