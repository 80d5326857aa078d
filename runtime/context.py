"""What one call in flight needs for given sizes: evaluated slots, placed buffers, output shapes."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

import torch

from infopt.runtime.door import check_sizes, mismatch, read_dims, strides_fit
from infopt.runtime.errors import LibraryError, SizeError
from infopt.runtime.expression import evaluate, failure
from infopt.runtime.lifetime import native_words
from infopt.runtime.native import kernel_address
from infopt.runtime.plan import OutputTensor, Plan
from infopt.runtime.plan_check import dtype_of

SizesAndStrides = tuple[tuple[int, ...], tuple[int, ...]]


class NativeProgram:
    """The plan inside the executor library; freed with this object."""

    def __init__(self, plan: Plan, executor: ctypes.CDLL, libraries: dict[str, ctypes.CDLL]):
        self.executor = executor
        words, kernels = native_words(plan)
        addresses = [kernel_address(libraries, *kernel) for kernel in kernels]
        self.handle = executor.infopt_program_new(
            (ctypes.c_int64 * len(words))(*words), (ctypes.c_void_p * len(addresses))(*addresses)
        )
        if not self.handle:
            raise LibraryError("the native executor could not take the plan: out of memory")
        weakref.finalize(self, executor.infopt_program_free, self.handle).atexit = False


class Context:
    """Belongs to one call at a time. `key` says for which input sizes and strides it is set."""

    def __init__(self, plan: Plan, native: NativeProgram | None, threads: int) -> None:
        self.plan, self.native = plan, native
        self.key: Any = None
        self.dims: list[int] | None = None
        self.weights: Any = None  # the addresses last written into `bases`
        self.slots: Any = []
        self.starts: Any = None
        self.arena_bytes = 0
        self.has_arena = any(b.kind == "arena" for b in plan.buffers)
        self.arena: int | None = None  # the address last written into `bases`
        self.copies: list[tuple[int, SizesAndStrides]] = []
        self.fresh: list[tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype]] = []
        self.whole: set[int] = set()  # views that are exactly a fresh tensor
        self.bases = (ctypes.c_uint64 * (len(plan.buffers) + 1))()
        self.address = ctypes.addressof(self.bases)
        if native is not None:
            executor = native.executor
            self.handle = executor.infopt_context_new(native.handle, threads)
            self.slots = executor.infopt_context_slots(self.handle)
            self.starts = executor.infopt_context_starts(self.handle)
            weakref.finalize(self, executor.infopt_context_free, self.handle).atexit = False

    def admit(self, key: Any, inputs: Sequence[Any]) -> None:
        """Set the context for these inputs. Raises InputMismatch or SizeError."""
        self.key = None
        dims = read_dims(self.plan, inputs)
        if dims != self.dims:
            self.resize(dims)
        check_sizes(self.plan, inputs, self.slots)
        self.copies = self._copies(inputs)
        self.key = key

    def resize(self, dims: list[int]) -> None:
        """Evaluate all sizes for `dims` and place the arena. Raises SizeError."""
        self.dims = None
        plan = self.plan
        if self.native is None:
            self.slots = evaluate(plan.expressions, dims)
        else:
            words = (ctypes.c_int64 * max(1, len(dims)))(*dims)
            size = self.native.executor.infopt_context_resize(self.handle, words)
            if size < 0:
                raise SizeError(failure(plan.expressions[-1 - size], dims))
            self.arena_bytes = max(size, 64 * self.has_arena)  # views of no bytes need a place
        self._shape_outputs()
        self.dims = dims

    def sizes(self, view: int) -> SizesAndStrides:
        """Shape and strides of a view."""
        spec, slots = self.plan.views[view], self.slots
        return tuple([slots[s] for s in spec.shape]), tuple([slots[s] for s in spec.strides])

    def _shape_outputs(self) -> None:
        """How to allocate each output buffer: as the tensor handed out where it is the whole."""
        plan, slots = self.plan, self.slots
        self.whole = set()
        fresh: dict[int, tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype]] = {}
        for out in plan.outputs:
            if not isinstance(out, OutputTensor):
                continue
            view = plan.views[out.view]
            buffer = plan.buffers[view.buffer]
            if buffer.kind != "output" or slots[view.offset] != 0:
                continue
            shape, strides = self.sizes(out.view)
            dtype = dtype_of(view.dtype, "views")
            if extent(shape, strides) * dtype.itemsize < slots[buffer.bytes]:
                continue
            made = (view.buffer, shape, strides, dtype)
            if fresh.setdefault(view.buffer, made) == made:
                self.whole.add(out.view)
        for i, buffer in enumerate(plan.buffers):
            own = buffer.kind == "output" or (buffer.kind == "arena" and self.native is None)
            if own and i not in fresh:
                fresh[i] = (i, (slots[buffer.bytes],), (1,), torch.uint8)
        self.fresh = list(fresh.values())

    def _copies(self, inputs: Sequence[Any]) -> list[tuple[int, SizesAndStrides]]:
        """The inputs that lie in memory otherwise than expected, and how they should lie."""
        plan, slots = self.plan, self.slots
        copies = []
        for i, spec in enumerate(plan.inputs):
            if spec.kind != "tensor" or spec.strides is None:
                continue
            strides = tuple([slots[s] for s in spec.strides])
            if strides_fit(inputs[i], strides):
                continue
            if any(
                isinstance(o, OutputTensor)
                and plan.buffers[plan.views[o.view].buffer].kind == "input"
                and plan.buffers[plan.views[o.view].buffer].index == i
                for o in plan.outputs
            ):
                raise mismatch(
                    spec, i, f"strides {strides} (an output is a view of it)", inputs[i].stride()
                )
            copies.append((i, (tuple(inputs[i].shape), strides)))
        return copies


def extent(shape: Sequence[int], strides: Sequence[int]) -> int:
    """How many elements from the first to the last one a tensor spans."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
