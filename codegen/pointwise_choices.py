"""Comparisons, booleans, choices, extremes and conversions in regions."""

from __future__ import annotations

import torch

from infopt.codegen.expression import HALVES, Code, Operand
from infopt.codegen.pointwise_table import (
    as_element,
    pointwise,
    promoted,
    second,
    word,
)
from infopt.compiler.graph import Node

_COMPARISONS = {
    "eq": "equal",
    "ne": "not_equal",
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
}


def _comparison_check(node: Node) -> str | None:
    scalar = () if len(node.args) == 2 else ("other",)
    d = promoted(node, *scalar)
    if d is torch.bool and word(node) not in ("eq", "ne"):
        return "an order of bools"
    if d in HALVES and any(a.dtype != d for a in node.inputs):
        return "operands of different dtypes in a 16-bit comparison"
    if (
        scalar
        and d in HALVES
        and float(torch.tensor(node.attr("other"), dtype=d)) != node.attr("other")
    ):
        return "a number that is not exact in 16 bits"
    return None


def _compare(c: Code, node: Node, a: Operand, *rest: Operand) -> Operand:
    d = promoted(node, *(() if rest else ("other",)))
    name = word(node)
    return c.call(_COMPARISONS[name], torch.bool, c.cast(a, d), second(c, node, rest, d))


for _name in _COMPARISONS:
    pointwise(f"{_name}.Tensor", f"{_name}.Scalar", check=_comparison_check)(_compare)


@pointwise(
    "logical_and.default", "logical_or.default", "logical_xor.default", "logical_not.default"
)
def _logical(c: Code, node: Node, *args: Operand) -> Operand:
    name = word(node)
    function = {
        "logical_and": "both",
        "logical_or": "either",
        "logical_xor": "differ",
        "logical_not": "invert",
    }[name]
    return c.call(function, torch.bool, *(c.cast(a, torch.bool) for a in args))


def _bits_check(node: Node) -> str | None:
    return "bits of a float" if node.dtype.is_floating_point else None


_BITS = {
    "bitwise_and": "both",
    "bitwise_or": "either",
    "bitwise_xor": "differ",
}


def _bits(c: Code, node: Node, a: Operand, *rest: Operand) -> Operand:
    d = node.dtype
    return c.call(_BITS[word(node)], d, c.cast(a, d), second(c, node, rest, d))


for _name in _BITS:
    pointwise(f"{_name}.Tensor", f"{_name}.Scalar", check=_bits_check)(_bits)


@pointwise("bitwise_not.default", check=_bits_check)
def _bitwise_not(c: Code, node: Node, a: Operand) -> Operand:
    return c.call("invert", node.dtype, a)


@pointwise("isnan.default", "isinf.default", check=lambda n: _float_check_input(n))
def _is(c: Code, node: Node, a: Operand) -> Operand:
    if word(node) == "isnan":
        return c.call("nan", torch.bool, a)
    f = torch.float32 if a.dtype in HALVES else a.dtype
    return c.call("equal", torch.bool, c.call_exact("absolute", f, a), c.constant(float("inf"), f))


def _float_check_input(node: Node) -> str | None:
    return None if node.args[0].dtype.is_floating_point else "not a float"  # type: ignore[union-attr]


def _bool_condition(node: Node) -> str | None:
    first = next(a for a in node.inputs if isinstance(a, Node))
    if first.dtype is not torch.bool:
        return "a condition that is not bool"
    return None


@pointwise(
    "where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar", check=_bool_condition
)
def _where(c: Code, node: Node, condition: Operand, *rest: Operand) -> Operand:
    d, attrs, tensors = node.dtype, dict(node.attrs), list(rest)
    yes = as_element(c, attrs["self"], d) if "self" in attrs else c.cast(tensors.pop(0), d)
    no = as_element(c, attrs["other"], d) if "other" in attrs else c.cast(tensors.pop(0), d)
    return c.call_exact("choose", d, condition, yes, no)


def _fill_check(node: Node) -> str | None:
    if node.args[1].dtype is not torch.bool:  # type: ignore[union-attr]
        return "a mask that is not bool"
    if len(node.args) > 2 and node.args[2].tensor_type.rank:  # type: ignore[union-attr]
        return "a value that is not 0-d"
    return None


@pointwise("masked_fill.Scalar", "masked_fill.Tensor", check=_fill_check)
def _masked_fill(c: Code, node: Node, a: Operand, mask: Operand, *rest: Operand) -> Operand:
    d = node.dtype
    value = c.cast(rest[0], d) if rest else as_element(c, node.attr("value"), d)
    return c.call_exact("choose", d, mask, value, a)


def _extreme_check(node: Node) -> str | None:
    if node.dtype is torch.bool:
        return "an order of bools"
    return None


def _extreme_of_two_check(node: Node) -> str | None:
    """Of two zeros of different sign torch takes the one its loop puts first: blocks of a vector
    and the rest of a row differ."""
    if node.dtype.is_floating_point:
        return "which of two signed zeros wins depends on torch's own vector loop"
    return _extreme_check(node)


@pointwise(
    "minimum.default", "maximum.default", "min.other", "max.other", check=_extreme_of_two_check
)
def _extreme(c: Code, node: Node, a: Operand, b: Operand) -> Operand:
    d = node.dtype
    function = "minimum" if word(node) in ("min", "minimum") else "maximum"
    return c.call_exact(function, d, c.cast(a, d), c.cast(b, d))


@pointwise("clamp.default", "clamp_min.default", "clamp_max.default", check=_extreme_check)
def _clamp(c: Code, node: Node, a: Operand) -> Operand:
    d, attrs = node.dtype, dict(node.attrs)
    x = c.cast(a, d)
    if attrs.get("min") is not None:
        x = c.call_exact("at_least", d, x, as_element(c, attrs["min"], d))
    if attrs.get("max") is not None:
        x = c.call_exact("at_most", d, x, as_element(c, attrs["max"], d))
    return x


@pointwise(
    "clamp.Tensor",
    "clamp_min.Tensor",
    "clamp_max.Tensor",
    check=lambda n: (
        "clamp by tensors"
        if any(a is None for a in n.args) and len(n.args) == 3
        else _extreme_check(n)
    ),
)
def _clamp_tensor(c: Code, node: Node, a: Operand, *rest: Operand) -> Operand:
    d, x = node.dtype, c.cast(a, node.dtype)
    if word(node) == "clamp_min" or len(rest) == 2:
        x = c.call_exact("maximum", d, x, c.cast(rest[0], d))
    if word(node) == "clamp_max" or len(rest) == 2:
        x = c.call_exact("minimum", d, x, c.cast(rest[-1], d))
    return x


@pointwise(
    "to.dtype",
    "to.dtype_layout",
    "to.device",
    "to.other",
    "type_as.default",
    "_to_copy.default",
    "clone.default",
    "contiguous.default",
    "copy.default",
)
def _convert(c: Code, node: Node, *args: Operand) -> Operand:
    source = args[1] if node.op.name == "aten.copy.default" else args[0]
    return c.cast(source, node.dtype)
