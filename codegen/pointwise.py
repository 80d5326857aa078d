"""Which aten ops are pointwise, when they are computed natively, and how.

Each entry turns typed operands into calls of csrc/region.h with torch's promotion and rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from infopt.codegen.expression import C_TYPES, HALVES, Code, Operand
from infopt.compiler.graph import Node
from infopt.compiler.types import TensorType

Emit = Callable[..., Operand]
Check = Callable[[Node], "str | None"]

SCALAR, EITHER, VECTOR = "scalar loops only", "either", "vector loops where possible"


@dataclass(frozen=True)
class Pointwise:
    """emit(code, node, *operands) -> operand; check(node): why not; loops: which it needs."""

    emit: Emit
    check: Check
    loops: str


_TABLE: dict[str, Pointwise] = {}


def find(node: Node) -> Pointwise | None:
    return _TABLE.get(node.op.name)


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
    entry = _TABLE[node.op.name]
    if entry.loops == SCALAR:
        return True
    dtypes = [node.dtype, *(a.dtype for a in node.inputs)]
    return any(d not in HALVES and d not in (torch.float32, torch.bool) for d in dtypes)


def wants_vector_loops(node: Node) -> bool:
    """True where scalar loops would call the C library or round bit by bit."""
    entry = _TABLE[node.op.name]
    dtypes = [node.dtype, *(a.dtype for a in node.inputs)]
    return entry.loops == VECTOR or any(d in HALVES for d in dtypes)


def is_heavy(node: Node) -> bool:
    """True where the C library is called for every element."""
    return general_power(node) or node.op.name.split(".")[1] in _REAL


def pointwise(
    *names: str, check: Check = lambda node: None, loops: str = EITHER
) -> Callable[[Emit], Emit]:
    def add(emit: Emit) -> Emit:
        for name in names:
            _TABLE[f"aten.{name}"] = Pointwise(emit, check, loops)
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


def _zero_dim_in_half(node: Node) -> str | None:
    """torch takes a 0-d operand of another dtype unrounded into 16-bit arithmetic."""
    if node.dtype in HALVES and any(
        a.dtype != node.dtype and a.tensor_type.rank == 0 for a in node.inputs
    ):
        return "a 0-d operand of another dtype in 16-bit arithmetic"
    return None


def _no_bool(node: Node) -> str | None:
    return "arithmetic of bools" if node.dtype is torch.bool else _zero_dim_in_half(node)


def _second(c: Code, node: Node, rest: tuple[Operand, ...], dtype: torch.dtype) -> Operand:
    """The other operand; a number is not rounded to a 16-bit type, as in torch's products."""
    return c.cast(rest[0], dtype) if rest else c.constant(node.attr("other"), dtype)


def _other_term(c: Code, node: Node, rest: tuple[Operand, ...], dtype: torch.dtype) -> Operand:
    """The other operand of a sum, where torch does round a number."""
    return c.cast(rest[0], dtype) if rest else _as(c, node.attr("other"), dtype)


# Arithmetic


def _arithmetic_check(node: Node) -> str | None:
    if node.dtype is torch.bool:
        return "arithmetic of bools"
    alpha = dict(node.attrs).get("alpha", 1)
    if isinstance(alpha, float) and (not node.dtype.is_floating_point or node.dtype in HALVES):
        return f"a float alpha in {node.dtype}"
    return _zero_dim_in_half(node)


@pointwise("add.Tensor", "add.Scalar", "sub.Tensor", "sub.Scalar", check=_arithmetic_check)
def _add(c: Code, node: Node, a: Operand, *rest: Operand) -> Operand:
    d = node.dtype
    x, y = c.cast(a, d), _other_term(c, node, rest, d)
    alpha = node.attr("alpha")
    function = "add" if ".add" in node.op.name else "sub"
    if alpha == 1 and not isinstance(alpha, bool):
        return c.call(function, d, x, y)
    sign = 1 if function == "add" else -1
    return c.call("muladd", d, y, c.constant(sign * alpha, d), x)


