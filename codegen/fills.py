"""Values without inputs: fills and counts, made where they are read."""

from __future__ import annotations

import torch

from infopt.codegen.expression import C_TYPES
from infopt.compiler.graph import Node
from infopt.compiler.types import TensorType

_FILLS = {
    "full": "fill_value",
    "full_like": "fill_value",
    "new_full": "fill_value",
    "scalar_tensor": "s",
    "zeros": 0,
    "zeros_like": 0,
    "new_zeros": 0,
    "ones": 1,
    "ones_like": 1,
    "empty": 0,  # any values will do
    "empty_like": 0,
    "new_empty": 0,
    "new_ones": 1,
}


def fill_value(node: Node) -> object | None:
    """The number every element of the node is, None where the node is no fill."""
    packet, _, overload = node.op.name.removeprefix("aten.").partition(".")
    if overload != "default" and (packet, overload) != ("empty", "memory_format"):
        return None
    if packet not in _FILLS or not isinstance(node.type, TensorType):
        return None
    if node.dtype not in C_TYPES or node.tensor_type.device != "cpu":
        return None
    how = _FILLS[packet]
    value = node.attr(how) if isinstance(how, str) else how
    return None if isinstance(value, complex) else value


def count_from(node: Node) -> tuple[object, object] | None:
    """(start, step) of a node that counts in integers, None where it is no such arange."""
    packet, _, overload = node.op.name.removeprefix("aten.").partition(".")
    if packet != "arange" or overload not in ("default", "start", "start_step"):
        return None
    attrs = dict(node.attrs)
    start, step = attrs.get("start", 0), attrs.get("step", 1)
    if node.tensor_type.device != "cpu" or node.dtype not in (
        torch.int64,
        torch.int32,
        torch.float32,
    ):
        return None
    if any(isinstance(v, float | bool) for v in (start, step, attrs["end"])):
        return None
    return start, step
