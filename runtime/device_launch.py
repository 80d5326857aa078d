"""Runs of consecutive launches: encoded once, handed to the driver by one native call."""

from __future__ import annotations

import ctypes
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass

from infopt.runtime.call import Call
from infopt.runtime.context import Context
from infopt.runtime.device import Device
from infopt.runtime.errors import LaunchFailed, LibraryError
from infopt.runtime.plan import LaunchStep, Plan
from infopt.runtime.plan_parts import ARGUMENT_KINDS

LAUNCHER = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, *[ctypes.c_uint] * 7, *[ctypes.c_void_p] * 3
)
NOT_LAUNCHED = 1 << 20  # as in csrc/launch.h
GRID_LIMITS = (2**31 - 1, 65535, 65535)


class Launches:
    """The launches of one plan on one device; `run` starts some consecutive ones.

    Raises LibraryError where a kernel's code is not there or not for this device.
    """

    def __init__(
        self,
        plan: Plan,
        device: Device,
        code: Mapping[str, bytes],
        executor: ctypes.CDLL | None,
    ) -> None:
        self.plan, self.device = plan, device
        self.times: list[tuple[str, int]] | None = None  # a list gets each launch's nanoseconds
        self.steps = [s for s in plan.steps if isinstance(s, LaunchStep)]
        loaded = []
        for kernel in plan.kernels:
            if kernel.library not in code:
                raise LibraryError(f"kernel {kernel.entry!r} needs {kernel.library!r}: not given")
            loaded.append(device.load(kernel, code[kernel.library]))
        self.functions = (ctypes.c_void_p * max(1, len(loaded)))(*loaded)
        self._native = getattr(executor, "infopt_context_launch", None)
        self._call = LAUNCHER(device.launcher)
        words: list[int] = []
        starts = []
        for step in self.steps:
            starts.append(len(words))
            words += self._encoded(step)
        self._words = (ctypes.c_int64 * max(1, len(words)))(*words)
        base = ctypes.addressof(self._words)
        self._starts = [base + 8 * start for start in starts]

    def _encoded(self, step: LaunchStep) -> list[int]:
        """The words of csrc/launch.h."""
        kernel = self.plan.kernels[step.device_kernel]
        words = [step.device_kernel, kernel.threads, kernel.shared, *step.grid, kernel.absent]
        words.append(len(step.arguments))
        for kind, (buffer, slot) in zip(kernel.arguments, step.arguments, strict=True):
            words += (ARGUMENT_KINDS.index(kind), buffer, slot)
        return words

    def run(self, context: Context, first: int, last: int) -> None:
        """Start launches [first, last) on torch's current stream. Raises LaunchFailed."""
        if self.times is not None:
            self._timed(context, first, last)
            return
        self._start(context, first, last)

    def _timed(self, context: Context, first: int, last: int) -> None:
        assert self.times is not None
        for number in range(first, last):
            self.device.synchronize()
            begin = time.perf_counter_ns()
            self._start(context, number, number + 1)
            self.device.synchronize()
            entry = self.plan.kernels[self.steps[number].device_kernel].entry
            self.times.append((entry, time.perf_counter_ns() - begin))

    def _start(self, context: Context, first: int, last: int) -> None:
        stream = self.device.stream()
        if self._native is not None and context.native is not None:
            failed = self._native(
                context.handle,
                self._starts[first],
                last - first,
                context.address,
                self.functions,
                self.device.launcher,
                stream,
            )
            if failed:
                self._fail(first + (failed >> 32), failed & 0xFFFFFFFF, context)
            return
        for number in range(first, last):
            status = self._one(self.steps[number], context, stream)
            if status:
                self._fail(number, status, context)

    def _one(self, step: LaunchStep, context: Context, stream: int) -> int:
        """One launch without the native executor."""
        kernel, slots = self.plan.kernels[step.device_kernel], context.slots
        grid = [slots[g] for g in step.grid]
        if min(grid) <= 0:
            return 0
        if any(g > most for g, most in zip(grid, GRID_LIMITS, strict=True)):
            return NOT_LAUNCHED
        values: list[ctypes._SimpleCData] = []
        for kind, (buffer, slot) in zip(kernel.arguments, step.arguments, strict=True):
            value = slots[slot]
            if kind == "pointer":
                values.append(ctypes.c_uint64(self._base(context, buffer) + value))
            elif kind == "fp32":
                values.append(ctypes.c_float(struct.unpack("<d", struct.pack("<q", value))[0]))
            elif kind == "i32" and not -(2**31) <= value < 2**31:
                return NOT_LAUNCHED
            else:
                values.append(ctypes.c_int64(value))
        values += [ctypes.c_uint64(0)] * kernel.absent
        parameters = (ctypes.c_void_p * len(values))(*[ctypes.addressof(v) for v in values])
        function = self.functions[step.device_kernel]
        size = (kernel.threads, 1, 1, kernel.shared)
        return self._call(function, *grid, *size, stream, ctypes.addressof(parameters), None)

    def _base(self, context: Context, buffer: int) -> int:
        """Where a buffer begins."""
        in_arena = self.plan.buffers[buffer].kind == "arena" and context.native is not None
        if not in_arena:
            return context.bases[buffer]
        return context.bases[len(self.plan.buffers)] + context.starts[buffer]

    def _fail(self, number: int, status: int, context: Context) -> None:
        step = self.steps[number]
        kernel = self.plan.kernels[step.device_kernel]
        grid = tuple(context.slots[g] for g in step.grid)
        if status == NOT_LAUNCHED:
            why = "a size is beyond what a launch can take"
        else:
            why = self.device.explain(status)
        raise LaunchFailed(
            f"{kernel.entry} over {grid} blocks of {kernel.threads} threads, {kernel.shared} bytes "
            f"shared, on {self.device.where}: {why}"
        )


@dataclass
class LaunchSegment:
    """Launches [first, last) as a function of the call, as executor.py's segments are."""

    launches: Launches
    first: int
    last: int

    def __call__(self, call: Call) -> None:
        self.launches.run(call.context, self.first, self.last)
