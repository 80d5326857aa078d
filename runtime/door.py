"""The door of a program: is each input what the plan was made for? Well under 0.5 us per input."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from operator import is_, itemgetter
from typing import Any

import torch

from infopt.runtime.errors import InputMismatch
from infopt.runtime.plan import InputSpec, Plan
from infopt.runtime.plan_check import dtype_of

# What a door returns tells two calls apart: equal keys, equal sizes and strides.
Door = Callable[[Any], Any]

CPU = torch.device("cpu")
_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})
_PYTHON_KEY = torch._C.DispatchKey.Python


def tensor_door(spec: InputSpec, position: int, where: torch.device = CPU) -> Door:
    """A check of everything but sizes and strides, which are the key it returns."""
    dtype = dtype_of(str(spec.dtype), spec.name)
    plain, strided, complex_ = _PLAIN, torch.strided, dtype.is_complex
    on_cpu = where == CPU

    def door(x: Any) -> Any:
        if (
            type(x) in plain
            and x.dtype is dtype
            and x.layout is strided
            and (x.is_cpu if on_cpu else x.device == where)
            and not x.is_neg()
            and not (complex_ and x.is_conj())
        ):
            return x.shape, x.stride()
        return _second_look(x, spec, position, dtype, where)

    return door


def _second_look(
    x: Any, spec: InputSpec, position: int, dtype: torch.dtype, where: torch.device
) -> Any:
    """A subclass that is stored as a plain tensor passes; all else is refused with the reason."""
    expected: object
    if not isinstance(x, torch.Tensor):
        expected, found = "a tensor", type(x).__name__
    elif torch._C._dispatch_keys(x).has(_PYTHON_KEY):
        expected, found = "a plain tensor", f"the tensor subclass {type(x).__name__}"
    elif x.device != where:
        expected, found = f"device {where}", f"device {x.device}"
    elif x.layout is not torch.strided:
        expected, found = torch.strided, str(x.layout)
    elif x.dtype is not dtype:
        expected, found = dtype, str(x.dtype)
    elif x.is_neg() or x.is_conj():
        expected, found = "stored values", "a lazily negated or conjugated view"
    else:
        return x.shape, x.stride()
    raise mismatch(spec, position, expected, found)


def counting_door(door: Door) -> Door:
    """The door of a tensor whose nonzero elements are a size: their number is part of the key."""

    def counting(x: Any) -> Any:
        return door(x), nonzero_elements(x)

    return counting


def nonzero_elements(x: torch.Tensor) -> int:
    return int(torch.count_nonzero(x))


def scalar_door(spec: InputSpec, position: int) -> Door:
    """A check of the type; the key is the value, a float's its bits (-0.0 is not 0.0)."""
    kinds: dict[str, Any] = {"int": int, "float": float, "bool": bool}
    kind = kinds[spec.kind]

    def door(x: Any) -> Any:
        if type(x) is not kind:
            raise mismatch(spec, position, f"a Python {kind.__name__}", type(x).__name__)
        if kind is int and not -(2**63) <= x < 2**63:
            raise mismatch(spec, position, "an int of 64 bits", str(x))
        return scalar_bits(x)

    return door


def scalar_bits(x: bool | int | float) -> int:
    """A scalar as the executor takes it: a float as its 64-bit pattern."""
    return struct.unpack("<q", struct.pack("<d", x))[0] if isinstance(x, float) else int(x)


def mismatch(spec: InputSpec, position: int, expected: object, found: object) -> InputMismatch:
    return InputMismatch(f"input {position} ({spec.name}): expected {expected}, found {found}")


def check_sizes(plan: Plan, inputs: Sequence[Any], slots: Sequence[int]) -> None:
    """Every tensor has the sizes its spec evaluates to, so a dim seen twice agrees; all guards."""
    for i, spec in enumerate(plan.inputs):
        if spec.kind == "tensor" and tuple(inputs[i].shape) != shape_of(spec, slots):
            raise mismatch(
                spec,
                i,
                f"shape {named_shape(plan, spec, slots)}",
                f"shape {tuple(inputs[i].shape)}",
            )
    for guard in plan.guards:
        if slots[guard.slot] == 0:
            raise InputMismatch(guard.message)


