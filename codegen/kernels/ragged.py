"""Rows without padding: sequences of different lengths, one after the other in one matrix.

A mask [B, T] says which tokens are real. `row_index` lists them in order, so that picking those
rows of a [B * T, W] matrix gives [N, W] without padding; `row_starts` says where each sequence
begins there; `unpack_rows` is the way back. N is a dim that counts the mask's nonzero elements
(compiler/types.py), at least 2: rows past the real ones are computed and never read.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from infopt.codegen.kernel import Call, Config, kernel_op
from infopt.codegen.kernels.rows import (
    ELEMENT,
    FLOATS,
    SHORT,
    ceil_div,
    contiguous,
    dense_last,
    is_positive,
)
from infopt.compiler.accuracy import Exact
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType


def _masks() -> Any:
    for shape in ((1, 1), (3, 7), (4, 33)):
        mask = torch.rand(shape) > 0.4
        mask[0] = True
        yield mask
    yield torch.tensor([[True, True], [False, False]])  # a sequence without tokens


def _index_cases() -> Any:
    for mask in _masks():
        yield (mask,), {"rows": max(2, int(mask.sum()))}


@kernel_op(cases=_index_cases, tolerance=Exact())
def row_index(mask, *, rows):
    """The flat positions of the true elements of mask bool [B, T] in order, i64 [rows]; 0 where
    there are fewer than rows."""
    return torch.nonzero_static(mask.reshape(-1), size=rows, fill_value=0).reshape(rows)


@kernel_op(cases=lambda: (((mask,), {}) for mask in _masks()), tolerance=Exact())
def row_starts(mask):
    """[0, true elements of row 0, of rows 0 and 1, ...] of mask bool [B, T]: i64 [B + 1]."""
    return F.pad(mask.sum(1).cumsum(0), (1, 0))


def _unpack_cases() -> Any:
    for dtype in (torch.float32, torch.bfloat16):
        for mask in _masks():
            x = torch.randn(max(2, int(mask.sum())), 20, dtype=dtype)
            yield (x, mask, row_starts(mask)), {}


@kernel_op(cases=_unpack_cases, tolerance=Exact())
def unpack_rows(x, mask, starts):
    """x [N, ...] back at its places [B, T, ...], zeros where mask bool [B, T] is false."""
    inner = x.shape[1:]
    place = (starts[:-1, None] + mask.cumsum(1) - 1).clamp(0).reshape(-1)
    rows = x.index_select(0, place).reshape(*mask.shape, *inner)
    return torch.where(mask.reshape(*mask.shape, *[1] * len(inner)), rows, torch.zeros_like(rows))


def _attention_cases() -> Any:
    for dtype in (torch.float32, torch.bfloat16):
        for mask in _masks():
            rows = max(2, int(mask.sum()))
            q, k, v = (torch.randn(rows, h, 16, dtype=dtype) for h in (4, 2, 2))
            yield (q, k, v, row_starts(mask)), {"longest": mask.shape[1], "scale": 0.25}


@kernel_op(cases=_attention_cases, tolerance=Exact())
def ragged_attention(q, k, v, starts, *, longest, scale):
    """softmax(scale q kᵀ) v within each sequence; q [N, H, D], k and v [N, H / groups, D].

    starts: i64 [B + 1], sequence b is rows starts[b] to starts[b + 1], at most `longest` of them.
    Rows after the last sequence give 0.
    """
    rows = torch.arange(q.shape[0], device=q.device)
    sequence = torch.searchsorted(starts, rows, right=True)
    real = sequence < starts.shape[0]
    mask = (sequence[:, None] == sequence) & real
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    groups = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=groups)
    return torch.where(real[:, None, None], out[0].transpose(0, 1), 0.0)


def mask_legal(target: Target, mask: TensorType, **attrs: Any) -> str | None:
    return None if mask.dtype is torch.bool and mask.rank == 2 else f"a mask {mask}"


@row_index.kernel("cpu", legal=mask_legal, layouts={"mask": contiguous})
def _row_index(cfg: Config, target: Target, mask: TensorType, *, rows: Size) -> Call:
    return Call("infopt_row_index", ("mask", "out"), (mask.numel, rows), 1)


@row_starts.kernel("cpu", legal=mask_legal, layouts={"mask": contiguous})
def _row_starts(cfg: Config, target: Target, mask: TensorType) -> Call:
    return Call("infopt_row_starts", ("mask", "out"), mask.shape, 1)


def unpack_legal(target: Target, x: TensorType, mask: TensorType, starts: TensorType) -> str | None:
    if x.dtype not in ELEMENT or x.rank < 2:
        return f"rows {x}"
    return mask_legal(target, mask)


@unpack_rows.kernel(
    "cpu",
    legal=unpack_legal,
    layouts={"x": contiguous, "mask": contiguous, "starts": contiguous},
)
def _unpack_rows(
    cfg: Config, target: Target, x: TensorType, mask: TensorType, starts: TensorType
) -> Call:
    width: Size = x.dtype.itemsize
    for size in x.shape[1:]:
        width = width * size
    numbers = (*mask.shape, width)
    return Call("infopt_unpack_rows", ("x", "mask", "starts", "out"), numbers, mask.shape[0])


def ragged_legal(
    target: Target, q: TensorType, k: TensorType, v: TensorType, starts: TensorType, **attrs: Any
) -> str | None:
    if q.dtype not in FLOATS or not q.dtype == k.dtype == v.dtype:
        return f"dtypes {q.dtype}, {k.dtype}, {v.dtype}"
    heads, kv_heads = q.shape[1], k.shape[1]
    if not (isinstance(heads, int) and isinstance(kv_heads, int) and kv_heads):
        return f"{heads} heads of {kv_heads}"
    if heads % kv_heads or kv_heads != v.shape[1]:
        return f"{heads} heads of {kv_heads} and {v.shape[1]}"
    if not (is_positive(q.shape[2]) and is_positive(v.shape[2]) and heads):
        return "an empty head"
    return None


@ragged_attention.kernel(
    "cpu",
    legal=ragged_legal,
    layouts={"q": dense_last, "k": dense_last, "v": dense_last, "starts": contiguous},
)
def _ragged_attention(
    cfg: Config,
    target: Target,
    q: TensorType,
    k: TensorType,
    v: TensorType,
    starts: TensorType,
    *,
    longest: Size,
    scale: float,
) -> Call:
    heads, depth, value_depth = q.shape[1], q.shape[2], v.shape[2]
    batches = starts.shape[0] - 1
    blocks = ceil_div(longest, 64)
    numbers = (
        batches,
        heads,
        k.shape[1],
        longest,
        q.shape[0],
        depth,
        value_depth,
        *(s for t in (q, k, v, cfg.out) for s in t.strides),
        float(scale),
    )
    return Call(
        f"infopt_ragged_attention_{SHORT[q.dtype]}",
        ("q", "k", "v", "starts", "out"),
        numbers,
        batches * heads * blocks,
        scratch=4 * (64 * (depth + value_depth) + 128 * 64 + 128 * (depth + 1 + value_depth)),
    )
