"""Functions of one number in regions: exp, gelu, relu, floor ..."""

from __future__ import annotations

import torch

from infopt.codegen.expression import HALVES, Code, Operand
from infopt.codegen.pointwise_table import (
    EITHER,
    SCALAR,
    VECTOR,
    float_check,
    pointwise,
    rounded,
    unary_check,
    word,
)
from infopt.compiler.graph import Node

REAL = {
    "exp": "exponential",
    "log": "logarithm",
    "tanh": "tangent_h",
    "erf": "error_function",
    "sigmoid": "logistic",
    "sqrt": "root",
    "rsqrt": "rroot",
    "reciprocal": "recip",
    "sin": "sine",
    "cos": "cosine",
    "tan": "tangent",
    "atan": "arc_tangent",
    "sinh": "sine_h",
    "cosh": "cosine_h",
    "exp2": "exponential2",
    "log2": "logarithm2",
    "log10": "logarithm10",
    "log1p": "logarithm1p",
    "expm1": "exponential_m1",
}
_VECTOR_REAL = {"exp", "log", "tanh", "erf", "sigmoid"}
_EXACT_REAL = {"sqrt", "rsqrt", "reciprocal"}


def _real(c: Code, node: Node, a: Operand) -> Operand:
    d, name = node.dtype, word(node)
    function = "plain_root" if name == "sqrt" and d in HALVES else REAL[name]
    return c.call(function, d, c.cast(a, d))


for _name in REAL:
    _loops = VECTOR if _name in _VECTOR_REAL else EITHER if _name in _EXACT_REAL else SCALAR
    pointwise(f"{_name}.default", check=unary_check, loops=_loops)(_real)


@pointwise("gelu.default", "silu.default", check=float_check, loops=VECTOR)
def _activation(c: Code, node: Node, a: Operand) -> Operand:
    name = word(node)
    if name == "gelu" and node.attr("approximate") == "tanh":
        name = "gelu_tanh"
    return c.call(name, node.dtype, a)


@pointwise(
    "log_sigmoid.default",
    "softplus.default",
    "elu.default",
    "mish.default",
    check=float_check,
    loops=SCALAR,
)
def _activation_scalar(c: Code, node: Node, a: Operand) -> Operand:
    d, f = node.dtype, torch.float32 if node.dtype in HALVES else node.dtype
    name, attrs = word(node), dict(node.attrs)

    def number(value: float) -> Operand:
        return c.constant(value, f)

    if name == "log_sigmoid":
        low = c.call("minimum", f, a, number(0.0))
        tail = c.call(
            "logarithm1p", f, c.call("exponential", f, c.call("neg", f, c.call("absolute", f, a)))
        )
        return c.call("sub", d, low, tail)
    if name == "mish":
        soft = c.call("logarithm1p", f, c.call("exponential", f, a))
        return c.call("mul", d, a, c.call("tangent_h", f, soft))
    if name == "softplus":
        scaled = c.call("mul", f, a, number(attrs["beta"]))
        soft = c.call(
            "div",
            f,
            c.call("logarithm1p", f, c.call("exponential", f, scaled)),
            number(attrs["beta"]),
        )
        return c.call_exact(
            "choose",
            d,
            c.call_exact("greater", torch.bool, scaled, number(attrs["threshold"])),
            a,
            rounded(c, soft, d),
        )
    inner = c.call("exponential_m1", f, c.call("mul", f, a, number(attrs["input_scale"])))
    low = c.call("mul", f, inner, number(attrs["alpha"] * attrs["scale"]))
    high = c.call("mul", f, a, number(attrs["scale"]))
    picked = c.call_exact(
        "choose", f, c.call_exact("less_equal", torch.bool, a, number(0.0)), low, high
    )
    return rounded(c, picked, d)


@pointwise(
    "relu.default", "relu6.default", "leaky_relu.default", "hardtanh.default", check=unary_check
)
def _relu(c: Code, node: Node, a: Operand) -> Operand:
    d, attrs, name = node.dtype, dict(node.attrs), word(node)
    if name == "leaky_relu":
        scaled = c.call("mul", d, a, c.constant(attrs["negative_slope"], d))
        return c.call_exact(
            "choose", d, c.call_exact("greater", torch.bool, a, c.constant(0, d)), a, scaled
        )
    low, high = {"relu": (0, None), "relu6": (0, 6)}.get(
        name, (attrs.get("min_val"), attrs.get("max_val"))
    )
    x = c.call("at_least", d, a, c.constant(low, d))
    return x if high is None else c.call("at_most", d, x, c.constant(high, d))


@pointwise("hardswish.default", "hardsigmoid.default", check=float_check)
def _hard(c: Code, node: Node, a: Operand) -> Operand:
    d, f = node.dtype, torch.float32 if node.dtype in HALVES else node.dtype
    up = c.call("add", f, a, c.constant(3.0, f))
    cut = c.call("minimum", f, c.call("maximum", f, up, c.constant(0.0, f)), c.constant(6.0, f))
    if word(node) == "hardswish":
        cut = c.call("mul", f, a, cut)
    return c.call("div", d, cut, c.constant(6.0, f))


def _rounding_check(node: Node) -> str | None:
    if dict(node.attrs).get("decimals"):
        return "rounding to decimals"
    return None if node.dtype.is_floating_point else "not a float"


@pointwise(
    "floor.default",
    "ceil.default",
    "trunc.default",
    "round.default",
    check=_rounding_check,
)
def _whole(c: Code, node: Node, a: Operand) -> Operand:
    names = {"floor": "down", "ceil": "up", "trunc": "zero", "round": "near"}
    return c.call(f"round_{names[word(node)]}", node.dtype, a)