@pointwise("rsub.Scalar", "rsub.Tensor", check=_arithmetic_check)
def _rsub(c: Code, node: Node, a: Operand, *rest: Operand) -> Operand:
    d = node.dtype
    x, y = c.cast(a, d), _other_term(c, node, rest, d)
    alpha = node.attr("alpha")
    if alpha == 1:
        return c.call("sub", d, y, x)
    return c.call("muladd", d, x, c.constant(-alpha, d), y)


@pointwise("mul.Tensor", "mul.Scalar", check=_zero_dim_in_half)
def _mul(c: Code, node: Node, a: Operand, *rest: Operand) -> Operand:
    d = node.dtype
    x, y = c.cast(a, d), _second(c, node, rest, d)
    return c.call("both" if d is torch.bool else "mul", d, x, y)


@pointwise("div.Tensor", "div.Scalar", "true_divide.Tensor", "true_divide.Scalar", check=_no_bool)
def _div(c: Code, node: Node, a: Operand, *rest: Operand) -> Operand:
    d = node.dtype
    return c.call("div", d, c.cast(a, d), _second(c, node, rest, d))


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
    return c.call(f"div_{mode}", d, c.cast(a, d), _second(c, node, rest, d))


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
    function = "rem_floor" if "remainder" in node.op.name else "rem_trunc"
    return c.call(function, d, c.cast(a, d), _second(c, node, rest, d))


@pointwise(
    "addcmul.default",
    "addcdiv.default",
    check=lambda n: _no_bool(n) or (None if n.dtype is torch.float32 else "only in f32"),
)
def _addc(c: Code, node: Node, a: Operand, b: Operand, b2: Operand) -> Operand:
    d = node.dtype
    function = "mul" if "addcmul" in node.op.name else "div"
    x, y, z = (c.cast(v, d) for v in (a, b, b2))
    scaled = (
        y if node.attr("value") == 1 else c.call("mul", d, c.constant(node.attr("value"), d), y)
    )
    if function == "mul":  # torch's compiler fuses these two
        return c.call("muladd", d, scaled, z, x)
    return c.call("add", d, x, c.call("div", d, scaled, z))


def _unary_check(node: Node) -> str | None:
    if node.dtype is torch.bool:
        return "arithmetic of bools"
    return None


@pointwise("neg.default", "abs.default", "sign.default", "square.default", check=_unary_check)
def _simple(c: Code, node: Node, a: Operand) -> Operand:
    d = node.dtype
    name, a = node.op.name.split(".")[1], c.cast(a, d)
    if name == "square":
        return c.call("mul", d, a, a)
    return c.call_exact({"neg": "neg", "abs": "absolute", "sign": "sign"}[name], d, a)


_REAL = {
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
    d, name = node.dtype, node.op.name.split(".")[1]
    function = "plain_root" if name == "sqrt" and d in HALVES else _REAL[name]
    return c.call(function, d, c.cast(a, d))


for _name in _REAL:
    _loops = VECTOR if _name in _VECTOR_REAL else EITHER if _name in _EXACT_REAL else SCALAR
    pointwise(f"{_name}.default", check=_unary_check, loops=_loops)(_real)


def _float_check(node: Node) -> str | None:
    return None if node.dtype.is_floating_point else "not a float"


@pointwise("gelu.default", "silu.default", check=_float_check, loops=VECTOR)
def _activation(c: Code, node: Node, a: Operand) -> Operand:
    name = node.op.name.split(".")[1]
    if name == "gelu" and node.attr("approximate") == "tanh":
        name = "gelu_tanh"
    return c.call(name, node.dtype, a)


@pointwise(
    "log_sigmoid.default",
    "softplus.default",
    "elu.default",
    "mish.default",
    check=_float_check,
    loops=SCALAR,
)
def _activation_scalar(c: Code, node: Node, a: Operand) -> Operand:
    d, f = node.dtype, torch.float32 if node.dtype in HALVES else node.dtype
    name, attrs = node.op.name.split(".")[1], dict(node.attrs)

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
            _rounded(c, soft, d),
        )
    inner = c.call("exponential_m1", f, c.call("mul", f, a, number(attrs["input_scale"])))
    low = c.call("mul", f, inner, number(attrs["alpha"] * attrs["scale"]))
    high = c.call("mul", f, a, number(attrs["scale"]))
    picked = c.call_exact(
        "choose", f, c.call_exact("less_equal", torch.bool, a, number(0.0)), low, high
    )
    return _rounded(c, picked, d)


