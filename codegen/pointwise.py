"""Which aten ops are pointwise, and when they are computed natively.

The entries turn typed operands into calls of csrc/region.h with torch's promotion and rounding;
they are in pointwise_arithmetic.py, pointwise_functions.py and pointwise_choices.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from infopt.codegen import pointwise_arithmetic, pointwise_choices, pointwise_functions
from infopt.codegen.expression import C_TYPES, HALVES
from infopt.codegen.pointwise_table import SCALAR, TABLE, VECTOR, Pointwise, key, word
from infopt.compiler.graph import Node
from infopt.compiler.types import TensorType

__all__ = [
    "find",
    "general_power",
    "is_heavy",
    "needs_scalar_loops",
    "reason_against",
    "wants_vector_loops",
]

_TABLES = (pointwise_arithmetic, pointwise_choices, pointwise_functions)  # imported: registered
general_power = pointwise_arithmetic.general_power
REAL = pointwise_functions.REAL


def find(node: Node) -> Pointwise | None:
    """How regions compute the op of a node, None where they do not."""
    return TABLE.get(key(node))


def reason_against(node: Node) -> str | None:
    """None where the node can be computed in a region."""
    entry = find(node)
    if entry is None:
        return "no kernel"
    if not isinstance(node.type, TensorType):
        return "several results"
    for t in (node.type, *(a.type for a in node.inputs)):
        if not isinstance(t, TensorType) or t.dtype not in C_TYPES:
            return f"dtype {getattr(t, 'dtype', 'tuple')}"
        if t.device != "cpu":
            return f"a tensor on {t.device}"
    for name, value in node.attrs:
        if _overflows(value, node.dtype):
            return f"{name} = {value} is outside of {node.dtype}: torch refuses it"
    return entry.check(node)


def _overflows(value: Any, dtype: torch.dtype) -> bool:
    """True for a finite number that the dtype cannot hold."""
    if not isinstance(value, float) or not math.isfinite(value) or not dtype.is_floating_point:
        return False
    return abs(value) > torch.finfo(dtype).max


def needs_scalar_loops(node: Node) -> bool:
    """True where 16-float vectors cannot hold what is computed."""
    entry = TABLE[key(node)]
    if entry.loops == SCALAR:
        return True
    dtypes = [node.dtype, *(a.dtype for a in node.inputs)]
    return any(d not in HALVES and d not in (torch.float32, torch.bool) for d in dtypes)


def wants_vector_loops(node: Node) -> bool:
    """True where scalar loops would call the C library or round bit by bit."""
    entry = TABLE[key(node)]
    dtypes = [node.dtype, *(a.dtype for a in node.inputs)]
    return entry.loops == VECTOR or any(d in HALVES for d in dtypes)


def is_heavy(node: Node) -> bool:
    """True where the C library is called for every element."""
    return general_power(node) or word(node) in REAL
