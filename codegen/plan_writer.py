"""Collects a plan's buffers, views and steps while a graph is lowered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch

from infopt.codegen.sizes import LoweringDeclined, Sizes, product
from infopt.codegen.views import Layout
from infopt.compiler.types import Size, TensorType
from infopt.runtime.plan import AtenStep, Buffer, LaunchStep, NativeStep, Step, View

SHIPPED = "kernels"  # the library built when infopt was installed
GENERATED = "graph"  # the one made from this graph's texts


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor in memory: which buffer, and how it lies there."""

    buffer: int
    layout: Layout

    @property
    def type(self) -> TensorType:
        return self.layout.type


@dataclass(frozen=True, slots=True)
class Overwrite:
    """The steps `first` to `last` may write `new` over `old`: they read an element of it before
    they write the one in its place, and in no other task than that."""

    old: Value
    new: Value
    first: int
    last: int


class PlanWriter:
    """The growing plan. Buffers may change from arena to output until the end."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.buffers: list[Buffer] = []
        self.views: list[View] = []
        self.steps: list[Step] = []
        self.overwrites: list[Overwrite] = []
        self._view_of: dict[Value, int] = {}

    def buffer(self, kind: str, bytes: Size, index: int = 0) -> int:
        self.buffers.append(Buffer(kind, index, self.sizes.slot(bytes)))
        return len(self.buffers) - 1

    def allocate(self, type: TensorType, kind: str = "arena") -> Value:
        """New memory for a tensor of this type, in its strides."""
        return Value(self.buffer(kind, span_bytes(type)), Layout.of(type))

    def view(self, value: Value) -> int:
        found = self._view_of.get(value)
        if found is None:
            layout, slots = value.layout, self.sizes.slots
            offset = self.sizes.slot(layout.offset * layout.dtype.itemsize)
            made = View(
                value.buffer, offset, slots(layout.shape), slots(layout.strides), str(layout.dtype)
            )
            found = self._view_of[value] = len(self.views)
            self.views.append(made)
        return found

    def pointer(self, value: Value | None) -> tuple[int, int]:
        """What a native step gets to read or write `value`; None is a null pointer."""
        if value is None:
            return (-1, self.sizes.slot(0))
        return value.buffer, self.sizes.slot(value.layout.offset * value.layout.dtype.itemsize)

    def native(
        self,
        kernel: str,
        library: str,
        pointers: Sequence[Value | None],
        numbers: Sequence[Size | float],
        tasks: Size,
        scratch: Size | None = None,
        error: str | None = None,
    ) -> None:
        slot = self.sizes.slot
        self.steps.append(
            NativeStep(
                kernel,
                library,
                tuple([self.pointer(p) for p in pointers]),
                tuple([slot(n) for n in numbers]),
                slot(tasks),
                None if scratch is None else slot(scratch),
                error,
            )
        )

    def launch(
        self,
        kernel: int,
        arguments: Sequence[Value | Size | float],
        grid: Sequence[Size],
    ) -> None:
        """A launch of a GPU kernel, by its number in the plan."""
        slot = self.sizes.slot
        given = [self.pointer(a) if isinstance(a, Value) else (-1, slot(a)) for a in arguments]
        x, y, z = [slot(g) for g in grid]
        self.steps.append(LaunchStep(kernel, tuple(given), (x, y, z)))

    def aten(
        self,
        op: str,
        args: Sequence[Any],
        outputs: Sequence[Value | None],
        kwargs: Mapping[str, Any],
    ) -> None:
        """A torch op. Arguments: Values, sizes, dtypes and plain constants, nested in sequences."""
        made = AtenStep(
            op,
            tuple([self.template(a) for a in args]),
            tuple([None if o is None else self.view(o) for o in outputs]),
            {k: self.template(v) for k, v in kwargs.items()},
        )
        self.steps.append(made)

    def template(self, value: Any) -> Any:
        """An argument as the JSON value an AtenStep holds."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Value):
            return {"tensor": self.view(value)}
        if isinstance(value, list | tuple):
            return [self.template(v) for v in value]
        if isinstance(value, sympy.Expr):
            return {"size": self.sizes.slot(value)}
        for kind, name in _KINDS:
            if isinstance(value, kind):
                return {name: str(value)}
        if isinstance(value, complex):
            return {"complex": [value.real, value.imag]}
        raise LoweringDeclined(f"an argument {value!r} has no form in a plan")

    def may_overwrite(
        self, old: Value | None, new: Value | None, first: int, others: Sequence[Value | None]
    ) -> None:
        """The steps from `first` on may write `new` over `old`, where both are the whole of their
        memory and lie alike. others: what the steps read beside, in whatever order."""
        if old is None or new is None or old.layout != new.layout or old.layout.offset != 0:
            return
        if all(v is None or v.buffer != old.buffer for v in others):
            self.overwrites.append(Overwrite(old, new, first, len(self.steps) - 1))

    def land(self, places: Mapping[int, Value]) -> None:
        """What the steps so far wrote to these buffers, they write to parts of others instead."""
        if not places:
            return
        slot = self.sizes.slot
        starts = {b: slot(v.layout.offset * v.layout.dtype.itemsize) for b, v in places.items()}

        def moved(pointer: tuple[int, int]) -> tuple[int, int]:
            place = places.get(pointer[0])
            if place is None:
                return pointer
            return place.buffer, self.sizes.added(pointer[1], starts[pointer[0]])

        for i, step in enumerate(self.steps):
            if isinstance(step, NativeStep) and any(b in places for b, _ in step.pointers):
                self.steps[i] = replace(step, pointers=tuple(map(moved, step.pointers)))
            elif isinstance(step, LaunchStep) and any(b in places for b, _ in step.arguments):
                self.steps[i] = replace(step, arguments=tuple(map(moved, step.arguments)))
        for i, view in enumerate(self.views):
            if view.buffer in places:
                buffer, offset = moved((view.buffer, view.offset))
                self.views[i] = replace(view, buffer=buffer, offset=offset)
        for b in places:
            self.buffers[b] = replace(self.buffers[b], bytes=slot(0))

    def hand_out(self, value: Value) -> None:
        """The memory of this value goes to the caller: it is allocated by torch in every call."""
        buffer = self.buffers[value.buffer]
        if buffer.kind == "arena":
            self.buffers[value.buffer] = replace(buffer, kind="output")


_KINDS: tuple[tuple[type, str], ...] = (
    (torch.dtype, "dtype"),
    (torch.device, "device"),
    (torch.memory_format, "memory_format"),
    (torch.layout, "layout"),
)


def span_bytes(type: TensorType) -> Size:
    """Bytes from the first element to the last; those of the elements where they lie densely."""
    if type.is_contiguous or _is_dense(type):
        return type.nbytes
    if 0 in type.shape:
        return 0
    span: Size = 1
    for n, stride in zip(type.shape, type.strides, strict=True):
        span = span + (n - 1) * stride
    if not isinstance(span, int):
        span = sympy.Max(span, 0)  # a size of 0 can make it negative
    return span * type.dtype.itemsize


def _is_dense(type: TensorType) -> bool:
    """True for a transposed contiguous tensor."""
    remaining = [(n, s) for n, s in zip(type.shape, type.strides, strict=True) if n != 1]
    step: Size = 1
    while remaining:
        found = next((p for p in remaining if p[1] == step), None)
        if found is None:
            return False
        remaining.remove(found)
        step = product((step, found[0]))
    return True
