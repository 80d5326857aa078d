"""Rows of a table by index."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from infopt.codegen.kernel import Call, Config, aten_kernel, kernel_op
from infopt.codegen.kernels.layer_norm import FEW_ROWS, norm_reason
from infopt.codegen.kernels.rows import (
    ELEMENT,
    as_rows,
    ceil_div,
    contiguous,
    dense_last,
    round_up,
)
from infopt.compiler.accuracy import Exact
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

_ROWS = 16  # of one task


def embedding_legal(
    target: Target, weight: TensorType, indices: TensorType, **attrs: Any
) -> str | None:
    if weight.rank != 2 or weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"a table {weight}"
    return None if indices.dtype in (torch.int64, torch.int32) else f"indices {indices}"


@aten_kernel(
    "embedding.default",
    legal=embedding_legal,
    layouts={"weight": dense_last, "indices": contiguous},
)
def _embedding(
    cfg: Config, target: Target, weight: TensorType, indices: TensorType, **attrs: Any
) -> Call:
    out = as_rows(cfg.out)
    assert out is not None
    numbers = (
        indices.numel,
        weight.shape[1],
        _ROWS,
        weight.shape[0],
        weight.strides[0],
        out.stride,
        ELEMENT[indices.dtype],
        ELEMENT[weight.dtype],
        ELEMENT[cfg.out.dtype],
    )
    return Call(
        "infopt_embedding",
        ("indices", "weight", "out"),
        numbers,
        ceil_div(indices.numel, _ROWS),
        error="IndexError: index out of range in self",
    )


def _norm_cases() -> Any:
    for dtype in (torch.float32, torch.bfloat16):
        words, kinds, places = (torch.randn(n, 33).to(dtype) for n in (50, 2, 7))
        weight, bias = torch.randn(33).to(dtype), torch.randn(33).to(dtype)
        ids, kind_ids = torch.randint(0, 50, (3, 7)), torch.randint(0, 2, (1, 7))
        yield (ids, words, None, None, None, None, weight, bias), {"eps": 1e-5}
        yield (ids, words, kind_ids, kinds, None, places, weight, bias), {"eps": 1e-12}
        yield (ids[0], words, None, kinds[0], None, places, weight, None), {"eps": 1e-5}


@kernel_op(cases=_norm_cases, tolerance=Exact())
def embedding_norm(ids, table, ids1, table1, ids2, table2, weight, bias, *, eps):
    """layer_norm((table[ids] + table1[ids1]) + table2[ids2]); the sum never reaches memory.

    ids: i32 or i64 [B, T] or [N]; ids1 and ids2 broadcast to it. A table without ids is added as
    it is: [T, W] a row per token, [W] the same for all. All after table may be None.
    """
    total = F.embedding(ids, table)
    for index, rows in ((ids1, table1), (ids2, table2)):
        if rows is not None:
            total = total + (rows if index is None else F.embedding(index, rows))
    return F.layer_norm(total, (table.shape[1],), weight, bias, eps)


def embedding_norm_legal(
    target: Target,
    ids: TensorType,
    table: TensorType,
    ids1: TensorType | None,
    table1: TensorType | None,
    ids2: TensorType | None,
    table2: TensorType | None,
    weight: TensorType | None,
    bias: TensorType | None,
    **attrs: Any,
) -> str | None:
    if ids.rank not in (1, 2):
        return f"ids {ids}"
    for index, rows in ((ids, table), (ids1, table1), (ids2, table2)):
        if index is not None and index.dtype not in (torch.int64, torch.int32):
            return f"ids {index}"
        if rows is None:
            continue
        if rows.dtype != table.dtype or rows.rank > 2 or (index is not None and rows.rank != 2):
            return f"a table {rows}"
    return norm_reason(TensorType.dense((*ids.shape, table.shape[1]), table.dtype), weight, bias)


@embedding_norm.kernel(
    "cpu",
    legal=embedding_norm_legal,
    layouts={
        **dict.fromkeys(("table", "table1", "table2"), dense_last),
        **dict.fromkeys(("weight", "bias"), contiguous),
    },
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
) -> Call:
    out = as_rows(cfg.out)
    assert out is not None
    batches, tokens = (1, *ids.shape)[-2:]
    width, element = table.shape[1], ELEMENT[table.dtype]
    given = weight or bias
    numbers: list[Size | float] = [batches, tokens, width, FEW_ROWS, out.stride, float(eps), 0]
    numbers += [element, ELEMENT[given.dtype] if given else element, ELEMENT[cfg.out.dtype]]
    for index, rows in ((ids, table), (ids1, table1), (ids2, table2)):
        if rows is None:
            numbers += [0] * 5
        elif index is None:
            numbers += [0, 0, 0, tokens, rows.strides[0] if rows.rank == 2 else 0]
        else:
            numbers += [ELEMENT[index.dtype], *id_strides(index), rows.shape[0], rows.strides[0]]
    names = [ids1 and "ids1", ids2 and "ids2"]
    tables = ["table", table1 and "table1", table2 and "table2"]
    return Call(
        "infopt_embedding_norm",
        ("ids", *names, *tables, weight and "weight", bias and "bias", "out"),
        tuple(numbers),
        ceil_div(batches * tokens, FEW_ROWS),
        scratch=72 * round_up(width, 16),
        error="IndexError: index out of range in self",
    )


def id_strides(ids: TensorType) -> tuple[Size, Size]:
    """Strides of batch and token, 0 where the ids are broadcast."""
    sizes, strides = (1, *ids.shape)[-2:], (0, *ids.strides)[-2:]
    batch, token = (0 if n == 1 else s for n, s in zip(sizes, strides, strict=True))
    return batch, token
