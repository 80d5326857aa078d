"""Runs that are captured once and replayed: one graph launch instead of one for every kernel.

A run is recorded when a call's sizes come for the second time. What a call brings is copied into
the recording's own inputs, and results are copied out of it, so that callers see fresh tensors as
without recording. Parameters, and inputs that the program writes, are used where they lie: their
addresses are part of what tells recordings apart, and nothing keeps their memory. Sizes are exact:
padding to larger ones would change what many programs compute. What varies without being a size, as
the tokens that a decoder's cache has, is read from memory, and needs no recording of its own.

All recordings of a program have their memory from one pool, and take turns in it: a replay waits
for the one before it, on whatever stream that was.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch

from infopt.runtime.device import Device, Recorded
from infopt.runtime.errors import CannotRecord
from infopt.runtime.plan import OutputInput, OutputTensor, Plan

if TYPE_CHECKING:
    from infopt.runtime.device_program import DeviceProgram

MOST = 16  # recordings kept; the one used longest ago goes first
REMEMBERED = 256  # sizes that came once, and are recorded when they come again


@dataclass
class Recording:
    """One captured run. own: its copies of inputs, by position; stream: where they were made."""

    own: dict[int, torch.Tensor]
    outputs: list[Any]
    graph: Recorded
    stream: int


class Recordings:
    """The recordings of one program. `declined`: why it has none, or no more."""

    def __init__(self, program: DeviceProgram, device: Device) -> None:
        self.program, self.device = program, device
        self.declined = why_not(program.plan)
        plan = program.plan
        self._written = sorted({m.input for m in plan.mutations})
        self._copied = [
            i
            for i, spec in enumerate(plan.inputs)
            if spec.kind == "tensor" and i not in self._written
        ]
        self._seen: OrderedDict[Any, None] = OrderedDict()
        self._kept: OrderedDict[Any, Recording] = OrderedDict()
        self._pool = None if self.declined else device.pool()
        self._last: tuple[int, Any] | None = None  # stream of the newest replay, and its end
        self._lock = Lock()

    def call(self, inputs: Sequence[Any]) -> list[Any]:
        """The outputs, by replaying a recording where there is one."""
        if self.declined or len(inputs) != len(self.program.plan.inputs):
            return self.program.run_once(inputs)
        key = self._key(inputs)
        with self._lock:
            recording = self._found(key, inputs)
            if recording is not None:
                return self._replay(recording, inputs)
        return self.program.run_once(inputs)

    def _key(self, inputs: Sequence[Any]) -> Any:
        """Equal only for calls that one recording serves: the checks of a plain call are made, and
        all sizes, strides, numbers, and addresses of what stays in place are the same."""
        program = self.program
        doors = tuple([door(inputs[i]) for i, door in program._doors])
        weights = () if program._weights is None else tuple(program._weights.look(inputs)[1])
        return doors, tuple([inputs[i].data_ptr() for i in self._written]), weights

    def _found(self, key: Any, inputs: Sequence[Any]) -> Recording | None:
        """The recording of a key, made where it comes for the second time: by then kernels are
        loaded, and what a capture may not do is done."""
        recording = self._kept.get(key)
        if recording is None and key in self._seen:
            recording = self._record(inputs)
            if recording is None:
                return None
            self._kept[key] = recording
            del self._seen[key]
        if recording is None:
            self._seen[key] = None
            while len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
            return None
        self._kept.move_to_end(key)
        while len(self._kept) > MOST:
            self._kept.popitem(last=False)
        return recording

    def _record(self, inputs: Sequence[Any]) -> Recording | None:
        own = {i: inputs[i].clone() for i in self._copied}
        given = [own.get(i, x) for i, x in enumerate(inputs)]
        try:
            graph, outputs = self.device.record(lambda: self.program.run_once(given), self._pool)
        except CannotRecord as error:
            self.declined = f"not recorded: {error}"
            return None
        return Recording(own, outputs, graph, self.device.stream())

    def _replay(self, recording: Recording, inputs: Sequence[Any]) -> list[Any]:
        stream = self.device.stream()
        if self._last is not None and self._last[0] != stream:
            self.device.wait(self._last[1])
        if recording.stream != stream:
            self.device.lend(recording.own.values())
        for i, own in recording.own.items():
            own.copy_(inputs[i])
        recording.graph.replay()
        results = [
            inputs[out.input] if isinstance(out, OutputInput) else _copied(value)
            for out, value in zip(self.program.plan.outputs, recording.outputs, strict=True)
        ]
        self._last = stream, self.device.mark(None if self._last is None else self._last[1])
        return results


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
