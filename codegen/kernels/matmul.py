"""Matrix products of two computed values, batched; a transposed second factor is a linear layer."""

from __future__ import annotations

from typing import Any

import torch

from infopt.codegen.kernel import Call, Config, aten_kernel
from infopt.codegen.kernels.linear import USUAL_TILING, products
from infopt.codegen.kernels.rows import (
    FLOATS,
    SHORT,
    as_rows,
    ceil_div,
    dense_last,
    is_positive,
    round_up,
)
from infopt.codegen.sizes import product, same
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

_CHUNK = 128  # rows and columns of one task
_FORMAT = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}


def _reason(a: TensorType, b: TensorType) -> str | None:
    if a.dtype not in FLOATS or a.dtype != b.dtype:
        return f"dtypes {a.dtype} and {b.dtype}"
    if a.rank < 2 or b.rank < 2:
        return "a product with a vector"
    if not all(is_positive(n) for n in (a.shape[-2], a.shape[-1], b.shape[-1])):
        return "a product that may be empty"
    wide = max(a, b, key=lambda t: t.rank)
    if len([n for n in wide.shape[:-2] if n != 1]) > 3:
        return "more than three batch dimensions"
    return None


def batches_of(
    a: TensorType, b: TensorType, out: TensorType
) -> list[tuple[Size, Size, Size, Size]]:
    """(size, strides of a, b, out) of three batch dimensions."""
    rank = out.rank - 2
    found: list[tuple[Size, Size, Size, Size]] = []
    for d in range(rank):
        if out.shape[d] == 1:
            continue
        strides = []
        for t in (a, b, out):
            at = d - (out.rank - t.rank)
            strides.append(t.strides[at] if at >= 0 and t.shape[at] != 1 else 0)
        found.append((out.shape[d], strides[0], strides[1], strides[2]))
    return [(1, 0, 0, 0)] * (3 - len(found)) + found


def product_calls(
    a: TensorType,
    b: TensorType,
    out: TensorType,
    names: tuple[str, str, str | None],
    target: Target,
    added: TensorType | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> list[Call]:
    """Calls for out = alpha a b + beta added; names: the parameters a, b, added."""
    n, k = b.shape[-1], b.shape[-2]
    transposed = b.rank == 2 and same(b.strides[0], 1) and not same(b.strides[1], 1)
    plain = alpha == 1 and (
        added is None or (beta == 1 and added.rank == 1 and same(added.shape[0], n))
    )
    if transposed and plain and as_rows(a) is not None and as_rows(out) is not None:
        weight = TensorType((n, k), b.dtype, (b.strides[1], 1))
        used = {"x": names[0], "w": names[1], "bias": names[2] if added is not None else None}
        return products(a, Config((out,), USUAL_TILING), weight, used, "none", target)
    m, batches = a.shape[-2], batches_of(a, b, out)
    d_strides: list[Size] = [0] * 5
    if added is not None:
        d_strides = broadcast_strides(added, out)
    fmt = _FORMAT[a.dtype]

    def strides(t: TensorType, which: int) -> list[Size]:
        return [t.strides[-2], t.strides[-1], *[batch[which] for batch in batches]]

    depth: Size = round_up(k, 32) if not isinstance(k, int) else min(-(-k // 32) * 32, 2048)
    numbers = (
        m,
        n,
        k,
        *[batch[0] for batch in batches],
        _CHUNK,
        _CHUNK,
        *strides(a, 1),
        *strides(b, 2),
        *strides(out, 3),
        *d_strides,
        fmt,
        fmt,
        float(alpha),
        float(beta),
    )
    tasks = product([batch[0] for batch in batches]) * ceil_div(m, _CHUNK) * ceil_div(n, _CHUNK)
    scratch = 4 * _CHUNK * _CHUNK + 64 * (_CHUNK // 16) * depth + 384 * (depth + 32)
    pointers = (names[0], names[1], names[2] if added is not None else None, "out")
    return [Call(f"infopt_matmul_{SHORT[a.dtype]}", pointers, numbers, tasks, scratch=scratch)]


def broadcast_strides(t: TensorType, out: TensorType) -> list[Size]:
    """row, column and three batch strides of a tensor that is added to a product."""
    row = t.strides[-2] if t.rank > 1 and t.shape[-2] != 1 else 0
    batch: list[Size] = []
    for d in range(out.rank - 2):
        if out.shape[d] == 1:
            continue
        at = d - (out.rank - t.rank)
        batch.append(t.strides[at] if at >= 0 and t.shape[at] != 1 else 0)
    return [row, 1, *[0] * (3 - len(batch)), *batch]


def product_legal(target: Target, a: TensorType, b: TensorType) -> str | None:
    return _reason(a, b)


def _declare(name: str, first: str, second: str) -> None:
    @aten_kernel(name, legal=product_legal)
    def emit(cfg: Config, target: Target, a: TensorType, b: TensorType) -> list[Call]:
        return product_calls(a, b, cfg.out, (first, second, None), target)


_declare("mm.default", "self", "mat2")
_declare("bmm.default", "self", "mat2")
_declare("matmul.default", "self", "other")


def added_legal(
    target: Target, added: TensorType, a: TensorType, b: TensorType, *, beta: Any, alpha: Any
) -> str | None:
    if (
        added.dtype != a.dtype
        or not isinstance(alpha, int | float)
        or not isinstance(beta, int | float)
    ):
        return "an addend of another dtype"
    if beta == 0:
        return "an addend that must not be read"
    if added.rank == 0 or not same(added.shape[-1], b.shape[-1]):
        return "an addend that is broadcast along the columns"
    return _reason(a, b)


@aten_kernel("addmm.default", legal=added_legal, layouts={"self": dense_last})
def _addmm(
    cfg: Config,
    target: Target,
    added: TensorType,
    a: TensorType,
    b: TensorType,
    *,
    beta: Any,
    alpha: Any,
) -> list[Call]:
    return product_calls(a, b, cfg.out, ("mat1", "mat2", "self"), target, added, alpha, beta)


@aten_kernel("baddbmm.default", legal=added_legal, layouts={"self": dense_last})
def _baddbmm(
    cfg: Config,
    target: Target,
    added: TensorType,
    a: TensorType,
    b: TensorType,
    *,
    beta: Any,
    alpha: Any,
) -> list[Call]:
    return product_calls(a, b, cfg.out, ("batch1", "batch2", "self"), target, added, alpha, beta)
