"""What layers and ops over planes do with channels: where these lie, and who mixes them."""

from __future__ import annotations

from typing import Any

from infopt.compiler.graph import Node
from infopt.passes.fold_batch_norm import CONVOLUTIONS as _OF_TORCH
from infopt.passes.layers import source_of

_LINEAR = "aten.linear.default"
_CONVOLUTIONS = _OF_TORCH | {"conv_act"}
_POOLS = {
    f"aten.{name}_pool{axes}d.default": axes
    for name in ("max", "avg", "adaptive_avg")
    for axes in (1, 2)
}


def layer_axis(node: Node) -> int | None:
    """The dimension of its input, and of its result, along which a layer mixes channels; None for
    what is no such layer. A depthwise convolution mixes none."""
    if node.op.name == _LINEAR:
        return node.tensor_type.rank - 1
    return 1 if is_convolution(node) and not _is_depthwise(node) else None


def is_convolution(node: Node) -> bool:
    """True for a convolution of a batch of lines or images."""
    if node.op.name not in _CONVOLUTIONS:
        return False
    x, weight = node.args[:2]
    return x.tensor_type.rank == weight.tensor_type.rank  # type: ignore[no-any-return, union-attr]


def reason_against(node: Node) -> str:
    """Why a layer cannot lose channels, or ""."""
    if any(source_of(a) is None for a in node.args[1:] if a is not None):
        return f"the weight of {node!r} is not a constant"
    if not is_convolution(node):
        return ""
    if (groups := node.attr("groups")) > 1:
        return f"{node!r} reads its channels in {groups} groups"
    if node.op.name == "conv_act" and (node.args[4] or node.attr("activation") != "none"):
        return f"{node!r} has an epilogue"
    return ""


def sees_a_border(node: Node) -> bool:
    """Whether windows of a convolution reach into zeros around what it reads."""
    padding = node.attr("padding")
    if isinstance(padding, str):
        kernel = node.args[1].shape[2:]  # type: ignore[union-attr]
        return padding == "same" and any(n != 1 for n in kernel)
    return any(padding)


def carried(node: Node, dim: int) -> list[tuple[Any, int]] | None:
    """Of ops over planes, the operands that have the channels of a result, each with its dimension;
    None where channels are mixed, or the op is another."""
    name, rank, x = node.op.name, node.tensor_type.rank, next(node.inputs)
    if is_convolution(node):
        constants, residual = node.args[1:4], node.args[4:]
        if dim != 1 or not _is_depthwise(node) or any(residual):
            return None
        return [(x, 1), *((c, 0) for c in constants if c is not None)]
    if name in _POOLS:
        return [(x, dim)] if dim < rank - _POOLS[name] else None
    if name == "aten.pad.default":
        return [(x, dim)] if dim < rank - len(node.attr("pad")) // 2 else None
    if name == "aten.mean.dim":
        before = x.tensor_type.rank
        gone = {d % before for d in node.attr("dim") or range(before)}
        kept = (
            range(before) if node.attr("keepdim") else [d for d in range(before) if d not in gone]
        )
        return None if kept[dim] in gone else [(x, kept[dim])]
    return None


def _is_depthwise(node: Node) -> bool:
    return node.attr("groups") > 1 and node.args[1].shape[1] == 1  # type: ignore[no-any-return, union-attr]
