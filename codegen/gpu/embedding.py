"""Rows of tables by index on a GPU, and their sum's layer norm; the sum stays on chip.

An index that a table does not have gives a row of NaN: a kernel cannot raise.
"""

from __future__ import annotations

from typing import Any

from infopt.codegen.gpu.norm import SOURCE as NORM_SOURCE
from infopt.codegen.gpu.row_blocks import LONGEST, ROW_SPACE, row_blocks
from infopt.codegen.gpu.text import HEADER, launch
from infopt.codegen.kernel import Config, aten_kernel
from infopt.codegen.kernels.embedding import (
    embedding_legal,
    embedding_norm,
    embedding_norm_legal,
    id_strides,
)
from infopt.codegen.kernels.rows import as_rows, ceil_div, contiguous, dense_last, row_stride
from infopt.codegen.launch import Launch, Pointer
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

LOOK_UP = '''

@triton.jit
def look_up(table, ids, height, stride, in_rows, columns, width):
    """[rows, columns] of a table; NaN where it has no such row."""
    there = in_rows & (ids >= 0) & (ids < height)
    at = table + tl.where(there, ids, 0).to(tl.int64)[:, None] * stride + columns[None, :]
    inside = there[:, None] & (columns < width)[None, :]
    return tl.load(at, mask=inside, other=float("nan"))
'''

SOURCE = (
    HEADER
    + LOOK_UP
    + '''

@triton.jit
def embedding_rows(indices, weight, out, count, height, width, weight_stride, out_stride,
                   ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """ROWS rows of the result, BLOCK columns of them."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    in_rows = rows < count
    ids = tl.load(indices + rows, mask=in_rows, other=0)
    y = look_up(weight, ids, height, weight_stride, in_rows, columns, width)
    at = out + rows.to(tl.int64)[:, None] * out_stride + columns[None, :]
    tl.store(at, y, mask=in_rows[:, None] & (columns < width)[None, :])
'''
)

SUM_SOURCE = (
    NORM_SOURCE
    + LOOK_UP
    + '''

@triton.jit
def rows_of(table, ids, batch, token, batch_stride, token_stride, height, stride, in_rows,
            columns, width):
    """Of a table the rows that ids name; without ids, a row for each token."""
    if ids is None:
        at = table + token[:, None] * stride + columns[None, :]
        y = tl.load(at, mask=in_rows[:, None] & (columns < width)[None, :], other=0.0)
    else:
        at = ids + batch * batch_stride + token * token_stride
        y = look_up(table, tl.load(at, mask=in_rows, other=0), height, stride, in_rows, columns,
                    width)
    return y


@triton.jit
def embedding_norm_rows(ids, ids1, ids2, table, table1, table2, weight, bias, out, count, tokens,
                        width, out_stride,
                        batch_stride, token_stride, height, stride,
                        batch_stride1, token_stride1, height1, stride1,
                        batch_stride2, token_stride2, height2, stride2,
                        eps, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Rows of up to three tables summed, rounded as the op does, and normalised."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    in_rows = rows < count
    inside = in_rows[:, None] & (columns < width)[None, :]
    batch = (rows // tokens).to(tl.int64)
    token = (rows % tokens).to(tl.int64)
    dtype: tl.constexpr = table.dtype.element_ty
    z = rows_of(table, ids, batch, token, batch_stride, token_stride, height, stride, in_rows,
                columns, width).to(tl.float32)
    if table1 is not None:
        other = rows_of(table1, ids1, batch, token, batch_stride1, token_stride1, height1, stride1,
                        in_rows, columns, width)
        z = (z + other.to(tl.float32)).to(dtype).to(tl.float32)
    if table2 is not None:
        other = rows_of(table2, ids2, batch, token, batch_stride2, token_stride2, height2, stride2,
                        in_rows, columns, width)
        z = (z + other.to(tl.float32)).to(dtype).to(tl.float32)
    z = tl.where(inside, z, 0.0)
    mean = tl.sum(z, axis=1) / width
    z = tl.where(inside, z - mean[:, None], 0.0)
    variance = tl.sum(z * z, axis=1) / width
    h = z * tl.rsqrt(variance + eps)[:, None]
    y = scaled(h, weight, bias, columns, width, 0.0, dtype, False)
    at = out + rows.to(tl.int64)[:, None] * out_stride + columns[None, :]
    tl.store(at, y.to(out.dtype.element_ty), mask=inside)
'''
)


@aten_kernel(
    "embedding.default",
    kind="gpu",
    legal=embedding_legal,
    layouts={"weight": dense_last, "indices": contiguous},
)
def _embedding(
    cfg: Config, target: Target, weight: TensorType, indices: TensorType, **attrs: Any
) -> Launch:
    out = as_rows(cfg.out)
    assert out is not None
    width = weight.shape[1]
    blocks = row_blocks(width)
    return launch(
        SOURCE,
        "embedding_rows",
        grid=(ceil_div(indices.numel, blocks.rows), ceil_div(width, blocks.block)),
        warps=blocks.warps,
        indices=Pointer("indices", indices.dtype),
        weight=Pointer("weight", weight.dtype),
        out=Pointer("out", cfg.out.dtype),
        count=indices.numel,
        height=weight.shape[0],
        width=width,
        weight_stride=row_stride(weight),
        out_stride=out.stride,
        **blocks.constants,
    )


def _norm_legal(target: Target, ids: TensorType, table: TensorType, *rest: Any, **attrs: Any):
    width = table.shape[1]
    if not (isinstance(width, int) and width <= LONGEST):
        return f"rows of {width}, expected at most {LONGEST}"
    return embedding_norm_legal(target, ids, table, *rest, **attrs)


@embedding_norm.kernel(
    "gpu",
    legal=_norm_legal,
    layouts={
        **dict.fromkeys(("table", "table1", "table2"), dense_last),
        **dict.fromkeys(("weight", "bias"), contiguous),
    },
    **ROW_SPACE,
)
def _embedding_norm(
    cfg: Config,
    target: Target,
    ids: TensorType,
    table: TensorType,
    ids1: TensorType | None,
    table1: TensorType | None,
    ids2: TensorType | None,
    table2: TensorType | None,
    weight: TensorType | None,
    bias: TensorType | None,
    *,
    eps: float,
) -> Launch:
    out = as_rows(cfg.out)
    assert out is not None
    batches, tokens = (1, *ids.shape)[-2:]
    blocks = row_blocks(table.shape[1], cfg.warps)
    given = {"ids": ids, "ids1": ids1, "ids2": ids2, "table": table, "table1": table1}
    given |= {"table2": table2, "weight": weight, "bias": bias}
    steps: dict[str, Size] = {}
    for end, index, rows in (("", ids, table), ("1", ids1, table1), ("2", ids2, table2)):
        batch, token = id_strides(index) if index is not None else (0, 0)
        height = rows.shape[0] if rows is not None else 0
        stride = row_stride(rows) if rows is not None and rows.rank == 2 else 0
        steps |= {f"batch_stride{end}": batch, f"token_stride{end}": token}
        steps |= {f"height{end}": height, f"stride{end}": stride}
    return launch(
        SUM_SOURCE,
        "embedding_norm_rows",
        grid=blocks.grid(batches * tokens),
        warps=blocks.warps,
        **{n: t and Pointer(n, t.dtype) for n, t in given.items()},
        out=Pointer("out", cfg.out.dtype),
        count=batches * tokens,
        tokens=tokens,
        width=table.shape[1],
        out_stride=out.stride,
        **steps,
        eps=float(eps),
        **blocks.constants,
    )
