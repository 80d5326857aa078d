"""A plan on a GPU: the executor's program with launches for native steps, and recorded runs.

Every call allocates from torch's caching allocator on torch's current stream and launches there,
so calls from several streams need nothing of each other. With `record` a run of sizes that came
before is captured in a graph (recording.py).
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from infopt.runtime.context import Context
from infopt.runtime.device import Device
from infopt.runtime.device_launch import Launches
from infopt.runtime.errors import InputUnaligned
from infopt.runtime.executor import Program
from infopt.runtime.plan import OutputTensor, Plan
from infopt.runtime.recording import Recordings

ALIGNMENT = 16  # bytes; kernels are compiled for tensors that begin at multiples of it


class DeviceProgram(Program):
    """A plan of launches and torch calls, bound to one GPU; call it with the list of inputs.

    code: the files that `plan.kernels` name. constants are brought to the device where they are
    not there yet. executor: starts launches natively; without it Python does, slower.
    Raises PlanError, LibraryError; a call raises InputMismatch, SizeError, LaunchFailed.
    """

    def __init__(
        self,
        plan: Plan,
        constants: Sequence[torch.Tensor],
        device: Device,
        code: Mapping[str, bytes],
        *,
        allow_ops: Collection[str] = (),
        executor: ctypes.CDLL | None = None,
        record: bool = False,
    ) -> None:
        self.device = device
        with device.current():
            launches = Launches(plan, device, code, executor)
            constants = [_placed(x, device.where) for x in constants]
        super().__init__(
            plan,
            constants,
            threads=1,
            allow_ops=allow_ops,
            executor=executor,
            where=device.where,
            launches=launches,
        )
        self._read = {b for s in launches.steps for b, _ in s.arguments if b >= 0}
        self._checked_weights: Any = None
        shown = {
            plan.buffers[plan.views[o.view].buffer].index
            for o in plan.outputs
            if isinstance(o, OutputTensor)
            and plan.buffers[plan.views[o.view].buffer].kind == "input"
        }
        self._aligned = [
            (position, position in shown)
            for buffer, position in self._input_buffers
            if buffer in self._read
        ]
        self._recordings = Recordings(self, device) if record else None

    def __call__(self, inputs: Sequence[Any], times: Any = None) -> list[Any]:
        """The outputs; the work may still be under way on the stream."""
        with self.device.current():
            if self._recordings is not None:
                return self._recordings.call(inputs)
            return self.run_once(inputs)

    def run_once(self, inputs: Sequence[Any]) -> list[Any]:
        """A call without any recording."""
        return super().__call__(inputs)

    def _laid_out(self, context: Context, inputs: Sequence[Any]) -> Sequence[Any]:
        laid_out = super()._laid_out(context, inputs)
        for position, shown in self._aligned:
            x = laid_out[position]
            if x.data_ptr() % ALIGNMENT:
                if shown:
                    self._refuse(position)
                if laid_out is inputs:
                    laid_out = list(inputs)
                laid_out[position] = x.clone(memory_format=torch.preserve_format)  # type: ignore[index]
        return laid_out

    def _set_weights(self, context: Context, weights: Any) -> None:
        assert self._weights is not None
        if weights is not self._checked_weights:
            for position, address in zip(self._weights.positions, weights[1], strict=False):
                if address % ALIGNMENT:
                    self._refuse(position)
            self._checked_weights = weights
        super()._set_weights(context, weights)

    def _refuse(self, position: int) -> None:
        raise InputUnaligned(
            f"input {position} ({self.plan.inputs[position].name}): expected memory that begins at "
            f"a multiple of {ALIGNMENT} bytes, found a view that does not and cannot be copied"
        )

    def profile(self, inputs: Sequence[Any]) -> list[tuple[str, int]]:
        """Run once; (kernel, nanoseconds) of every launch, each waited for: for comparing kernels,
        their sum is more than a call takes."""
        assert self.launches is not None
        self.launches.times = []
        try:
            with self.device.current():
                self.run_once(inputs)
            return self.launches.times
        finally:
            self.launches.times = None


def _placed(x: torch.Tensor, where: torch.device) -> torch.Tensor:
    """A constant on the device, in its strides, in memory that begins as kernels expect."""
    if x.device == where and x.data_ptr() % ALIGNMENT == 0:
        return x
    made = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=where)
    return made.copy_(x)