def _rounded(c: Code, a: Operand, dtype: torch.dtype) -> Operand:
    half = HALVES.get(dtype)
    return a if half is None else c.define(f"pw::round_{half}({a.text})", dtype, a.moves)


@pointwise(
    "relu.default", "relu6.default", "leaky_relu.default", "hardtanh.default", check=_unary_check
)
def _relu(c: Code, node: Node, a: Operand) -> Operand:
    d, attrs, name = node.dtype, dict(node.attrs), node.op.name.split(".")[1]
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


@pointwise("hardswish.default", "hardsigmoid.default", check=_float_check)
def _hard(c: Code, node: Node, a: Operand) -> Operand:
    d, f = node.dtype, torch.float32 if node.dtype in HALVES else node.dtype
    up = c.call("add", f, a, c.constant(3.0, f))
    cut = c.call("minimum", f, c.call("maximum", f, up, c.constant(0.0, f)), c.constant(6.0, f))
    if "hardswish" in node.op.name:
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
    "fix.default",
    check=_rounding_check,
)
def _whole(c: Code, node: Node, a: Operand) -> Operand:
    names = {"floor": "down", "ceil": "up", "trunc": "zero", "fix": "zero", "round": "near"}
    return c.call(f"round_{names[node.op.name.split('.')[1]]}", node.dtype, a)


# Powers


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
        return c.define(f"pw::power({x.text}, int64_t({n}))", d, x.moves)
    if general_power(node):
        return c.call("power", d, x, _as(c, n, d))
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


@pointwise("pow.Tensor_Tensor", "pow.Scalar", check=_float_check, loops=SCALAR)
def _power_of(c: Code, node: Node, *args: Operand) -> Operand:
    d = node.dtype
    base = c.cast(args[0], d) if len(args) == 2 else c.constant(node.attr("self"), d)
    return c.call("power", d, base, c.cast(args[-1], d))


# Comparisons, booleans, bits

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
    if d is torch.bool and node.op.name.split(".")[1] not in ("eq", "ne"):
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
    name = node.op.name.split(".")[1]
    return c.call(_COMPARISONS[name], torch.bool, c.cast(a, d), _second(c, node, rest, d))


for _name in _COMPARISONS:
    pointwise(f"{_name}.Tensor", f"{_name}.Scalar", check=_comparison_check)(_compare)


@pointwise(
    "logical_and.default", "logical_or.default", "logical_xor.default", "logical_not.default"
)
def _logical(c: Code, node: Node, *args: Operand) -> Operand:
    name = node.op.name.split(".")[1]
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
    "__and__": "both",
    "__or__": "either",
    "__xor__": "differ",
}


def _bits(c: Code, node: Node, a: Operand, *rest: Operand) -> Operand:
    d = node.dtype
    return c.call(_BITS[node.op.name.split(".")[1]], d, c.cast(a, d), _second(c, node, rest, d))


for _name in _BITS:
    pointwise(f"{_name}.Tensor", f"{_name}.Scalar", check=_bits_check)(_bits)


@pointwise("bitwise_not.default", check=_bits_check)
def _bitwise_not(c: Code, node: Node, a: Operand) -> Operand:
    return c.call("invert", node.dtype, a)


@pointwise("isnan.default", "isinf.default", check=lambda n: _float_check_input(n))
def _is(c: Code, node: Node, a: Operand) -> Operand:
    if "isnan" in node.op.name:
        return c.call("nan", torch.bool, a)
    f = torch.float32 if a.dtype in HALVES else a.dtype
    return c.call("equal", torch.bool, c.call_exact("absolute", f, a), c.constant(float("inf"), f))


