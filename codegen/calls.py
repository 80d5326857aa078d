"""Native calls of kernels: operands in the layouts a kernel takes, prepared ones shared."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch

from infopt.codegen.kernel import Call, Config, Emitter
from infopt.codegen.launch import Launch
from infopt.codegen.launches import LaunchTexts
from infopt.codegen.lower_region import Texts
from infopt.codegen.plan_writer import SHIPPED, PlanWriter, Value
from infopt.codegen.schedules import Schedules
from infopt.codegen.views import Layout
from infopt.compiler.graph import Node
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType


class Lowering(Protocol):
    """What emitting a call needs of the lowering around it."""

    writer: PlanWriter
    target: Target
    shipped: bool
    schedules: Schedules
    texts: Texts
    launches: LaunchTexts | None
    values: dict[Node, Value]
    several: dict[Node, tuple[Value | None, ...]]

    def value(self, node: Node) -> Value: ...
    def copied(self, value: Value, wanted: TensorType) -> Value: ...
    def results(
        self, node: Node, out: TensorType | None, packed: tuple[Size | None, ...]
    ) -> tuple[Value | None, ...]: ...


class Calls:
    """Emits kernels' calls into one plan.

    sources: library -> text, of the kernels that bring their own
    """

    def __init__(self, low: Lowering) -> None:
        self.low = low
        self.sources: dict[str, str] = {}
        self._prepared: dict[Any, Value] = {}
        self._laid_out: dict[tuple[Value, tuple], Value] = {}

    def emit(self, node: Node, emitter: Emitter) -> bool:
        """Append the calls of a node; False where its kernels are not installed."""
        low, attrs = self.low, dict(node.attrs)
        operands: dict[str, Value | tuple | None] = {}
        tensors = [p for p in node.op.parameters if p.is_tensor]
        for parameter, arg in zip(tensors, node.args, strict=True):
            operands[parameter.name] = self._operand(arg, emitter, parameter.name)
        types = [_type_of(v) for v in operands.values()]
        preferred = emitter.out(*types, **attrs) if emitter.out else None
        packed = emitter.packed(*types, **attrs) if emitter.packed else ()
        out = low.results(node, preferred, packed)
        out_types = tuple(None if v is None else v.type for v in out)
        single = isinstance(node.type, TensorType)
        cfg = Config(out_types, low.schedules(node, emitter))
        made = emitter.emit(cfg, low.target, *types, **attrs)
        calls = [made] if isinstance(made, Call | Launch) else list(made)
        first = len(low.writer.steps)
        launches = [c for c in calls if isinstance(c, Launch)]
        native = [c for c in calls if isinstance(c, Call)]
        if not low.shipped and any(_is_shipped(c) for c in native):
            return False
        names: dict[str, Value | None] = {}
        for name, operand in operands.items():
            if isinstance(operand, tuple):
                names |= {f"{name}{i}": v for i, v in enumerate(operand)}
            else:
                names[name] = operand
        names |= {"out": out[0]} if single else {f"out{i}": v for i, v in enumerate(out)}
        if single:
            low.values[node] = out[0]  # type: ignore[assignment]
        else:
            low.several[node] = out
        if launches:
            assert low.launches is not None, "a kernel for a GPU in a plan for a CPU"
            low.launches.append(low.writer, launches, names)
        for call in native:
            if call.tasks != 0:
                self._append(call, names)
        for name in emitter.over if not any(packed) else ():
            others = [v for k, v in names.items() if k not in (*emitter.over, "out")]
            low.writer.may_overwrite(names[name], names["out"], first, others)
        return True

    def _operand(self, arg: Any, emitter: Emitter, name: str) -> Any:
        if isinstance(arg, tuple):
            return tuple(self._operand(a, emitter, name) for a in arg)
        if arg is None:
            return None
        value = self.low.value(arg)
        wanted = emitter.layouts.get(name)
        strides = wanted(value.type) if wanted else None
        if strides is None:
            return value
        key = (value, strides)
        if key not in self._laid_out:
            t = replace(value.type, strides=strides)
            copy = self.low.copied(value, t)
            self._laid_out[key] = Value(
                copy.buffer, Layout(copy.layout.offset, t.shape, strides, t.dtype)
            )
        return self._laid_out[key]

    def _append(self, call: Call, names: Mapping[str, Value | None]) -> None:
        pointers = self._pointers(call, names)
        self.low.writer.native(
            call.symbol,
            self._library(call),
            pointers,
            call.numbers,
            call.tasks,
            call.scratch,
            call.error,
        )

    def _pointers(self, call: Call, names: Mapping[str, Value | None]) -> list[Value | None]:
        return [
            None if p is None else names[p] if isinstance(p, str) else self._prepare(p, names)
            for p in call.pointers
        ]

    def _prepare(self, call: Call, names: Mapping[str, Value | None]) -> Value:
        """The result of a call that only serves others, made once for all who ask for the same."""
        writer = self.low.writer
        pointers = self._pointers(call, names)
        key = (call.symbol, tuple(pointers), call.numbers, call.tasks)
        found = self._prepared.get(key)
        if found is None:
            slot = writer.buffer("arena", call.bytes)
            found = self._prepared[key] = Value(slot, Layout(0, (), (), torch.uint8))
            writer.native(
                call.symbol,
                self._library(call),
                [*pointers, found],
                call.numbers,
                call.tasks,
                call.scratch,
                call.error,
            )
        return found

    def _library(self, call: Call) -> str:
        if call.source is None:
            return SHIPPED
        if call.includes:
            return self.low.texts.add(call.symbol, call.source, call.includes)
        name = f"own_{hashlib.sha256(call.source.encode()).hexdigest()[:12]}"
        self.sources[name] = call.source
        return name


def _is_shipped(call: Call) -> bool:
    return call.source is None or any(isinstance(p, Call) and _is_shipped(p) for p in call.pointers)


def _type_of(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_type_of(v) for v in value)
    return None if value is None else value.type
