"""Runs that are captured once and replayed: one graph launch instead of one for every kernel.

A run is recorded when a call's sizes come for the second time. What a call brings is copied into
the recording's own inputs, and results are copied out of it, so that callers see fresh tensors as
without recording. Parameters, and inputs that the program writes, are used where they lie: their
addresses are part of what tells recordings apart.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch

from infopt.runtime.device import Device, Recorded
from infopt.runtime.errors import CannotRecord
from infopt.runtime.plan import OutputInput, OutputTensor, Plan

if TYPE_CHECKING:
    from infopt.runtime.device_program import DeviceProgram

MOST = 16  # recordings kept; the one used longest ago goes first


@dataclass
class Recording:
    """One captured run. inputs: its own copies, and the caller's tensors that stay in place."""

    inputs: list[Any]
    outputs: list[Any]
    graph: Recorded
    lock: Any = field(default_factory=Lock)


class Recordings:
    """The recordings of one program. `declined`: why it has none, or no more."""

    def __init__(self, program: DeviceProgram, device: Device) -> None:
        self.program, self.device = program, device
        self.declined = why_not(program.plan)
        plan = program.plan
        written = {m.input for m in plan.mutations}
        self._fixed = [
            i
            for i, spec in enumerate(plan.inputs)
            if spec.kind == "weight" or (spec.kind == "tensor" and i in written)
        ]
        self._copied = [
            i for i, spec in enumerate(plan.inputs) if spec.kind == "tensor" and i not in written
        ]
        self._known: OrderedDict[Any, Recording | None] = OrderedDict()
        self._lock = Lock()

    def call(self, inputs: Sequence[Any]) -> list[Any]:
        """The outputs, by replaying a recording where there is one."""
        if self.declined or len(inputs) != len(self.program.plan.inputs):
            return self.program.run_once(inputs)
        key = self._key(inputs)
        with self._lock:
            seen, recording = key in self._known, self._known.get(key)
            self._known[key] = recording
            self._known.move_to_end(key)
            while len(self._known) > MOST:
                self._known.popitem(last=False)
        if not seen:  # kernels are loaded, and what a capture may not do is done
            return self.program.run_once(inputs)
        if recording is None:
            recording = self._record(key, inputs)
            if recording is None:
                return self.program.run_once(inputs)
        with recording.lock:
            for i in self._copied:
                recording.inputs[i].copy_(inputs[i])
            recording.graph.replay()
            return [
                inputs[out.input] if isinstance(out, OutputInput) else _copied(value)
                for out, value in zip(self.program.plan.outputs, recording.outputs, strict=True)
            ]

    def _key(self, inputs: Sequence[Any]) -> Any:
        doors = tuple([door(inputs[i]) for i, door in self.program._doors])
        return doors, tuple([inputs[i].data_ptr() for i in self._fixed]), self.device.stream()

    def _record(self, key: Any, inputs: Sequence[Any]) -> Recording | None:
        own = list(inputs)
        for i in self._copied:
            own[i] = inputs[i].clone()
        try:
            graph, outputs = self.device.record(lambda: self.program.run_once(own))
        except CannotRecord as error:
            self.declined = f"not recorded: {error}"
            return None
        made = Recording(own, outputs, graph)
        with self._lock:
            self._known[key] = made
        return made


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def why_not(plan: Plan) -> str:
    """Why no run of a plan can be recorded; "" where it can."""
    if any(dim.counted for dim in plan.dims):
        return "not recorded: a size is read from data"
    views = [plan.views[o.view] for o in plan.outputs if isinstance(o, OutputTensor)]
    if any(plan.buffers[v.buffer].kind in ("input", "const") for v in views):
        return "not recorded: a result lies in memory that is not the call's own"
    if len({v.buffer for v in views}) < len(views):
        return "not recorded: two results share memory"
    return ""