def _float_check_input(node: Node) -> str | None:
    return None if node.args[0].dtype.is_floating_point else "not a float"  # type: ignore[union-attr]


# Choices


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
    yes = _as(c, attrs["self"], d) if "self" in attrs else c.cast(tensors.pop(0), d)
    no = _as(c, attrs["other"], d) if "other" in attrs else c.cast(tensors.pop(0), d)
    return c.call_exact("choose", d, condition, yes, no)


def _as(c: Code, value: object, dtype: torch.dtype) -> Operand:
    """A number as an element of `dtype`, rounded to it."""
    if dtype in HALVES and isinstance(value, int | float):
        value = float(torch.tensor(value, dtype=dtype))
    return c.constant(value, dtype)


def _fill_check(node: Node) -> str | None:
    if node.args[1].dtype is not torch.bool:  # type: ignore[union-attr]
        return "a mask that is not bool"
    if len(node.args) > 2 and node.args[2].tensor_type.rank:  # type: ignore[union-attr]
        return "a value that is not 0-d"
    return None


@pointwise("masked_fill.Scalar", "masked_fill.Tensor", check=_fill_check)
def _masked_fill(c: Code, node: Node, a: Operand, mask: Operand, *rest: Operand) -> Operand:
    d = node.dtype
    value = c.cast(rest[0], d) if rest else _as(c, node.attr("value"), d)
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
    function = "minimum" if ".min" in node.op.name else "maximum"
    return c.call_exact(function, d, c.cast(a, d), c.cast(b, d))


@pointwise(
    "clamp.default", "clamp_min.default", "clamp_max.default", "clip.default", check=_extreme_check
)
def _clamp(c: Code, node: Node, a: Operand) -> Operand:
    d, attrs = node.dtype, dict(node.attrs)
    x = c.cast(a, d)
    if attrs.get("min") is not None:
        x = c.call_exact("at_least", d, x, _as(c, attrs["min"], d))
    if attrs.get("max") is not None:
        x = c.call_exact("at_most", d, x, _as(c, attrs["max"], d))
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
    if "clamp_min" in node.op.name or len(rest) == 2:
        x = c.call_exact("maximum", d, x, c.cast(rest[0], d))
    if "clamp_max" in node.op.name or len(rest) == 2:
        x = c.call_exact("minimum", d, x, c.cast(rest[-1], d))
    return x


# Conversions and copies


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


# Values without inputs, made where they are read

_FILLS = {
    "full": "fill_value",
    "full_like": "fill_value",
    "new_full": "fill_value",
    "scalar_tensor": "s",
    "zeros": 0,
    "zeros_like": 0,
    "new_zeros": 0,
    "ones": 1,
    "ones_like": 1,
    "new_ones": 1,
}


def fill_value(node: Node) -> object | None:
    """The number every element of the node is, None where the node is no fill."""
    packet, _, overload = node.op.name.removeprefix("aten.").partition(".")
    if packet not in _FILLS or overload != "default" or not isinstance(node.type, TensorType):
        return None
    if node.dtype not in C_TYPES or node.tensor_type.device != "cpu":
        return None
    how = _FILLS[packet]
    value = node.attr(how) if isinstance(how, str) else how
    return None if isinstance(value, complex) else value


def count_from(node: Node) -> tuple[object, object] | None:
    """(start, step) of a node that counts in integers, None where it is no such arange."""
    packet, _, overload = node.op.name.removeprefix("aten.").partition(".")
    if packet != "arange" or overload not in ("default", "start", "start_step"):
        return None
    attrs = dict(node.attrs)
    start, step = attrs.get("start", 0), attrs.get("step", 1)
    if node.tensor_type.device != "cpu" or node.dtype not in (
        torch.int64,
        torch.int32,
        torch.float32,
    ):
        return None
    if any(isinstance(v, float | bool) for v in (start, step, attrs["end"])):
        return None
    return start, step
