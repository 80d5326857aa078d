"""Aten steps: torch ops called between native steps, their arguments made from JSON templates."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from infopt.runtime.errors import PlanError
from infopt.runtime.plan import AtenStep
from infopt.runtime.plan_check import dtype_of

if TYPE_CHECKING:
    from infopt.runtime.call import Call

ALLOWED = frozenset({"aten", "prims"})
_IN_PLACE = frozenset({"add_", "copy_", "fill_", "mul_", "zero_"})
Maker = Callable[["Call"], Any]  # makes an argument for one call


def bind(step: AtenStep, allow_ops: Collection[str], on_cpu: bool = True) -> Callable[[Call], None]:
    """The step as a function of the call. Raises PlanError for an op that is not allowed."""
    op = find_op(step.op, allow_ops)
    kwargs = maker_of_items(step.kwargs if on_cpu else _with_device(op, step))
    args = maker(step.args)
    outputs = step.outputs

    def run(call: Call) -> None:
        result = op(*args(call), **kwargs(call))
        if len(outputs) == 1 and isinstance(result, torch.Tensor):
            results: Any = (result,)
        else:
            results = result
        for view, tensor in zip(outputs, results, strict=True) if outputs else ():
            if view is not None:
                call.bind(view, tensor)

    return run


def find_op(name: str, allow_ops: Collection[str]) -> Any:
    """torch.ops.<namespace>.<op>.<overload>; other namespaces only if the op is in `allow_ops`."""
    namespace, op, overload = name.split(".")
    if namespace not in ALLOWED and name not in allow_ops and namespace not in allow_ops:
        raise PlanError(
            f"the plan calls {name!r}, but only ops of {sorted(ALLOWED)} are allowed; "
            "pass allow_ops to permit it"
        )
    try:
        found = getattr(getattr(getattr(torch.ops, namespace), op), overload)
    except AttributeError:
        raise PlanError(f"torch {torch.__version__} has no op {name!r}") from None
    if name not in allow_ops and namespace not in allow_ops and not computes(found):
        raise PlanError(
            f"the plan calls {name!r}, which does more than compute tensors from tensors; "
            "pass allow_ops to permit it"
        )
    return found


def computes(op: Any) -> bool:
    """Whether an op only computes tensors from tensors and numbers: it writes to nothing but the
    elements of its first operand or its `out`, and takes no file name, storage or untyped object
    (aten.save, aten.from_file)."""
    schema = op._schema
    written = [a for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    in_place = op.overloadpacket.__name__ in _IN_PLACE
    if not in_place and not all(a.kwarg_only and a.name.startswith("out") for a in written):
        return False
    taken = {str(argument.type) for argument in schema.arguments}
    odd = "t" in taken or any(w in k for k in taken for w in ("Storage", "Dict", "Any", "Stream"))
    named = any(argument.name in ("filename", "path") for argument in schema.arguments)
    given = [str(result.type) for result in schema.returns]
    return not odd and not named and bool(given) and all("Tensor" in kind for kind in given)


def _with_device(op: Any, step: AtenStep) -> dict[str, Any]:
    """The keyword arguments, the device among them where the op takes one: plans name none but
    "cpu", which stands for where the program runs, and an op's own default would be the CPU."""
    named = [a.name for a in op._schema.arguments]
    kwargs = dict(step.kwargs)
    takes = "device" in named and named.index("device") >= len(step.args)
    if takes and kwargs.get("device") is None:
        kwargs["device"] = {"device": "cpu"}
    return kwargs


def maker(value: Any) -> Maker:
    """A function of the call that makes the argument which the template `value` describes."""
    if isinstance(value, (list, tuple)):
        parts = [maker(v) for v in value]
        return lambda call: [part(call) for part in parts]
    if not isinstance(value, Mapping):
        return lambda call: value
    key, content = next(iter(value.items()))
    if key == "tensor":
        return lambda call: call.view(content)
    if key == "size":
        return lambda call: call.slots[content]
    if key == "input":
        return lambda call: call.inputs[content]
    if key == "device" and content == "cpu":
        return lambda call: call.where
    constant = _constant(key, content)
    return lambda call: constant


def maker_of_items(items: Mapping[str, Any]) -> Maker:
    parts = [(name, maker(value)) for name, value in items.items()]
    return lambda call: {name: part(call) for name, part in parts}


def _constant(key: str, content: Any) -> Any:
    if key == "dtype":
        return dtype_of(content, "dtype")
    if key == "device":
        return torch.device(content)
    if key == "float" and content in ("inf", "-inf", "nan"):
        return {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[content]
    if key == "complex":
        return complex(*content)
    name = str(content).removeprefix("torch.")
    found = getattr(torch, name, None)
    kind = torch.layout if key == "layout" else torch.memory_format
    if not isinstance(found, kind):
        raise PlanError(f"expected the name of a torch {key}, found {content!r}")
    return found


@contextmanager
def plain_torch() -> Iterator[None]:
    """No gradients and no autocast: the plan already says every dtype."""
    autocast = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    for kind in autocast:
        torch.set_autocast_enabled(kind, False)
    try:
        with torch.no_grad():
            yield
    finally:
        for kind in autocast:
            torch.set_autocast_enabled(kind, True)
