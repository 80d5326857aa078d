"""The table of pointwise ops, and torch's rules of promotion and rounding that they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from infopt.codegen.expression import HALVES, Code, Operand
from infopt.compiler.graph import Node

Emit = Callable[..., Operand]
Check = Callable[[Node], "str | None"]

SCALAR, EITHER, VECTOR = "scalar loops only", "either", "vector loops where possible"


@dataclass(frozen=True)
class Pointwise:
    """emit(code, node, *operands) -> operand; check(node): why not; loops: which it needs."""

    emit: Emit
    check: Check
    loops: str


TABLE: dict[str, Pointwise] = {}


# Other names torch has for the same op.
_ALIASES = {
    "absolute": "abs",
    "arctan": "atan",
    "clip": "clamp",
    "divide": "div",
    "fix": "trunc",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "multiply": "mul",
    "negative": "neg",
    "not_equal": "ne",
    "subtract": "sub",
    "true_divide": "div",
    "__and__": "bitwise_and",
    "__or__": "bitwise_or",
    "__xor__": "bitwise_xor",
}


def word(node: Node) -> str:
    """The op's usual name: "mul" for aten.multiply.Tensor."""
    name = node.op.name.split(".")[1] if node.op.name.startswith("aten.") else node.op.name
    return _ALIASES.get(name, name)


def key(node: Node) -> str:
    """The table's name of the op of a node."""
    name = node.op.name
    if not name.startswith("aten."):
        return name
    return f"aten.{word(node)}.{name.rpartition('.')[2]}"


def pointwise(
    *names: str, check: Check = lambda node: None, loops: str = EITHER
) -> Callable[[Emit], Emit]:
    """Register how ops are emitted, by their usual names ("add.Tensor")."""

    def add(emit: Emit) -> Emit:
        for name in names:
            TABLE[f"aten.{name}"] = Pointwise(emit, check, loops)
        return emit

    return add


# Promotion


def _category(dtype: torch.dtype) -> int:
    return 0 if dtype is torch.bool else 2 if dtype.is_floating_point else 1


def promoted(node: Node, *attrs: str) -> torch.dtype:
    """The dtype in which torch computes: result_type of the tensors and the scalar attributes."""
    ranks: list[tuple[int, torch.dtype]] = []
    for a in node.inputs:
        ranks.append((2 if a.tensor_type.rank else 1, a.dtype))
    for name in attrs:
        value = dict(node.attrs)[name]
        kind = (
            torch.bool
            if isinstance(value, bool)
            else (torch.get_default_dtype() if isinstance(value, float) else torch.int64)
        )
        ranks.append((0, kind))
    result: torch.dtype | None = None
    for level in (2, 1, 0):
        here = [d for r, d in ranks if r == level]
        if not here:
            continue
        joined = here[0]
        for d in here[1:]:
            joined = torch.promote_types(joined, d)
        if result is None:
            result = joined
        elif _category(joined) > _category(result):
            result = torch.promote_types(joined, result) if level else joined
    assert result is not None
    return result


def zero_dim_in_half(node: Node) -> str | None:
    """torch takes a 0-d operand of another dtype unrounded into 16-bit arithmetic."""
    if node.dtype in HALVES and any(
        a.dtype != node.dtype and a.tensor_type.rank == 0 for a in node.inputs
    ):
        return "a 0-d operand of another dtype in 16-bit arithmetic"
    return None


def no_bool(node: Node) -> str | None:
    return "arithmetic of bools" if node.dtype is torch.bool else zero_dim_in_half(node)


def second(c: Code, node: Node, rest: tuple[Operand, ...], dtype: torch.dtype) -> Operand:
    """The other operand; a number is not rounded to a 16-bit type, as in torch's products."""
    return c.cast(rest[0], dtype) if rest else c.constant(node.attr("other"), dtype)


def other_term(c: Code, node: Node, rest: tuple[Operand, ...], dtype: torch.dtype) -> Operand:
    """The other operand of a sum, where torch does round a number."""
    return c.cast(rest[0], dtype) if rest else as_element(c, node.attr("other"), dtype)


def unary_check(node: Node) -> str | None:
    if node.dtype is torch.bool:
        return "arithmetic of bools"
    return None


def float_check(node: Node) -> str | None:
    return None if node.dtype.is_floating_point else "not a float"


def rounded(c: Code, a: Operand, dtype: torch.dtype) -> Operand:
    return c.rounded(a, dtype)


def as_element(c: Code, value: object, dtype: torch.dtype) -> Operand:
    """A number as an element of `dtype`, rounded to it."""
    if dtype in HALVES and isinstance(value, int | float):
        value = float(torch.tensor(value, dtype=dtype))
    return c.constant(value, dtype)
