"""From a live torch program to aten ops: make_fx before dispatch for dynamo's graphs, torch.export
for whole models.

Why not AOTAutograd: of 34 public wrong-result cases it causes three, and its runtime wrappers
cost call time. Tracing before dispatch keeps linear, attention and norms whole, which is what
patterns want to see; views and in-place writes are ours to resolve (functionalize.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from infopt.compiler.errors import TraceDeclined, first_line
from infopt.compiler.tracing.refusals import check_tensor
from infopt.compiler.tracing.torchao_weight import is_torchao
from infopt.compiler.tracing.vmap import without_vmap

aten = torch.ops.aten


def aten_module(module: fx.GraphModule, inputs: Sequence[Any]) -> fx.GraphModule:
    """The aten program of one dynamo graph; inputs are the real ones dynamo passes to a backend.

    Raises TraceDeclined for programs that torch must run itself: training, autocast, subclasses.
    """
    check_mode()
    for index, value in enumerate(inputs):
        if isinstance(value, torch.Tensor) and not is_torchao(value):
            check_tensor(f"input {index}", value)
            if value.requires_grad and torch.is_grad_enabled():
                raise TraceDeclined("an input requires grad: a training graph")
    fakes = [n.meta.get("example_value") for n in module.graph.nodes if n.op == "placeholder"]
    mode = next((f.fake_mode for f in fakes if isinstance(f, FakeTensor)), None)
    if mode is None:
        raise TraceDeclined("the program has no tensor inputs")
    with mode:  # what torchao made stands for a matrix, see frozen.py
        fakes = [
            torch.empty(f.shape, dtype=f.dtype) if is_torchao(v) else f
            for f, v in zip(fakes, inputs, strict=True)
        ]
    try:
        module = without_vmap(module, mode)
    except Exception as error:
        raise _untraced(error) from error
    for node in module.graph.nodes:
        name = getattr(node.target, "__name__", "")
        if name == "_enter_autocast":
            raise TraceDeclined("the program switches autocast on")
        if name.endswith("_increment_nesting") or name.endswith("_enter_dual_level"):
            raise TraceDeclined(f"the program uses a function transform ({name})")
    try:
        return _traced(module, fakes, mode)
    except Exception as error:
        raise _untraced(error) from error


def _untraced(error: Exception) -> TraceDeclined:
    if isinstance(error, TraceDeclined):
        return error
    return TraceDeclined(f"torch could not trace it: {first_line(error)}")


def _same_tensor(x: Any, p: float, train: bool) -> Any:
    """Dropout outside training hands back its very argument; its shape rule says a new tensor."""
    return NotImplemented if train else x


_DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
_IN_EVAL = {getattr(aten, n + end).default: _same_tensor for n in _DROPOUTS for end in ("", "_")}


def _traced(module: fx.GraphModule, fakes: list[Any], mode: FakeTensorMode) -> fx.GraphModule:
    with mode, torch.no_grad():
        trace = make_fx(module, _IN_EVAL, pre_dispatch=True, _allow_non_fake_inputs=True)
        return trace(*fakes)


def check_mode() -> None:
    """Raises TraceDeclined in modes that change what operators do without showing in a trace."""
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise TraceDeclined("autocast is on around the program")


def retraced(module: fx.GraphModule, inputs: Sequence[Any]) -> fx.GraphModule:
    """The aten program of any fx module at these inputs' sizes; its parameters are attributes.

    Raises TraceDeclined where torch cannot trace it.
    """
    check_mode()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        fakes = [mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for v in inputs]
        return _traced(module, fakes, mode)
    except Exception as error:
        raise TraceDeclined(f"torch could not trace it: {error}") from error
