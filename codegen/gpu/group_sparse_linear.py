"""Weights kept in groups on a GPU: a program takes rows of x and one block of rows of the weight,
and gathers the columns of x that the block names."""

from __future__ import annotations

from typing import Any

import torch

from infopt.codegen.gpu.linear_source import EPILOGUE
from infopt.codegen.gpu.text import ACTIVATE, HEADER, launch
from infopt.codegen.gpu.tiles import power_of_two
from infopt.codegen.kernel import Config
from infopt.codegen.kernels.group_sparse_linear import (
    GROUPED_LAYOUTS,
    group_sparse_linear,
    grouped_legal,
)
from infopt.codegen.kernels.rows import as_rows, ceil_div
from infopt.codegen.launch import Launch, Pointer
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType

SOURCE = (
    HEADER
    + ACTIVATE
    + EPILOGUE
    + '''

@triton.jit
def group_sparse(x, values, columns, bias, residual, out, m, n, k, kept, x_stride,
                 residual_stride, out_stride, ACTIVATION: tl.constexpr, ROWS: tl.constexpr,
                 WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                 BLOCK_K: tl.constexpr):
    """act(x[rows] weightT + bias) + residual for the ROWS features of a block, which keeps `kept`
    groups of WIDTH columns."""
    block = tl.program_id(0)
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = tl.arange(0, BLOCK_N)
    features = block * ROWS + inside
    depth = tl.arange(0, BLOCK_K)
    group, beside = depth // WIDTH, depth % WIDTH
    # rows that do not exist read the first
    x_at = x + tl.where(rows < m, rows, 0).to(tl.int64)[:, None] * x_stride
    named = columns + block.to(tl.int64) * kept + group
    w_at = values + (block.to(tl.int64) * kept + group[:, None]) * (ROWS * WIDTH)
    w_at += tl.where(inside < ROWS, inside, 0)[None, :] * WIDTH + beside[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, kept, BLOCK_K // WIDTH):
        there = group < kept - start
        column = tl.load(named + start, mask=there, other=0) * WIDTH + beside
        a = tl.load(x_at + column[None, :], mask=(there & (column < k))[None, :], other=0.0)
        b = tl.load(w_at, mask=there[:, None], other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
        w_at += BLOCK_K * ROWS
    end = tl.minimum(n, (block + 1) * ROWS)
    finish(acc, acc, bias, None, residual, out, rows, features, m, end, residual_stride,
           out_stride, ACTIVATION, False)
'''
)

MOST_ROWS, MOST_WIDTH = 128, 16  # of a group


def _legal(
    target: Target, x: TensorType, values: TensorType, *rest: Any, **attrs: Any
) -> str | None:
    if reason := grouped_legal(target, x, values, *rest, **attrs):
        return reason
    rows, width = map(int, values.shape[2:])  # type: ignore[arg-type]
    if rows > MOST_ROWS or width > MOST_WIDTH or width & (width - 1):
        most = f"at most {MOST_ROWS} x {MOST_WIDTH}, columns a power of two"
        return f"groups of {rows} x {width}, expected {most}"
    return None


TILES_SPACE = {"rows": ("usual", 16, 32, 64, 128)}


@group_sparse_linear.kernel(
    "gpu", legal=_legal, layouts=GROUPED_LAYOUTS, over=("residual",), **TILES_SPACE
)
def _group_sparse_linear(
    cfg: Config,
    target: Target,
    x: TensorType,
    values: TensorType,
    columns: TensorType,
    bias: TensorType | None,
    residual: TensorType | None,
    *,
    features: int,
    activation: str,
) -> Launch:
    rows, out = as_rows(x), as_rows(cfg.out)
    assert rows is not None and out is not None
    added = as_rows(residual) if residual is not None else None
    (blocks, kept, group, width), narrow = map(int, values.shape), x.dtype.itemsize == 2  # type: ignore[arg-type]
    few = isinstance(rows.count, int) and rows.count <= 16 and not target.batch_invariant
    usual = 16 if few else 64
    block_m = usual if cfg.rows == "usual" else cfg.rows
    if x.dtype is torch.float32:
        block_m = min(block_m, 64)  # summed without tensor cores: more do not fit the registers
    return launch(
        SOURCE,
        "group_sparse",
        grid=(blocks, ceil_div(rows.count, block_m)),
        warps=4,
        stages=3 if narrow else 2,
        x=Pointer("x", x.dtype),
        values=Pointer("values", values.dtype),
        columns=Pointer("columns", columns.dtype),
        bias=bias and Pointer("bias", bias.dtype),
        residual=residual and Pointer("residual", residual.dtype),
        out=Pointer("out", cfg.out.dtype),
        m=rows.count,
        n=features,
        k=rows.width,
        kept=kept,
        x_stride=rows.stride,
        residual_stride=added.stride if added else 0,
        out_stride=out.stride,
        ACTIVATION=activation,
        ROWS=group,
        WIDTH=width,
        BLOCK_M=block_m,
        BLOCK_N=power_of_two(group),
        BLOCK_K=64 if narrow else 16,
    )
