"""Straight-line code of one region's body: typed operands in, C++ statements out.

The same statements serve scalar loops and loops over 16-float vectors, because csrc/region.h
overloads every function for both. Values of a 16-bit float type are carried as f32 and rounded
after every op, as torch computes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import sympy
import torch

HALVES = {torch.bfloat16: "bf16", torch.float16: "f16"}
C_TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "float",
    torch.float16: "float",
    torch.int64: "int64_t",
    torch.int32: "int32_t",
    torch.int16: "int16_t",
    torch.int8: "int8_t",
    torch.uint8: "uint8_t",
    torch.bool: "bool",
}
MEMORY_TYPES = {**C_TYPES, torch.bfloat16: "bf16", torch.float16: "f16"}


@dataclass(frozen=True, slots=True)
class Operand:
    """A value in the body. moves: it changes along the inner loop (others are hoisted)."""

    text: str
    dtype: torch.dtype
    moves: bool = True


@dataclass
class Code:
    """Statements before the inner loop (`head`) and inside it (`body`)."""

    vector: bool
    size_text: Callable[[sympy.Expr], str]  # how the body reads a size known only at run time
    head: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)
    _known: dict[str, Operand] = field(default_factory=dict)

    def define(self, expression: str, dtype: torch.dtype, moves: bool) -> Operand:
        """A named value; equal expressions are computed once."""
        known = self._known.get(expression)
        if known is None:
            known = self._known[expression] = Operand(f"v{len(self._known)}", dtype, moves)
            (self.body if moves else self.head).append(f"const auto {known.text} = {expression};")
        return known

    def call(self, function: str, dtype: torch.dtype, *args: Operand) -> Operand:
        """function(args...), rounded to `dtype` where that is a 16-bit float."""
        text = f"pw::{function}({', '.join(a.text for a in args)})"
        moves = any(a.moves for a in args)
        half = HALVES.get(dtype)
        if half is not None and function != "choose":
            text = f"pw::round_{half}({text})"
        return self.define(text, dtype, moves)

    def call_exact(self, function: str, dtype: torch.dtype, *args: Operand) -> Operand:
        """The same where the result is one of the operands or an intermediate: nothing to round."""
        text = f"pw::{function}({', '.join(a.text for a in args)})"
        return self.define(text, dtype, any(a.moves for a in args))

    def rounded(self, a: Operand, dtype: torch.dtype) -> Operand:
        """The same value, rounded where `dtype` is a 16-bit float."""
        half = HALVES.get(dtype)
        return a if half is None else self.define(f"pw::round_{half}({a.text})", dtype, a.moves)

    def integer_power(self, a: Operand, exponent: int) -> Operand:
        """An integer to a constant power of 0 or more; it wraps."""
        return self.define(f"pw::power({a.text}, int64_t({exponent}))", a.dtype, a.moves)

    def constant(self, value: object, dtype: torch.dtype) -> Operand:
        """A number in the type `dtype` is computed in; not rounded to a 16-bit type."""
        return Operand(self._constant_text(value, dtype), dtype, False)

    def _constant_text(self, value: object, dtype: torch.dtype) -> str:
        c_type = C_TYPES[dtype]
        if isinstance(value, sympy.Expr):
            text = f"{c_type}({self.size_text(value)})"
        elif dtype is torch.bool:
            text = "true" if value else "false"
        elif dtype.is_floating_point:
            text = float_text(float(value), c_type)  # type: ignore[arg-type]
        else:
            number = wrapped(int(value), dtype)  # type: ignore[call-overload]
            text = f"{c_type}({'INT64_MIN' if number == -(1 << 63) else number})"
        if not self.vector:
            return text
        return f"pw::splat_mask({text})" if dtype is torch.bool else f"broadcast({text})"

    def cast(self, a: Operand, dtype: torch.dtype) -> Operand:
        """torch's conversion between dtypes."""
        if a.dtype == dtype:
            return a
        half = HALVES.get(dtype)
        if self.vector:
            if a.dtype is torch.bool:
                return self.define(f"pw::to_vec({a.text})", dtype, a.moves)
            if dtype is torch.bool:
                return self.define(f"pw::to_mask({a.text})", dtype, a.moves)
            text = a.text
        else:
            text = f"pw::to<{C_TYPES[dtype]}>({a.text})"
        if half is not None and a.dtype is not torch.bool:
            return self.define(f"pw::round_{half}({text})", dtype, a.moves)
        if self.vector or C_TYPES[a.dtype] == C_TYPES[dtype]:
            return Operand(a.text, dtype, a.moves)  # a wider float holds a narrower one
        return self.define(text, dtype, a.moves)


def float_text(value: float, c_type: str = "float") -> str:
    """A C++ literal of exactly this value."""
    if math.isnan(value):
        return f"{c_type}(NAN)"
    if math.isinf(value):
        return f"{c_type}({'-' if value < 0 else ''}INFINITY)"
    return f"{c_type}({value.hex()})"


def wrapped(value: int, dtype: torch.dtype) -> int:
    """An integer as its dtype holds it."""
    bits = dtype.itemsize * 8
    value &= (1 << bits) - 1
    if dtype is not torch.uint8 and value >= 1 << (bits - 1):
        value -= 1 << bits
    return value
