"""Softmax and its logarithm on a GPU, along the last dimension; a row stays on chip."""

from __future__ import annotations

from typing import Any

from infopt.codegen.gpu.row_blocks import ROW_SPACE, row_blocks
from infopt.codegen.gpu.text import HEADER, launch
from infopt.codegen.kernel import Config, aten_kernel
from infopt.codegen.kernels.softmax import outer_dims, softmax_layout, softmax_legal
from infopt.codegen.launch import Launch, Pointer
from infopt.codegen.sizes import product
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType

SOURCE = (
    HEADER
    + '''

@triton.jit
def row_start(rows, size1, size2, stride0, stride1, stride2):
    """Where rows begin that lie along three dimensions."""
    rows = rows.to(tl.int64)
    outer = rows // size2
    return outer // size1 * stride0 + outer % size1 * stride1 + rows % size2 * stride2


@triton.jit
def softmax_rows(x, out, count, width, size1, size2, x_stride0, x_stride1, x_stride2, out_stride0,
                 out_stride1, out_stride2, LOGARITHM: tl.constexpr, ROWS: tl.constexpr,
                 BLOCK: tl.constexpr):
    """Rows that are one block."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)[None, :]
    inside = (rows < count)[:, None] & (columns < width)
    start = row_start(rows, size1, size2, x_stride0, x_stride1, x_stride2)
    z = tl.load(x + start[:, None] + columns, mask=inside, other=float("-inf")).to(tl.float32)
    z -= tl.max(z, axis=1)[:, None]
    e = tl.exp(z)
    total = tl.sum(e, axis=1)[:, None]
    if LOGARITHM:
        y = z - tl.log(total)
    else:
        y = e / total
    start = row_start(rows, size1, size2, out_stride0, out_stride1, out_stride2)
    tl.store(out + start[:, None] + columns, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def softmax_long_rows(x, out, count, width, size1, size2, x_stride0, x_stride1, x_stride2,
                      out_stride0, out_stride1, out_stride2, LOGARITHM: tl.constexpr,
                      ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """A row in steps of BLOCK: maximum and sum in one pass, the result in a second."""
    row = tl.program_id(0) + tl.arange(0, 1)
    x += tl.sum(row_start(row, size1, size2, x_stride0, x_stride1, x_stride2), axis=0)
    out += tl.sum(row_start(row, size1, size2, out_stride0, out_stride1, out_stride2), axis=0)
    columns = tl.arange(0, BLOCK)
    most = tl.full((BLOCK,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, width, BLOCK):
        z = tl.load(x + start + columns, mask=start + columns < width, other=float("-inf"))
        z = z.to(tl.float32)
        higher = tl.maximum(most, z, propagate_nan=tl.PropagateNan.ALL)
        origin = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen yet
        total = total * tl.exp(most - origin) + tl.exp(z - origin)
        most = higher
    highest = tl.max(most, axis=0)
    origin = tl.where(highest == float("-inf"), 0.0, highest)
    sum = tl.sum(total * tl.exp(most - origin), axis=0)
    for start in range(0, width, BLOCK):
        inside = start + columns < width
        z = tl.load(x + start + columns, mask=inside, other=float("-inf")).to(tl.float32)
        if LOGARITHM:
            y = z - highest - tl.log(sum)
        else:
            y = tl.exp(z - highest) / sum
        tl.store(out + start + columns, y.to(out.dtype.element_ty), mask=inside)
'''
)


def softmax_launch(name: str, x: TensorType, cfg: Config, logarithm: bool) -> Launch:
    found, to = outer_dims(x), outer_dims(cfg.out)
    assert found is not None and to is not None
    sizes, strides = found
    count = product(sizes)
    blocks = row_blocks(x.shape[-1], cfg.warps)
    return launch(
        SOURCE,
        "softmax_rows" if blocks.whole else "softmax_long_rows",
        grid=blocks.grid(count),
        warps=blocks.warps,
        x=Pointer(name, x.dtype),
        out=Pointer("out", cfg.out.dtype),
        count=count,
        width=x.shape[-1],
        size1=sizes[1],
        size2=sizes[2],
        **{f"x_stride{i}": s for i, s in enumerate(strides)},
        **{f"out_stride{i}": s for i, s in enumerate(to[1])},
        LOGARITHM=logarithm,
        **blocks.constants,
    )


def _declare(name: str) -> None:
    @aten_kernel(
        name, kind="gpu", legal=softmax_legal, layouts={"self": softmax_layout}, **ROW_SPACE
    )
    def emit(cfg: Config, target: Target, x: TensorType, **attrs: Any) -> Launch:
        return softmax_launch("self", x, cfg, "log" in name)


for _name in ("softmax.int", "_softmax.default", "log_softmax.int", "_log_softmax.default"):
    _declare(_name)
