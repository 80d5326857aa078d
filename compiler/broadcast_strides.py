"""Where torch's own shape rule gives a result other strides than the operator does.

Seen in torch 2.13: for these operators the rule is a Python reference, which orders the axes of
broadcast operands otherwise than TensorIterator, which then makes the tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from infopt.compiler.types import TensorType

aten = torch.ops.aten

_BY_REFERENCE = {
    aten.copysign.Tensor,
    aten.floor_divide.default,
    aten.heaviside.default,
    aten.logical_and.default,
    aten.logical_or.default,
    aten.logical_xor.default,
    aten.xlogy.Tensor,
}


def misses_strides(overload: Any, operands: Sequence[TensorType], result: TensorType) -> bool:
    """Whether the operator may make other strides than `result` says.

    Known sizes are asked of add, whose rule is TensorIterator's; of open ones the worst is assumed.
    """
    if overload not in _BY_REFERENCE or all(t.is_contiguous for t in operands):
        return False
    if all(t.shape == result.shape for t in operands):
        return False
    try:
        a, b = map(_stand_in, operands)
    except TypeError:
        return True
    made = torch.add(a, b)
    steps = zip(result.shape, result.strides, made.stride(), strict=True)
    return any(s != m for n, s, m in steps if n != 1)


def _stand_in(t: TensorType) -> torch.Tensor:
    sizes, strides = list(map(_known, t.shape)), list(map(_known, t.strides))
    return torch.empty_strided(sizes, strides, device="meta")


def _known(size: Any) -> int:
    if not isinstance(size, int):
        raise TypeError("an open size")
    return size
