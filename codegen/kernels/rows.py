"""Tensors as rows: what row kernels need to know of a layout, and their codes of dtypes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils._sympy.functions import FloorDiv

from infopt.codegen.sizes import product, same_stride
from infopt.codegen.views import Layout
from infopt.compiler.types import Size, TensorType, contiguous_strides

# The codes of csrc/element.h.
ELEMENT = {
    torch.float32: 0,
    torch.bfloat16: 1,
    torch.float16: 2,
    torch.float64: 3,
    torch.int64: 4,
    torch.int32: 5,
    torch.int16: 6,
    torch.int8: 7,
    torch.uint8: 8,
    torch.bool: 9,
}
SHORT = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
FLOATS = tuple(SHORT)


@dataclass(frozen=True)
class Rows:
    """count rows of width neighbouring elements, stride elements apart."""

    count: Size
    width: Size
    stride: Size


def as_rows(t: TensorType) -> Rows | None:
    """A tensor as rows along its last dimension, None where its layout is not one."""
    if t.rank == 0:
        return None
    width = t.shape[-1]
    if 0 in t.shape:
        return Rows(0, width, width)
    if t.strides[-1] != 1 and width != 1:
        return None
    count: Size = 1
    stride: Size | None = None
    step: Size | None = None  # of the next outer dimension, for it to follow without a gap
    for n, s in reversed(list(zip(t.shape[:-1], t.strides[:-1], strict=True))):
        if n == 1:
            continue
        if stride is None:
            stride = s
        elif not same_stride(s, step):  # type: ignore[arg-type]
            return None
        count = product((n, count))
        step = s * n
    return Rows(count, width, width if stride is None else stride)


def row_strides(t: TensorType) -> tuple[Size, ...] | None:
    """Wanted strides for a kernel that takes rows: contiguous where they are no rows yet."""
    rows = as_rows(t)
    if rows is not None and rows.stride != 0:
        return None
    return contiguous_strides(t.shape)


def dense_last(t: TensorType) -> tuple[Size, ...] | None:
    """Wanted strides for a kernel that needs neighbouring elements in the last dimension."""
    fine = t.rank == 0 or t.strides[-1] == 1 or t.shape[-1] == 1
    return None if fine else contiguous_strides(t.shape)


def row_stride(t: TensorType) -> Size:
    """Elements between two rows of a matrix once `dense_last` holds; of one row, its width."""
    return (dense_last(t) or t.strides)[0] if t.shape[0] != 1 else t.shape[1]


def contiguous(t: TensorType) -> tuple[Size, ...] | None:
    """Wanted strides for a kernel that takes contiguous tensors only."""
    return None if Layout.of(t).is_contiguous else contiguous_strides(t.shape)


def ceil_div(a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return -(-a // b)
    return FloorDiv(a + (b - 1), b)


def round_up(a: Size, b: int) -> Size:
    return ceil_div(a, b) * b


def is_positive(size: Size) -> bool:
    """True for a size that is never 0."""
    return size > 0 if isinstance(size, int) else bool(size.is_positive)
