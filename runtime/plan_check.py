"""Checks that a plan refers only to what it holds. Nothing of a plan runs before this passed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from infopt.runtime import plan_parts as parts
from infopt.runtime.errors import PlanError

if TYPE_CHECKING:
    from infopt.runtime.plan import Plan

OPERATORS = ("+", "-", "*", "//", "%", "max", "min", "==", "!=", "<", "<=", ">", ">=")
TEMPLATE_KEYS = (
    "tensor",
    "size",
    "input",
    "dtype",
    "device",
    "memory_format",
    "layout",
    "float",
    "complex",
)
_DTYPES = {str(v): v for v in vars(torch).values() if isinstance(v, torch.dtype)}
_DEPTH = 64


def dtype_of(name: str, place: str) -> torch.dtype:
    """torch.float32 for "torch.float32". Raises PlanError."""
    if name not in _DTYPES:
        raise PlanError(f"{place}: expected a torch dtype such as 'torch.float32', found {name!r}")
    return _DTYPES[name]


def check_plan(plan: Plan) -> None:
    """Raises PlanError naming the first part that is malformed."""
    for i, expression in enumerate(plan.expressions):
        _check_expression(expression, i, len(plan.dims))
    _check_doors(plan)
    _check_buffers(plan)
    _check_kernels(plan)
    for i, step in enumerate(plan.steps):
        _check_step(plan, step, f"steps[{i}]")
    _check_ends(plan)


def _check_expression(tokens: tuple[int | str, ...], slot: int, dims: int) -> None:
    place, depth = f"expressions[{slot}]", 0
    for token in tokens:
        if type(token) is int:
            if not -(2**63) <= token < 2**63:
                raise PlanError(f"{place}: {token} does not fit 64 bits")
            depth += 1
        elif token in OPERATORS:
            if depth < 2:
                raise PlanError(f"{place}: {token!r} expected two values, found {depth}")
            depth -= 1
        elif isinstance(token, str) and token[1:].isdecimal() and token[0] in "ds":
            limit = dims if token[0] == "d" else slot
            if int(token[1:]) >= limit:
                what = "dims" if token[0] == "d" else "earlier slots"
                raise PlanError(f"{place}: {token!r}, but there are {limit} {what}")
            depth += 1
        else:
            raise PlanError(
                f"{place}: expected an int, d<i>, s<j> or one of {OPERATORS}, found {token!r}"
            )
        if depth > _DEPTH:
            raise PlanError(f"{place}: expected at most {_DEPTH} values at once")
    if depth != 1:
        raise PlanError(f"{place}: expected one value at the end, found {depth}")


def _index(value: Any, limit: int, place: str, what: str) -> None:
    if type(value) is not int or not 0 <= value < limit:
        raise PlanError(f"{place}: expected an index into {limit} {what}, found {value!r}")


def _slots(plan: Plan, slots: tuple[int, ...], place: str) -> None:
    for slot in slots:
        _index(slot, len(plan.expressions), place, "expressions")


def _check_doors(plan: Plan) -> None:
    for i, spec in enumerate(plan.inputs):
        place = f"inputs[{i}]"
        if spec.kind not in parts.INPUT_KINDS:
            raise PlanError(
                f"{place}.kind: expected one of {parts.INPUT_KINDS}, found {spec.kind!r}"
            )
        if spec.kind in ("tensor", "weight"):
            dtype_of(str(spec.dtype), f"{place}.dtype")
        _slots(plan, spec.shape, f"{place}.shape")
        _slots(plan, spec.strides or (), f"{place}.strides")
        if spec.strides is not None and len(spec.strides) != len(spec.shape):
            raise PlanError(f"{place}: {len(spec.shape)} sizes but {len(spec.strides)} strides")
        slots = (*spec.shape, *(spec.strides or ()))
        if spec.kind == "weight" and any(
            type(t) is not int for slot in slots for t in plan.expressions[slot]
        ):
            raise PlanError(f"{place}: a weight's sizes and strides must be constants")
    for i, dim in enumerate(plan.dims):
        place = f"dims[{i}] ({dim.name})"
        _index(dim.input, len(plan.inputs), f"{place}.input", "inputs")
        spec = plan.inputs[dim.input]
        if dim.counted:
            if spec.kind != "tensor" or dim.axis is not None:
                raise PlanError(f"{place}: expected a tensor input to count, found {spec.kind}")
        elif dim.axis is None and spec.kind not in ("int", "float", "bool"):
            raise PlanError(f"{place}: without axis expected a scalar input, found {spec.kind}")
        if dim.axis is not None:
            if spec.kind != "tensor":
                raise PlanError(f"{place}: expected a tensor input, found {spec.kind}")
            _index(dim.axis, len(spec.shape), f"{place}.axis", "axes")
    for i, guard in enumerate(plan.guards):
        _slots(plan, (guard.slot,), f"guards[{i}]")


def _check_buffers(plan: Plan) -> None:
    for i, buffer in enumerate(plan.buffers):
        place = f"buffers[{i}]"
        if buffer.kind not in parts.BUFFER_KINDS:
            raise PlanError(
                f"{place}.kind: expected one of {parts.BUFFER_KINDS}, found {buffer.kind!r}"
            )
        _slots(plan, (buffer.bytes,), f"{place}.bytes")
        if buffer.kind == "input":
            _index(buffer.index, len(plan.inputs), f"{place}.index", "inputs")
            if plan.inputs[buffer.index].kind not in ("tensor", "weight"):
                raise PlanError(f"{place}: input {buffer.index} is not a tensor")
        elif buffer.kind == "const" and buffer.index < 0:
            raise PlanError(f"{place}.index: expected 0 or more, found {buffer.index}")
    for i, view in enumerate(plan.views):
        place = f"views[{i}]"
        _index(view.buffer, len(plan.buffers), f"{place}.buffer", "buffers")
        _slots(plan, (view.offset, *view.shape, *view.strides), place)
        dtype_of(view.dtype, f"{place}.dtype")
        if len(view.shape) != len(view.strides):
            raise PlanError(f"{place}: {len(view.shape)} sizes but {len(view.strides)} strides")


def _check_step(plan: Plan, step: Any, place: str) -> None:
    if isinstance(step, parts.AtenStep):
        namespace, _, rest = step.op.partition(".")
        if not namespace or rest.count(".") != 1:
            raise PlanError(f"{place}.op: expected namespace.op.overload, found {step.op!r}")
        for value in (step.args, *step.kwargs.values()):
            _check_template(plan, value, f"{place} ({step.op})")
        for view in step.outputs:
            if view is not None:
                _index(view, len(plan.views), f"{place}.outputs", "views")
        return
    if isinstance(step, parts.LaunchStep):
        _check_launch(plan, step, place)
        return
    place = f"{place} ({step.kernel})"
    for buffer, offset in step.pointers:
        if buffer != -1:
            _index(buffer, len(plan.buffers), f"{place}.pointers", "buffers")
            _check_readable(plan, plan.buffers[buffer], place)
        _slots(plan, (offset,), f"{place}.pointers")
    _slots(plan, (*step.numbers, step.tasks), place)
    if step.scratch is not None:
        _slots(plan, (step.scratch,), f"{place}.scratch")


def _check_launch(plan: Plan, step: parts.LaunchStep, place: str) -> None:
    _index(step.device_kernel, len(plan.kernels), f"{place}.device_kernel", "kernels")
    kernel = plan.kernels[step.device_kernel]
    place = f"{place} ({kernel.entry})"
    if len(step.arguments) != len(kernel.arguments):
        raise PlanError(
            f"{place}: expected {len(kernel.arguments)} arguments, found {len(step.arguments)}"
        )
    for kind, (buffer, slot) in zip(kernel.arguments, step.arguments, strict=True):
        if (kind == "pointer") != (buffer != -1):
            raise PlanError(f"{place}: expected {kind}, found buffer {buffer}")
        if buffer != -1:
            _index(buffer, len(plan.buffers), f"{place}.arguments", "buffers")
            _check_readable(plan, plan.buffers[buffer], place)
        _slots(plan, (slot,), f"{place}.arguments")
    _slots(plan, step.grid, f"{place}.grid")


def _check_kernels(plan: Plan) -> None:
    for i, kernel in enumerate(plan.kernels):
        place = f"kernels[{i}] ({kernel.entry})"
        for kind in kernel.arguments:
            if kind not in parts.ARGUMENT_KINDS:
                expected = parts.ARGUMENT_KINDS
                raise PlanError(f"{place}: expected one of {expected}, found {kind!r}")
        if not 1 <= kernel.threads <= 1024 or kernel.shared < 0 or not 0 <= kernel.absent <= 8:
            raise PlanError(
                f"{place}: expected 1 to 1024 threads, shared memory of 0 bytes or more and at "
                f"most 8 absent pointers, found {kernel.threads}, {kernel.shared}, {kernel.absent}"
            )
    kinds = {type(step) for step in plan.steps}
    if {parts.LaunchStep, parts.NativeStep} <= kinds:
        raise PlanError("steps: expected native steps or launches, found both")


def _check_readable(plan: Plan, buffer: Any, place: str) -> None:
    if buffer.kind == "input" and plan.inputs[buffer.index].strides is None:
        raise PlanError(f"{place}: reads input {buffer.index}, whose strides are not fixed")


def _check_template(plan: Plan, value: Any, place: str) -> None:
    if isinstance(value, (list, tuple)):
        for v in value:
            _check_template(plan, v, place)
    elif isinstance(value, dict):
        if len(value) != 1 or (key := next(iter(value))) not in TEMPLATE_KEYS:
            raise PlanError(f"{place}: expected one key of {TEMPLATE_KEYS}, found {list(value)}")
        limits = {
            "tensor": (len(plan.views), "views"),
            "input": (len(plan.inputs), "inputs"),
            "size": (len(plan.expressions), "expressions"),
        }
        if key in limits:
            _index(value[key], limits[key][0], place, limits[key][1])
    elif value is not None and not isinstance(value, (bool, int, float, str)):
        raise PlanError(f"{place}: expected a JSON value, found {type(value).__name__}")


def _check_ends(plan: Plan) -> None:
    for i, out in enumerate(plan.outputs):
        place = f"outputs[{i}]"
        if isinstance(out, parts.OutputTensor):
            _index(out.view, len(plan.views), place, "views")
            kind = plan.buffers[plan.views[out.view].buffer].kind
            if kind not in ("output", "torch", "input", "const"):
                raise PlanError(f"{place}: a tensor handed out cannot lie in {kind} memory")
        elif isinstance(out, parts.OutputInput):
            _index(out.input, len(plan.inputs), place, "inputs")
        elif isinstance(out, parts.OutputInt):
            _slots(plan, (out.slot,), place)
    for i, mutation in enumerate(plan.mutations):
        _index(mutation.input, len(plan.inputs), f"mutations[{i}]", "inputs")
        _index(mutation.view, len(plan.views), f"mutations[{i}]", "views")
