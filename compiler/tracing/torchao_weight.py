"""Weights that torchao.quantization.quantize_ made: what its tensor subclasses hold.

They are read by their attributes, so nothing of torchao is imported. Layouts: torchao 0.18,
quantization/quantize_/workflows/int8/int8_tensor.py and intx/intx_unpacked_to_int8_tensor.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from infopt.compiler.errors import TraceDeclined
from infopt.compiler.graph import Node
from infopt.compiler.infer import Builder
from infopt.compiler.integer_weight import byte_rows, integer_weight
from infopt.compiler.types import TensorType

_CLASSES = ("Int8Tensor", "IntxUnpackedToInt8Tensor")


@dataclass(frozen=True, eq=False)
class TorchaoWeight:
    """integers int8 [N, K], scales [N, groups], and how its layers round what they read to bytes, a
    name of ROW_ROUNDINGS or None; dtype: what the subclass says it is. Shares the memory of the
    subclass's tensors."""

    integers: torch.Tensor
    scales: torch.Tensor
    dtype: torch.dtype
    rounding: str | None

    def node(self, o: Builder, name: str) -> tuple[Node, dict[str, torch.Tensor]]:
        """The matrix as a node over constants, and those by name."""
        consts = {f"{name}_integers": self.integers, f"{name}_scales": self.scales}
        parts = [o.const(n, TensorType.of(t)) for n, t in consts.items()]
        return o.call(integer_weight, *parts, out=self.dtype), consts

    def changes(self, o: Builder, old: Node, new: Node, users: Any) -> dict[Node, Node]:
        """`new` in the place of `old`; layers that multiply by it round their rows, if they do."""
        changes = {old: new}
        for node in users if self.rounding else ():
            if node.op.name == "aten.linear.default" and node.args[1] is old:
                x = o.call(byte_rows, node.args[0], rounding=self.rounding)
                changes[node] = o.call(node.op, x, *node.args[1:])
        return changes


def is_torchao(value: Any) -> bool:
    """True for a weight of any of torchao's classes."""
    return isinstance(value, torch.Tensor) and type(value).__module__.startswith("torchao.")


def torchao_weight(name: str, value: torch.Tensor) -> TorchaoWeight:
    """What a torchao weight holds. Raises TraceDeclined for what has no such form."""
    kind, held = type(value).__name__, vars(value)
    if kind not in _CLASSES:
        raise TraceDeclined(
            f"{name} is a torchao {kind}; the ones that run on integers are {', '.join(_CLASSES)}"
        )
    integers, scales, zeros = held["qdata"], held["scale"], held.get("zero_point")
    if integers.dim() != 2:
        raise TraceDeclined(f"{name} is a torchao {kind} of shape {tuple(integers.shape)}")
    if zeros is not None and bool((zeros != 0).any()):
        raise TraceDeclined(f"{name} is a torchao {kind} with zero points that are not 0")
    n, k = integers.shape
    scales = scales.reshape(-1, k // held["block_size"][-1])
    if scales.shape[0] == 1 and n != 1:
        scales = scales.expand(n, -1).contiguous()
    if scales.shape[0] != n:
        raise TraceDeclined(f"{name} is a torchao {kind} in blocks of {held['block_size']}")
    return TorchaoWeight(integers, scales, value.dtype, _rounding(name, kind, held))


def _rounding(name: str, kind: str, held: dict[str, Any]) -> str | None:
    """How layers round rows, see ROW_ROUNDINGS."""
    for key in ("act_quant_scale", "act_pre_scale"):
        if held.get(key) is not None:
            raise TraceDeclined(f"{name} is a torchao {kind} with {key}: static activations")
    if held.get("activation_quantization") is not None:
        return "int8-affine-per-token"  # the only one there is
    dynamic = held.get("act_quant_kwargs")
    if dynamic is None:
        return None
    if type(dynamic.granularity).__name__ != "PerRow":
        granularity = type(dynamic.granularity).__name__
        raise TraceDeclined(f"{name} is a torchao {kind} with {granularity} activations")
    mapping = {"SYMMETRIC": "int8-symmetric", "ASYMMETRIC": "int8-affine"}
    found = mapping.get(dynamic.mapping_type.name)
    if found is None:
        raise TraceDeclined(
            f"{name} is a torchao {kind} with {dynamic.mapping_type.name} activations; expected "
            "SYMMETRIC or ASYMMETRIC"
        )
    return found + "-reduced" if dynamic.reduce_range else found
