"""What a value is: shape, dtype, strides; and the named sizes a graph is open in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import sympy
import torch
from torch.utils._sympy.functions import CeilToInt, FloatTrueDiv, ToFloat

Size: TypeAlias = "int | sympy.Expr"

_PLACE = {"cuda": "cpu"}
_SHORT = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
}


def dtype_name(dtype: torch.dtype) -> str:
    """Short name used in dumps: f32, bf16, i64, bool ..."""
    return _SHORT.get(dtype, str(dtype).removeprefix("torch."))


def as_size(value: object) -> Size:
    """An int or sympy expression from an int, sympy integer or torch.SymInt (not hashable)."""
    if isinstance(value, torch.SymInt):
        value = value.node.expr
    if isinstance(value, sympy.Integer):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | sympy.Expr):
        raise TypeError(f"expected a size (int or sympy expression), found {value!r}")
    if isinstance(value, sympy.Expr) and value.has(CeilToInt):
        value = value.replace(CeilToInt, _rounded_up)
        return int(value) if isinstance(value, sympy.Integer) else value
    return value


def _rounded_up(number: sympy.Expr) -> sympy.Expr:
    """ceil(n + c) as n + ceil(c), for a whole n and a multiple c of 0.5: exact in floating point.

    torch counts the elements of arange(0.5, n) so, and elsewhere knows that they are n.
    """
    inner = number
    if isinstance(inner, FloatTrueDiv) and inner.args[1].is_number and float(inner.args[1]) == 1:
        inner = inner.args[0]
    terms = sympy.Add.make_args(inner)
    whole = [t.args[0] for t in terms if isinstance(t, ToFloat)]
    rest = sum([t for t in terms if not isinstance(t, ToFloat)], sympy.S.Zero)
    if not whole or not rest.is_number or not (2 * float(rest)).is_integer():
        return CeilToInt(number)
    return sympy.Add(*whole, math.ceil(float(rest)))


def contiguous_strides(shape: Iterable[Size]) -> tuple[Size, ...]:
    """Row-major strides in elements, as torch computes them (a size of 0 counts as 1)."""
    strides: list[Size] = []
    step: Size = 1
    for size in reversed(tuple(shape)):
        strides.append(step)
        step = step * (1 if size == 0 else size)
    return tuple(reversed(strides))


@dataclass(frozen=True)
class TensorType:
    """The type of one tensor.

    shape: sizes, each an int or a sympy expression over the graph's dims
    strides: in elements, same length as shape; the layout that torch's own run would give
    device: "cpu" for all tensors of a program, on whichever one device it runs
    """

    shape: tuple[Size, ...]
    dtype: torch.dtype
    strides: tuple[Size, ...]
    device: str = "cpu"

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorType:
        """The type of a real or fake tensor."""
        return cls(
            tuple(as_size(s) for s in tensor.shape),
            tensor.dtype,
            tuple(as_size(s) for s in tensor.stride()),
            _PLACE.get(tensor.device.type, tensor.device.type),
        )

    @classmethod
    def dense(cls, shape: Iterable[Size], dtype: torch.dtype) -> TensorType:
        """A contiguous tensor on the CPU."""
        shape = tuple(shape)
        return cls(shape, dtype, contiguous_strides(shape))

    @cached_property
    def _hash(self) -> int:
        return hash((self.shape, self.dtype, self.strides, self.device))

    def __hash__(self) -> int:
        return self._hash

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def is_float(self) -> bool:
        return self.dtype.is_floating_point

    @property
    def is_static(self) -> bool:
        return all(isinstance(s, int) for s in self.shape)

    @property
    def is_contiguous(self) -> bool:
        """True where the strides are row-major; sizes of 1 leave their stride free, as in torch."""
        expected = contiguous_strides(self.shape)
        pairs = zip(self.shape, self.strides, expected, strict=True)
        return 0 in self.shape or all(size == 1 or a == b for size, a, b in pairs)

    @property
    def numel(self) -> Size:
        result: Size = 1
        for size in self.shape:
            result = result * size
        return result

    @property
    def nbytes(self) -> Size:
        return self.numel * self.dtype.itemsize

    def with_dtype(self, dtype: torch.dtype) -> TensorType:
        return TensorType(self.shape, dtype, self.strides, self.device)

    def __str__(self) -> str:
        text = f"{dtype_name(self.dtype)}[{', '.join(map(str, self.shape))}]"
        if not self.is_contiguous:
            text += f"|{', '.join(map(str, self.strides))}"
        return text


@dataclass(frozen=True)
class Dim:
    """One dynamic size: its symbol, the range it may take, and the value seen at trace.

    counts: None for the size of an input's axis, or the name of an input: the value then is how
    many elements of it are nonzero, and lo where they are fewer. Such a size is read from data at
    the door of a call, so a program over "the real tokens only" is an ordinary dynamic program.
    """

    symbol: sympy.Symbol
    lo: int
    hi: int | None
    hint: int
    counts: str | None = None

    @property
    def name(self) -> str:
        return self.symbol.name

    def __str__(self) -> str:
        what = f" = nonzero elements of {self.counts}" if self.counts else ""
        highest = "∞" if self.hi is None else self.hi
        return f"{self.name}{what} in [{self.lo}, {highest}], seen {self.hint}"


def substitute(value: Size, values: Mapping[sympy.Symbol, int]) -> int:
    """The concrete value of a size for given dim values."""
    if isinstance(value, int):
        return value
    return int(value.xreplace({s: sympy.Integer(v) for s, v in values.items()}))


def hint(value: Size, dims: Iterable[Dim]) -> int:
    """The value of a size at the dims seen in tracing: for cost estimates, never for legality."""
    return substitute(value, {d.symbol: d.hint for d in dims})
