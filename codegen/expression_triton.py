"""Straight-line code of one region's body in Triton: the same calls as expression.py's, other text.

Values of a 16-bit float type are carried as f32 and rounded after every op. Functions of one real
number are the vendor's library's, which torch's own kernels call too; quotients and roots are the
correctly rounded ones, not Triton's faster defaults.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import sympy
import torch

from infopt.codegen.expression import HALVES, Code, Operand, wrapped

TRITON_TYPES = {
    torch.float32: "tl.float32",
    torch.float64: "tl.float64",
    torch.bfloat16: "tl.float32",
    torch.float16: "tl.float32",
    torch.int64: "tl.int64",
    torch.int32: "tl.int32",
    torch.int16: "tl.int16",
    torch.int8: "tl.int8",
    torch.uint8: "tl.uint8",
    torch.bool: "tl.int1",
}
_HALF_TYPES = {torch.bfloat16: "tl.bfloat16", torch.float16: "tl.float16"}
MEMORY_TYPES = {**TRITON_TYPES, **_HALF_TYPES}

# The functions of csrc/region.h; {0}, {1}, {2} are the operands, {one} a 1 of their type.
_ANY = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "less": "{0} < {1}",
    "less_equal": "{0} <= {1}",
    "greater": "{0} > {1}",
    "greater_equal": "{0} >= {1}",
    "equal": "{0} == {1}",
    "not_equal": "{0} != {1}",
    "nan": "{0} != {0}",
    "both": "{0} & {1}",
    "either": "{0} | {1}",
    "differ": "{0} ^ {1}",
    "invert": "~{0}",
    "choose": "tl.where({0}, {1}, {2})",
    "absolute": "tl.abs({0})",
    "maximum": "tl.where({0} != {0}, {0}, tl.where({0} > {1}, {0}, {1}))",
    "minimum": "tl.where({0} != {0}, {0}, tl.where({0} < {1}, {0}, {1}))",
    "at_least": "tl.where({0} < {1}, {1}, {0})",
    "at_most": "tl.where({0} > {1}, {1}, {0})",
    "sign": "({0} > 0).to({type}) - ({0} < 0).to({type})",
}
_INTEGER = {
    "muladd": "{0} * {1} + {2}",
    "neg": "0 - {0}",
    "div_trunc": "{0} // {1}",
    "div_floor": (
        "tl.where(({0} % {1} != 0) & (({0} < 0) != ({1} < 0)), {0} // {1} - 1, {0} // {1})"
    ),
    "rem_trunc": "{0} % {1}",
    "rem_floor": (
        "tl.where(({0} % {1} != 0) & (({0} < 0) != ({1} < 0)), {0} % {1} + {1}, {0} % {1})"
    ),
}
_FLOAT = {
    "muladd": "tl.fma({0}, {1}, {2})",
    "neg": "{0} * -1.0",  # 0 - x would lose the sign of a zero
    "div": "tl.div_rn({0}, {1})",
    "recip": "tl.div_rn({one}, {0})",
    "root": "tl.sqrt_rn({0})",
    "plain_root": "tl.sqrt_rn({0})",
    "rroot": "tl.div_rn({one}, tl.sqrt_rn({0}))",
    "round_down": "tl.floor({0})",
    "round_up": "tl.ceil({0})",
    "round_zero": "tl.where({0} < 0, tl.ceil({0}), tl.floor({0}))",
    "round_near": "libdevice.rint({0})",
    "rem_trunc": "libdevice.fmod({0}, {1})",
    "exponential": "libdevice.exp({0})",
    "logarithm": "libdevice.log({0})",
    "tangent_h": "libdevice.tanh({0})",
    "error_function": "libdevice.erf({0})",
    "sine": "libdevice.sin({0})",
    "cosine": "libdevice.cos({0})",
    "tangent": "libdevice.tan({0})",
    "arc_tangent": "libdevice.atan({0})",
    "sine_h": "libdevice.sinh({0})",
    "cosine_h": "libdevice.cosh({0})",
    "exponential2": "libdevice.exp2({0})",
    "logarithm2": "libdevice.log2({0})",
    "logarithm10": "libdevice.log10({0})",
    "logarithm1p": "libdevice.log1p({0})",
    "exponential_m1": "libdevice.expm1({0})",
    "power": "libdevice.pow({0}, {1})",
    "logistic": "tl.div_rn({one}, 1.0 + libdevice.exp({0} * -1.0))",
    "silu": "tl.div_rn({0}, 1.0 + libdevice.exp({0} * -1.0))",
    "gelu": "{0} * 0.5 * (1.0 + libdevice.erf({0} * 0.7071067811865476))",
    "gelu_tanh": (
        "0.5 * {0} * (1.0 + libdevice.tanh("
        "0.7978845608028654 * ({0} + 0.044715 * {0} * {0} * {0})))"
    ),
}
# Functions of several statements, as functions of the text.
_FLOAT_FUNCTIONS = {
    "rem_floor": '''
@triton.jit
def rem_floor(a, b):
    """The remainder with the divisor's sign."""
    r = libdevice.fmod(a, b)
    return tl.where((r != 0) & ((b < 0) != (r < 0)), r + b, r)
