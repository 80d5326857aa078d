"""One call in flight: its inputs, its tensors, and the views that torch ops and outputs need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from infopt.runtime.context import Context, extent
from infopt.runtime.door import strides_fit
from infopt.runtime.errors import PlanError
from infopt.runtime.plan import Plan
from infopt.runtime.plan_check import dtype_of


class Call:
    """Lives as long as one call of a program."""

    __slots__ = ("arena", "constants", "context", "inputs", "plan", "slots", "tensors", "where")

    def __init__(
        self,
        plan: Plan,
        context: Context,
        inputs: Sequence[Any],
        constants: Sequence[torch.Tensor],
        where: torch.device,
    ) -> None:
        self.plan, self.context, self.where = plan, context, where
        self.inputs = inputs  # copies where strides were not as expected
        self.constants = constants
        self.slots = context.slots
        self.tensors: dict[int, torch.Tensor] = {}  # by buffer: outputs and results of torch ops
        self.arena: torch.Tensor | None = None

    def view(self, index: int) -> torch.Tensor:
        """The tensor that a view describes."""
        view = self.plan.views[index]
        buffer = self.plan.buffers[view.buffer]
        offset = self.slots[view.offset]
        if view.buffer in self.tensors:
            base = self.tensors[view.buffer]
        elif buffer.kind == "const":
            base = self.constants[buffer.index]
        elif buffer.kind == "input":
            base = self.inputs[buffer.index]
            if self.plan.inputs[buffer.index].strides is None:
                return base
        elif buffer.kind == "arena" and self.arena is not None:
            base = self.arena
            offset += self.context.starts[view.buffer]
        else:
            raise PlanError(f"views[{index}] is read before its buffer {view.buffer} was made")
        shape, strides = self.context.sizes(index)
        return reinterpret(base, offset, shape, strides, dtype_of(view.dtype, "views"), index)

    def bind(self, index: int, tensor: Any) -> None:
        """The result of a torch op becomes the content of a view, in the view's strides."""
        view = self.plan.views[index]
        shape, strides = self.context.sizes(index)
        dtype = dtype_of(view.dtype, "views")
        if not isinstance(tensor, torch.Tensor):
            raise PlanError(f"views[{index}]: expected a tensor, found {type(tensor).__name__}")
        if tuple(tensor.shape) != shape or tensor.dtype is not dtype:
            raise PlanError(
                f"views[{index}]: expected {dtype} {shape} from the torch op, "
                f"found {tensor.dtype} {tuple(tensor.shape)}"
            )
        if self.plan.buffers[view.buffer].kind != "torch" or self.slots[view.offset] != 0:
            self.view(index).copy_(tensor)
            return
        if not strides_fit(tensor, strides) or self._is_borrowed(tensor):
            tensor = _copied(tensor, strides)
        self.tensors[view.buffer] = tensor
        self.context.bases[view.buffer] = tensor.data_ptr()

    def _is_borrowed(self, tensor: torch.Tensor) -> bool:
        """Lazily conjugated or negated, or a view of the arena, whose memory is used again."""
        if tensor.is_neg() or tensor.is_conj():
            return True
        if self.arena is None:
            return False
        arena = self.arena.untyped_storage().data_ptr()
        return tensor.untyped_storage().data_ptr() == arena


def _copied(tensor: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
    """A copy in these strides; along an expanded dimension one element serves all."""
    made = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device)
    target = made
    for dim, stride in enumerate(strides):
        if stride == 0 and tensor.shape[dim] > 1:
            target, tensor = target.narrow(dim, 0, 1), tensor.narrow(dim, 0, 1)
    target.copy_(tensor)
    return made


def reinterpret(
    base: torch.Tensor,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: torch.dtype,
    index: int,
) -> torch.Tensor:
    """The memory of `base`, `offset` bytes further, as another tensor. Raises PlanError."""
    same = base.dtype is dtype
    if same and offset == 0 and base.shape == shape and base.stride() == strides:
        return base
    elements = extent(shape, strides)
    if not elements:
        offset = 0  # nothing is read: where it would begin may lie beyond the end
    first = base.storage_offset() * base.itemsize + offset
    storage = base.untyped_storage()
    last = first + elements * dtype.itemsize
    if first < 0 or first % dtype.itemsize or last > storage.nbytes():
        raise PlanError(
            f"views[{index}]: bytes {first} to {last} of {dtype} do not fit "
            f"a storage of {storage.nbytes()} bytes"
        )
    if same:
        return torch.as_strided(base, shape, strides, first // dtype.itemsize)
    return torch.empty(0, dtype=dtype, device=base.device).set_(
        storage, first // dtype.itemsize, shape, strides
    )