def read_dims(plan: Plan, inputs: Sequence[Any]) -> list[int]:
    """The value of every dim, its range checked. Raises InputMismatch."""
    values = []
    for dim in plan.dims:
        spec, x = plan.inputs[dim.input], inputs[dim.input]
        if dim.counted:
            value = max(dim.lo, nonzero_elements(x))
        elif dim.axis is None:
            value = scalar_bits(x)
        elif x.dim() != len(spec.shape):
            raise mismatch(
                spec, dim.input, f"{len(spec.shape)} axes", f"{x.dim()} (shape {tuple(x.shape)})"
            )
        else:
            value = x.shape[dim.axis]
        if spec.kind != "float" and not dim.lo <= value <= (value if dim.hi is None else dim.hi):
            raise mismatch(spec, dim.input, f"{range_text(dim.lo, dim.hi, dim.name)}", value)
        values.append(value)
    return values


def range_text(lo: int, hi: int | None, name: str) -> str:
    return f"{lo} <= {name}" + ("" if hi is None else f" <= {hi}")


def shape_of(spec: InputSpec, slots: Sequence[int]) -> tuple[int, ...]:
    return tuple([slots[s] for s in spec.shape])


def named_shape(plan: Plan, spec: InputSpec, slots: Sequence[int]) -> str:
    """(n=3, 16): the expected sizes, with a dim's name where a size is just that dim."""
    texts = []
    for slot in spec.shape:
        tokens, value = plan.expressions[slot], slots[slot]
        is_dim = len(tokens) == 1 and isinstance(tokens[0], str) and tokens[0][0] == "d"
        texts.append(f"{plan.dims[int(str(tokens[0])[1:])].name}={value}" if is_dim else str(value))
    return f"({', '.join(texts)})"


def strides_fit(x: torch.Tensor, strides: Sequence[int]) -> bool:
    """Whether `x` lies in memory as `strides` say; sizes 0 and 1 have no stride to compare."""
    if x.numel() == 0:
        return True
    return all(n == 1 or a == b for n, a, b in zip(x.shape, x.stride(), strides, strict=True))


class Weights:
    """The weight inputs of a program: normally the same objects as in the last call.

    Identity and data pointers are compared (about 60 ns per weight); only what changed is checked
    in full. In-place updates need nothing, the data is read where it lies.
    """

    def __init__(self, plan: Plan, where: torch.device = CPU) -> None:
        self.positions = [i for i, spec in enumerate(plan.inputs) if spec.kind == "weight"]
        self.specs = [plan.inputs[i] for i in self.positions]
        self.doors = [tensor_door(plan.inputs[i], i, where) for i in self.positions]
        constants: list[Any] = [tokens[0] for tokens in plan.expressions]  # of weights: ints
        self.shapes = [tuple(constants[s] for s in spec.shape) for spec in self.specs]
        self.strides = [
            None if spec.strides is None else tuple(constants[s] for s in spec.strides)
            for spec in self.specs
        ]
        self.pick = itemgetter(*self.positions, self.positions[-1])  # always a tuple
        self.seen: tuple[tuple[Any, ...], list[int]] = ((), [])

    def look(self, inputs: Sequence[Any]) -> tuple[tuple[Any, ...], list[int]]:
        """(tensors, their addresses): the very same pair as long as nothing changed."""
        tensors = self.pick(inputs)
        seen = self.seen
        try:
            addresses = list(map(torch.Tensor.data_ptr, tensors))
        except (TypeError, RuntimeError):  # not a tensor, or one without memory
            addresses = []
        if addresses == seen[1] and all(map(is_, tensors, seen[0])):
            return seen
        for i, door in enumerate(self.doors):
            x = tensors[i]
            door(x)
            spec, position = self.specs[i], self.positions[i]
            if tuple(x.shape) != self.shapes[i]:
                raise mismatch(spec, position, f"shape {self.shapes[i]}", tuple(x.shape))
            strides = self.strides[i]
            if strides is not None and not strides_fit(x, strides):
                raise mismatch(spec, position, f"strides {strides}", x.stride())
        self.seen = (tensors, addresses)
        return self.seen
