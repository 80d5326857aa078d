"""Tensors and calls of a traced program that no pure graph can stand for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import sympy
import torch
from torch import fx

from infopt.compiler.errors import TraceDeclined
from infopt.compiler.types import TensorType, as_size

aten = torch.ops.aten

DEVICES = ("cpu", "cuda")
# Ops that change their arguments although their schemas do not say so, when training.
_TRAINING_ARGUMENT = {
    aten.batch_norm.default: 5,
    aten.instance_norm.default: 5,
    aten._batch_norm_impl_index.default: 5,
    aten.cudnn_batch_norm.default: 5,
}
# Ops whose shape rule in torch gives other strides than the operator itself (found by the operator
# database): what a caller would see of them cannot be promised.
_WRONG_STRIDES = {aten.max_unpool2d.default, aten.max_unpool3d.default}
# The same, where the operand is not contiguous.
_WRONG_STRIDES_OF_VIEWS = {
    *(getattr(aten.upsample_nearest1d, o) for o in ("default", "vec")),
    *(getattr(aten._upsample_nearest_exact1d, o) for o in ("default", "vec")),
}
if torch.__version__ < "2.13":
    _WRONG_STRIDES_OF_VIEWS |= {
        *(getattr(aten.upsample_nearest3d, o) for o in ("default", "vec")),
        *(getattr(aten._upsample_nearest_exact3d, o) for o in ("default", "vec")),
    }


def check_tensor(name: str, value: torch.Tensor) -> None:
    """Raises TraceDeclined for tensors that are not plain strided ones, on the CPU or a GPU."""
    if value.device.type not in DEVICES:
        raise TraceDeclined(f"{name} is on {value.device}, expected one of {', '.join(DEVICES)}")
    if value.layout is not torch.strided or value.is_quantized:
        raise TraceDeclined(f"{name} is a {value.layout} tensor")
    if value.is_complex() or value.is_conj() or value.is_neg():
        raise TraceDeclined(f"{name} is complex or lazily negated")
    if isinstance(value, torch._subclasses.FakeTensor):
        return
    if type(value) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        raise TraceDeclined(f"{name} is a {type(value).__name__}, a tensor subclass")


def check_call(node: fx.Node, inputs: Collection[fx.Node]) -> None:
    """Raises TraceDeclined for calls whose results torch's trace does not say truly, or that do
    more than give them. inputs: the placeholders, whose memory layout is known."""
    overload = node.target
    if overload is aten.as_strided.default and node.args[0] not in inputs:
        raise TraceDeclined(f"{overload} reads the memory layout of an intermediate value")
    if overload in _WRONG_STRIDES or (
        overload in _WRONG_STRIDES_OF_VIEWS
        and not TensorType.of(node.args[0].meta["val"]).is_contiguous  # type: ignore[union-attr]
    ):
        raise TraceDeclined(f"{overload}: its shape rule in torch promises other strides")
    position = _TRAINING_ARGUMENT.get(overload)  # type: ignore[call-overload]
    if position is not None and node.args[position]:
        raise TraceDeclined(f"{overload} in training mode updates its running statistics")
    results = tensors_of(node.meta.get("val"))
    for value in results:
        if value.device.type not in DEVICES or value.layout is not torch.strided:
            raise TraceDeclined(f"{overload} gives a {value.layout} tensor on {value.device}")
    sizes = [as_size(s) for v in results for s in (*v.shape, *v.stride())]
    if any(str(t).startswith("u") for s in sizes for t in sympy.sympify(s).free_symbols):
        raise TraceDeclined(f"{overload} gives a size that depends on data")


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors in nested results."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value for t in tensors_of(v)] if isinstance(value, list | tuple) else []
