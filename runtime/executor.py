"""Runs a plan: checks the inputs, allocates the outputs, makes one native call per run of steps."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch

from infopt.runtime import aten
from infopt.runtime.arena import allocate
from infopt.runtime.call import Call
from infopt.runtime.context import Context, NativeProgram, extent
from infopt.runtime.device_launch import Launches, LaunchSegment
from infopt.runtime.door import CPU, Weights, counting_door, scalar_door, tensor_door
from infopt.runtime.errors import (
    InputMismatch,
    InputOverlap,
    KernelError,
    KernelIndexError,
    KernelValueError,
    PlanError,
)
from infopt.runtime.forked import ForkSafeLock, thread_count, torch_threads
from infopt.runtime.lifetime import step_buffers
from infopt.runtime.native import load_executor
from infopt.runtime.plan import (
    AtenStep,
    LaunchStep,
    Mutation,
    NativeStep,
    Output,
    OutputConst,
    OutputInput,
    OutputInt,
    OutputTensor,
    Plan,
)

CONTEXTS = 16  # sizes kept ready; a call with others takes over the oldest idle ones
_ERRORS = {"IndexError: ": KernelIndexError, "ValueError: ": KernelValueError}
_empty_cpu = getattr(torch._C._dynamo.guards, "_empty_strided_cpu", None)


class Program:
    """A plan bound to its constants and kernels; call it with the list of inputs.

    constants: the tensors that the plan's "const" buffers name by index. libraries: by the name
    that native steps use. threads: at most so many, None: as torch has when the program is made.
    where, launches: the device of all tensors, and its kernels (device_program.py).
    Several Python threads may call at once; only one of them gets the pool's threads. Raises
    PlanError, LibraryError; a call raises InputMismatch, SizeError, KernelError.
    """

    def __init__(
        self,
        plan: Plan,
        constants: Sequence[torch.Tensor] = (),
        libraries: Mapping[str, ctypes.CDLL] | None = None,
        threads: int | None = None,
        *,
        allow_ops: Collection[str] = (),
        executor: ctypes.CDLL | None = None,
        where: torch.device = CPU,
        launches: Launches | None = None,
    ) -> None:
        self.plan, self.where, self.launches = plan, where, launches
        self.constants = list(constants)
        self.threads = max(1, min(256, threads or thread_count()))
        self._check_constants()
        self._native_steps = [s for s in plan.steps if isinstance(s, NativeStep)]
        self._native: NativeProgram | None = None
        if self._native_steps:
            executor = executor or load_executor()
        if executor is not None:
            self._native = NativeProgram(plan, executor, dict(libraries or {}))
            self._execute = executor.infopt_context_run
        self._empty = _empty_cpu if where is CPU and _empty_cpu else self._empty_strided
        self._doors = [
            (i, tensor_door(spec, i, where) if spec.kind == "tensor" else scalar_door(spec, i))
            for i, spec in enumerate(plan.inputs)
            if spec.kind in ("tensor", "int", "float", "bool")
        ]
        counted = {dim.input for dim in plan.dims if dim.counted}
        self._doors = [(i, counting_door(d) if i in counted else d) for i, d in self._doors]
        has_weights = any(spec.kind == "weight" for spec in plan.inputs)
        self._weights = Weights(plan, where) if has_weights else None
        self._input_buffers = [
            (i, b.index)
            for i, b in enumerate(plan.buffers)
            if b.kind == "input" and plan.inputs[b.index].kind == "tensor"
        ]
        self._segments = self._cut(allow_ops)
        self._outputs = [self._output(out) for out in plan.outputs]
        self._in_place = frozenset(m for m in plan.mutations if in_place(plan, m))
        self._quick = (
            len(self._in_place) == len(plan.mutations)
            and all(isinstance(segment, tuple) for segment in self._segments)
            and all(self._is_plain(out) for out in plan.outputs)
        )
        self._free: dict[Any, list[Context]] = {}
        self._made = 0
        self._lock = ForkSafeLock()
        self._arenas: list[tuple[int, int, torch.Tensor]] = []  # (bytes, address, memory)

    def __call__(self, inputs: Sequence[Any], times: Any = None) -> list[Any]:
        """The outputs. times: an int64 array that gets the nanoseconds of each native step."""
        if len(inputs) != len(self.plan.inputs):
            raise InputMismatch(f"expected {len(self.plan.inputs)} inputs, found {len(inputs)}")
        key = tuple([door(inputs[i]) for i, door in self._doors])
        weights = None if self._weights is None else self._weights.look(inputs)
        try:
            context = self._free[key].pop()
        except (KeyError, IndexError):
            context = self._admit(key, inputs)
        try:
            if weights is not context.weights:
                self._set_weights(context, weights)
            if self._quick and not context.copies:
                return self._run(context, inputs, inputs, times)
            with torch_threads(), aten.plain_torch():
                return self._run_with_torch(context, inputs, times)
        finally:
            self._free.setdefault(key, []).append(context)

    def arena_bytes(self, dims: Sequence[int]) -> int:
        """Bytes of scratch memory one call needs for the given dim values."""
        context = Context(self.plan, self._native, self.threads)
        context.resize(list(dims))
        return context.arena_bytes

    def profile(self, inputs: Sequence[Any]) -> list[tuple[str, int]]:
        """Run once; (kernel, nanoseconds) of every native step."""
        times = (ctypes.c_int64 * len(self._native_steps))()
        self(inputs, ctypes.addressof(times))
        return [(step.kernel, time) for step, time in zip(self._native_steps, times, strict=True)]

    def _run(
        self, context: Context, inputs: Sequence[Any], originals: Sequence[Any], times: Any
    ) -> list[Any]:
        call = Call(self.plan, context, inputs, self.constants, self.where)
        bases = context.bases
        for buffer, position in self._input_buffers:
            bases[buffer] = inputs[position].data_ptr()
        tensors = call.tensors
        for buffer, shape, strides, dtype in context.fresh:
            tensors[buffer] = tensor = self._empty(shape, strides, dtype)
            bases[buffer] = tensor.data_ptr()
        arena = self._take_arena(context) if context.arena_bytes else None
        try:
            if arena is not None:
                call.arena = arena[2]
                if arena[1] != context.arena:
                    bases[len(bases) - 1] = context.arena = arena[1]
            for segment in self._segments:
                if type(segment) is tuple:
                    failed = self._execute(context.handle, *segment, context.address, times)
                    if failed:
                        raise self._kernel_error(failed - 1)
                else:
                    segment(call)
            for mutation in self.plan.mutations:
                if inputs is not originals or mutation not in self._in_place:
                    originals[mutation.input].copy_(call.view(mutation.view))
        finally:
            if arena is not None and self.where is CPU:  # else the next call may be on any stream
                self._arenas.append(arena)
        return [output(call, originals) for output in self._outputs]

    def _run_with_torch(self, context: Context, inputs: Sequence[Any], times: Any) -> list[Any]:
        if self.plan.mutations:
            self._check_overlap(inputs)
        return self._run(context, self._laid_out(context, inputs), inputs, times)

    def _laid_out(self, context: Context, inputs: Sequence[Any]) -> Sequence[Any]:
        """The inputs, those that lie otherwise than the plan expects copied."""
        if not context.copies:
            return inputs
        laid_out = list(inputs)
        for i, (shape, strides) in context.copies:
            laid_out[i] = self._empty(shape, strides, inputs[i].dtype).copy_(inputs[i])
        return laid_out

    def _admit(self, key: Any, inputs: Sequence[Any]) -> Context:
        """A context set for these inputs: an idle one of other sizes, or a new one."""
        context = None
        with self._lock:
            if self._made >= CONTEXTS:
                for old in list(self._free):
                    idle = self._free.get(old)
                    if idle:
                        context = idle.pop()
                        break
                    del self._free[old]
            if context is None:
                self._made += 1
        try:
            if context is None:
                context = self._new_context()
            context.admit(key, inputs)
        except BaseException:
            with self._lock:
                self._made -= 1  # the context is dropped
            raise
        return context

    def _new_context(self) -> Context:
        context = Context(self.plan, self._native, self.threads)
        for i, buffer in enumerate(self.plan.buffers):
            if buffer.kind == "const":
                context.bases[i] = self.constants[buffer.index].data_ptr()
        return context

    def _set_weights(self, context: Context, weights: Any) -> None:
        assert self._weights is not None
        addresses = dict(zip(self._weights.positions, weights[1], strict=False))
        for i, buffer in enumerate(self.plan.buffers):
            if buffer.kind == "input" and buffer.index in addresses:
                context.bases[i] = addresses[buffer.index]
        context.weights = weights

    def _take_arena(self, context: Context) -> tuple[int, int, torch.Tensor]:
        """Memory large enough for the call, 64-byte aligned; a smaller one is given back."""
        size = context.arena_bytes
        try:
            arena = self._arenas.pop()
            if arena[0] >= size:
                return arena
            del arena
        except IndexError:
            pass
        memory = allocate(size, self.where)
        return size, memory.data_ptr(), memory

    def _cut(self, allow_ops: Collection[str]) -> list[Any]:
        """The steps as (first, last) of consecutive native ones, and functions of the call."""
        plan, native = self.plan, 0
        segments: list[Any] = []
        last_use = {
            b: i for i, step in enumerate(plan.steps) for b in step_buffers(plan.views, step)
        }
        kept = {plan.views[o.view].buffer for o in plan.outputs if isinstance(o, OutputTensor)}
        kept |= {plan.views[m.view].buffer for m in plan.mutations}
        for i, step in enumerate(plan.steps):
            if isinstance(step, AtenStep):
                segments.append(aten.bind(step, allow_ops, self.where is CPU))
            elif isinstance(step, LaunchStep):
                self._add_launch(segments)
            elif segments and isinstance(segments[-1], tuple):
                segments[-1] = (segments[-1][0], native := native + 1)
            else:
                segments.append((native, native := native + 1))
            drops = [
                b
                for b, last in last_use.items()
                if last == i and plan.buffers[b].kind == "torch" and b not in kept
            ]
            if drops:
                segments.append(_dropper(drops))
        return segments

    def _add_launch(self, segments: list[Any]) -> None:
        """One more launch: part of the segment before it, or of a new one."""
        if self.launches is None:
            raise PlanError("the plan launches kernels of a GPU, and is given none")
        before = [s for s in segments if isinstance(s, LaunchSegment)]
        first = before[-1].last if before else 0
        if segments and isinstance(segments[-1], LaunchSegment):
            segments[-1].last += 1
        else:
            segments.append(LaunchSegment(self.launches, first, first + 1))

    def _output(self, out: Output) -> Callable[[Call, Sequence[Any]], Any]:
        if isinstance(out, OutputTensor):
            view, buffer = out.view, self.plan.views[out.view].buffer
            return lambda call, originals: (
                call.tensors[buffer] if view in call.context.whole else call.view(view)
            )
        if isinstance(out, OutputInput):
            position = out.input
            return lambda call, originals: originals[position]
        if isinstance(out, OutputInt):
            slot = out.slot
            return lambda call, originals: call.slots[slot]
        value = out.value if isinstance(out, OutputConst) else None
        return lambda call, originals: value

    def _is_plain(self, out: Output) -> bool:
        """Whether handing `out` over involves no torch view of memory that has a gradient."""
        if not isinstance(out, OutputTensor):
            return True
        return self.plan.buffers[self.plan.views[out.view].buffer].kind == "output"

    def _kernel_error(self, step: int) -> KernelError:
        message = self._native_steps[step].error or ""
        for prefix, kind in _ERRORS.items():
            if message.startswith(prefix):
                return kind(message.removeprefix(prefix))
        return KernelError(message)

    def _check_constants(self) -> None:
        if len(self.constants) != self.plan.constants:
            raise PlanError(
                f"the plan has {self.plan.constants} constants, found {len(self.constants)}"
            )
        for i, x in enumerate(self.constants):
            if x.device != self.where or x.layout is not torch.strided:
                raise PlanError(
                    f"constant {i}: expected a plain {self.where} tensor, "
                    f"found {x.layout} on {x.device}"
                )

    def _empty_strided(
        self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype
    ) -> torch.Tensor:
        return torch.empty_strided(shape, strides, dtype=dtype, device=self.where)

    def _check_overlap(self, inputs: Sequence[Any]) -> None:
        """A plan that writes an input was made for inputs that do not share memory."""
        spans = {i: span(x) for i, x in enumerate(inputs) if isinstance(x, torch.Tensor)}
        for mutation in self.plan.mutations:
            first, last = spans[mutation.input]
            for i, (a, b) in spans.items():
                if i != mutation.input and a < last and first < b:
                    names = self.plan.inputs
                    raise InputOverlap(
                        f"input {mutation.input} ({names[mutation.input].name}) is written and "
                        f"expected to lie apart, but shares memory with {i} ({names[i].name})"
                    )


def in_place(plan: Plan, mutation: Mutation) -> bool:
    """Whether a step has written the input where it lies: nothing is left to copy."""
    view, spec = plan.views[mutation.view], plan.inputs[mutation.input]
    buffer = plan.buffers[view.buffer]
    whole = view.shape == spec.shape and view.strides == spec.strides
    return (
        buffer.kind == "input"
        and buffer.index == mutation.input
        and whole
        and plan.expressions[view.offset] == (0,)
    )


def span(x: torch.Tensor) -> tuple[int, int]:
    """The addresses a tensor occupies, the end excluded."""
    first = x.data_ptr()
    return first, first + extent(x.shape, x.stride()) * x.itemsize


def _dropper(buffers: list[int]) -> Callable[[Call], None]:
    def drop(call: Call) -> None:
        for buffer in buffers:
            call.tensors.pop(buffer, None)

    return drop
