"""Sums, products, quotients and powers in regions."""

from __future__ import annotations

import torch

from infopt.codegen.expression import HALVES, Code, Operand
from infopt.codegen.pointwise_table import (
    SCALAR,
    as_element,
    float_check,
    no_bool,
    other_term,
    pointwise,
    second,
    unary_check,
    word,
    zero_dim_in_half,
)
from infopt.compiler.graph import Node


def _arithmetic_check(node: Node) -> str | None:
    if node.dtype is torch.bool:
        return "arithmetic of bools"
    alpha = dict(node.attrs).get("alpha", 1)
    if isinstance(alpha, float) and (not node.dtype.is_floating_point or node.dtype in HALVES):
        return f"a float alpha in {node.dtype}"
    return zero_dim_in_half(node)


@pointwise("add.Tensor", "add.Scalar", "sub.Tensor", "sub.Scalar", check=_arithmetic_check)
def _add(c: Code, node: Node, a: Operand, *rest: Operand) -> Operand:
    d = node.dtype
    x, y = c.cast(a, d), other_term(c, node, rest, d)
    alpha = node.attr("alpha")
    function = word(node)
    if alpha == 1 and not isinstance(alpha, bool):
        return c.call(function, d, x, y)
    sign = 1 if function == "add" else -1
    return c.call("muladd", d, y, c.constant(sign * alpha, d), x)


@pointwise("rsub.Scalar", "rsub.Tensor", check=_arithmetic_check)
def _rsub(c: Code, node: Node, a: Operand, *rest: Operand) -> Operand:
    d = node.dtype
    x, y = c.cast(a, d), other_term(c, node, rest, d)
    alpha = node.attr("alpha")
    if alpha == 1:
        return c.call("sub", d, y, x)
    return c.call("muladd", d, x, c.constant(-alpha, d), y)


@pointwise("mul.Tensor", "mul.Scalar", check=zero_dim_in_half)
def _mul(c: Code, node: Node, a: Operand, *rest: Operand) -> Operand:
    d = node.dtype
    x, y = c.cast(a, d), second(c, node, rest, d)
    return c.call("both" if d is torch.bool else "mul", d, x, y)


@pointwise("div.Tensor", "div.Scalar", check=no_bool)
def _div(c: Code, node: Node, a: Operand, *rest: Operand) -> Operand:
    d = node.dtype
    return c.call("div", d, c.cast(a, d), second(c, node, rest, d))


def _division_check(node: Node) -> str | None:
    if node.dtype is torch.bool or node.dtype in HALVES:
        return f"rounded division in {node.dtype}"
    attrs = dict(node.attrs)
    if "rounding_mode" in attrs and attrs["rounding_mode"] not in ("floor", "trunc"):
        return "division with an unknown rounding"
    if not node.dtype.is_floating_point:
        other = attrs.get("other")
        if type(other) is not int or other in (0, -1):
            return "an integer divisor that may be zero"
    return None


@pointwise(
    "div.Tensor_mode",
    "div.Scalar_mode",
    "floor_divide.default",
    "floor_divide.Scalar",
    check=_division_check,
    loops=SCALAR,
)
def _div_mode(c: Code, node: Node, a: Operand, *rest: Operand) -> Operand:
    d = node.dtype
    mode = dict(node.attrs).get("rounding_mode", "floor")
    return c.call(f"div_{mode}", d, c.cast(a, d), second(c, node, rest, d))


@pointwise(
    "remainder.Scalar",
    "remainder.Tensor",
    "fmod.Scalar",
    "fmod.Tensor",
    check=_division_check,
    loops=SCALAR,
)
def _remainder(c: Code, node: Node, a: Operand, *rest: Operand) -> Operand:
    d = node.dtype
    function = "rem_floor" if word(node) == "remainder" else "rem_trunc"
    return c.call(function, d, c.cast(a, d), second(c, node, rest, d))


@pointwise(
    "addcmul.default",
    "addcdiv.default",
    check=lambda n: no_bool(n) or (None if n.dtype is torch.float32 else "only in f32"),
)
def _addc(c: Code, node: Node, a: Operand, b: Operand, b2: Operand) -> Operand:
    d = node.dtype
    function = "mul" if word(node) == "addcmul" else "div"
    x, y, z = (c.cast(v, d) for v in (a, b, b2))
    scaled = (
        y if node.attr("value") == 1 else c.call("mul", d, c.constant(node.attr("value"), d), y)
    )
    if function == "mul":  # torch's compiler fuses these two
        return c.call("muladd", d, scaled, z, x)
    return c.call("add", d, x, c.call("div", d, scaled, z))


@pointwise("neg.default", "abs.default", "sign.default", "square.default", check=unary_check)
def _simple(c: Code, node: Node, a: Operand) -> Operand:
    d = node.dtype
    name, a = word(node), c.cast(a, d)
    if name == "square":
        return c.call("mul", d, a, a)
    return c.call_exact({"neg": "neg", "abs": "absolute", "sign": "sign"}[name], d, a)


def _power_check(node: Node) -> str | None:
    exponent = node.attr("exponent")
    if isinstance(exponent, bool) or not isinstance(exponent, int | float):
        return "a power known only at run time"
    if not node.dtype.is_floating_point:
        whole = node.dtype is not torch.bool and isinstance(exponent, int) and exponent >= 0
        return None if whole else "a power of integers"
    if not node.args[0].dtype.is_floating_point:  # type: ignore[union-attr]
        return "a float power of integers"
    return None


_EXACT_POWERS = (0, 1, 2, 3, 0.5, -0.5, -1, -2)


@pointwise("pow.Tensor_Scalar", check=_power_check)
def _power(c: Code, node: Node, a: Operand) -> Operand:
    d, n = node.dtype, node.attr("exponent")
    x = c.cast(a, d)
    if not d.is_floating_point:
        return c.integer_power(x, n)
    if general_power(node):
        return c.call("power", d, x, as_element(c, n, d))
    if n == 0:
        return c.define(c.constant(1.0, d).text, d, False)
    if n == 1:
        return x
    if n in (2, 3):
        square = c.call("mul", d, x, x)
        return square if n == 2 else c.call("mul", d, square, x)
    if n == 0.5:
        return c.call("root", d, x)
    if n == -0.5:
        return c.call("recip", d, c.call("root", d, x))
    if n == -1:
        return c.call("recip", d, x)
    return c.call("recip", d, c.call("mul", d, x, x))


def general_power(node: Node) -> bool:
    """A power that only the C library computes; for f16 torch calls it for most exponents."""
    if node.op.name == "aten.pow.Tensor_Scalar":
        exact = (0, 1, 2, -1) if node.dtype is torch.float16 else _EXACT_POWERS
        return node.dtype.is_floating_point and node.attr("exponent") not in exact
    return node.op.name in ("aten.pow.Tensor_Tensor", "aten.pow.Scalar")


@pointwise("pow.Tensor_Tensor", "pow.Scalar", check=float_check, loops=SCALAR)
def _power_of(c: Code, node: Node, *args: Operand) -> Operand:
    d = node.dtype
    base = c.cast(args[0], d) if len(args) == 2 else c.constant(node.attr("self"), d)
    return c.call("power", d, base, c.cast(args[-1], d))
