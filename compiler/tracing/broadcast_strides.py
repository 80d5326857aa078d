"""Where torch's own shape rule gives a result other strides than the operator does.

Seen in torch 2.13: for these operators the rule is a Python reference, which orders the axes of
broadcast operands otherwise than TensorIterator, which then makes the tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import sympy
import torch

from infopt.compiler.types import Size, TensorType

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


# Values of open sizes that a rule is tried at: each large against the others, and small; with many
# divisors, because sizes are often quotients that guards say are equal.
_TRIALS = ((60, 120, 840, 240), (840, 60, 120, 16), (60, 840, 16, 120), (16, 48, 240, 60))
_FEWEST = 2  # trials that must have been possible


def misses_strides(overload: Any, operands: Sequence[TensorType], result: TensorType) -> bool:
    """Whether the operator may make other strides than `result` says.

    add is asked, whose rule is TensorIterator's: at the sizes of the operands, or, where those are
    open, at several values of them. The order of strides, which is all that the rule looks at,
    is that of products of sizes.
    """
    if overload not in _BY_REFERENCE or all(t.is_contiguous for t in operands):
        return False
    if all(t.shape == result.shape for t in operands):
        return False
    sizes = [n for t in (*operands, result) for n in (*t.shape, *t.strides)]
    symbols = sorted(
        {s for n in sizes if isinstance(n, sympy.Expr) for s in n.free_symbols}, key=str
    )
    trials = [dict(zip(symbols, cycle(values))) for values in _TRIALS] if symbols else [{}]
    found = [_misses(operands, result, values) for values in trials]
    return True in found or found.count(False) < min(_FEWEST, len(trials))


def _misses(
    operands: Sequence[TensorType], result: TensorType, values: Mapping[sympy.Symbol, int]
) -> bool | None:
    """None where the program cannot have these sizes."""

    def known(sizes: Sequence[Size]) -> list[int]:
        return [int(sympy.sympify(n).xreplace(values)) for n in sizes]

    try:
        a, b = (
            torch.empty_strided(known(t.shape), known(t.strides), device="meta") for t in operands
        )
        made = torch.add(a, b)
    except (RuntimeError, TypeError, ValueError):
        return None
    if list(made.shape) != known(result.shape):
        return None
    steps = zip(made.shape, known(result.strides), made.stride(), strict=True)
    return any(s != m for n, s, m in steps if n != 1)