''',
    "div_trunc": """
@triton.jit
def div_trunc(a, b):
    q = a / b
    return tl.where(q < 0, tl.ceil(q), tl.floor(q))
""",
    "div_floor": '''
@triton.jit
def div_floor(a, b):
    """As Python's //: the remainder is taken off before dividing."""
    r = libdevice.fmod(a, b)
    q = (a - r) / b
    q = tl.where((r != 0) & ((b < 0) != (r < 0)), q - 1, q)
    f = tl.floor(q)
    f = tl.where(q - f > 0.5, f + 1, f)
    # a zero has the sign of the quotient; what was divided by zero is that quotient
    f = tl.where(q == 0, (a / b) * 0.0, f)
    return tl.where(b == 0, a / b, f)
''',
}


@dataclass
class TritonCode(Code):
    """`functions`: the texts of functions that the body calls."""

    vector: bool = False
    size_text: Callable[[sympy.Expr], str] = str
    functions: dict[str, str] = field(default_factory=dict)

    def define(self, expression: str, dtype: torch.dtype, moves: bool) -> Operand:
        known = self._known.get(expression)
        if known is None:
            known = self._known[expression] = Operand(f"v{len(self._known)}", dtype, moves)
            self.body.append(f"{known.text} = {expression}")
        return known

    def call(self, function: str, dtype: torch.dtype, *args: Operand) -> Operand:
        made = self.call_exact(function, dtype, *args)
        return made if function == "choose" else self.rounded(made, dtype)

    def call_exact(self, function: str, dtype: torch.dtype, *args: Operand) -> Operand:
        of = args[-1].dtype
        texts = [a.text for a in args]
        form = _ANY.get(function) or (_FLOAT if of.is_floating_point else _INTEGER).get(function)
        if form is None:
            self.functions[function] = _FLOAT_FUNCTIONS[function]
            form = f"{function}({{0}}, {{1}})"
        if of is torch.float64:  # whose quotients and roots have one form only
            form = form.replace("tl.sqrt_rn", "tl.sqrt")
            form = {"div": "{0} / {1}", "recip": "{one} / {0}"}.get(function, form)
            form = {"rroot": "{one} / tl.sqrt({0})", "logistic": _LOGISTIC64}.get(function, form)
            form = {"silu": _SILU64}.get(function, form)
        if function == "invert" and of is torch.uint8:
            form = "{0} ^ 255"
        one = self._constant_text(1, of) if "{one}" in form else ""
        text = form.format(*texts, one=one, type=TRITON_TYPES[of])
        return self.define(text, dtype, any(a.moves for a in args))

    def rounded(self, a: Operand, dtype: torch.dtype) -> Operand:
        half = _HALF_TYPES.get(dtype)
        if half is None:
            return a
        return self.define(f"{a.text}.to({half}).to(tl.float32)", dtype, a.moves)

    def integer_power(self, a: Operand, exponent: int) -> Operand:
        result, factor, left = self.constant(1, a.dtype), a, exponent
        while left:
            if left & 1:
                result = self.call("mul", a.dtype, result, factor)
            left >>= 1
            if left:
                factor = self.call("mul", a.dtype, factor, factor)
        return result

    def _constant_text(self, value: object, dtype: torch.dtype) -> str:
        kind = TRITON_TYPES[dtype]
        if isinstance(value, sympy.Expr):
            return f"{self.size_text(value)}.to({kind})"
        if dtype is torch.bool:
            text = "True" if value else "False"
        elif dtype.is_floating_point:
            text = _float_text(float(value))  # type: ignore[arg-type]
        else:
            text = str(wrapped(int(value), dtype))  # type: ignore[call-overload]
        return f"tl.full((), {text}, {kind})"

    def cast(self, a: Operand, dtype: torch.dtype) -> Operand:
        if a.dtype == dtype:
            return a
        before, after = TRITON_TYPES[a.dtype], TRITON_TYPES[dtype]
        if dtype is torch.bool:
            return self.define(f"{a.text} != 0", dtype, a.moves)
        text = a.text
        if a.dtype.is_floating_point and not dtype.is_floating_point and dtype.itemsize < 4:
            step = "tl.int64" if dtype is torch.uint8 else "tl.int32"
            text = f"{text}.to({step})"
        if before != after:
            made = self.define(f"{text}.to({after})", dtype, a.moves)
        else:
            made = Operand(a.text, dtype, a.moves)
        # a bool is exact in 16 bits; between the two halves, and from wider types, one rounds
        return made if a.dtype is torch.bool else self.rounded(made, dtype)


_LOGISTIC64 = "{one} / (1.0 + libdevice.exp({0} * -1.0))"
_SILU64 = "{0} / (1.0 + libdevice.exp({0} * -1.0))"


def _float_text(value: float) -> str:
    """A literal of exactly this value."""
    if math.isnan(value):
        return 'float("nan")'
    if math.isinf(value):
        return f'float("{"-" if value < 0 else ""}inf")'
    return repr(value)


assert set(HALVES) == set(_HALF_TYPES)
