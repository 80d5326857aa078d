"""conv(pad(x, zeros), w) -> conv(x, w) with more padding: no padded copy is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from infopt.codegen.kernels.conv import conv_act
from infopt.codegen.kernels.rows import FLOATS
from infopt.compiler.errors import CannotInfer
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.pipeline import Pass, PassContext
from infopt.passes.fold_batch_norm import CONVOLUTIONS


@dataclass(frozen=True)
class FuseConvPadding(Pass):
    """conv(pad(x, zeros), w) -> conv(x, w) with more padding

    Equal padding on both sides stays torch's convolution; unequal padding ("same" of TensorFlow's
    models) is conv_act's, whose padding may differ on every side. Declines other values than 0,
    and padding that crops.
    """

    name: ClassVar[str] = "fuse-conv-padding"
    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "fold-batch-norm")

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        changes: dict[Node, Node] = {}
        for node in graph.nodes():
            if node.op.name not in CONVOLUTIONS and node.op is not conv_act:
                continue
            padded = node.args[0]
            if not isinstance(padded, Node) or padded.op.name != "aten.pad.default":
                continue
            reason = _reason_against(node, padded)
            if reason is None:
                try:
                    changes[node] = _absorbed(ctx.builder, node, padded)
                except CannotInfer as error:
                    reason = str(error)
            ctx.site(node, reason is None, reason or "")
        return ctx.exchange(graph, changes) if changes else graph


def _reason_against(node: Node, padded: Node) -> str | None:
    mode, value, pad = (padded.attr(name) for name in ("mode", "value", "pad"))
    if node.dtype not in FLOATS:
        return f"the result is {node.dtype}"
    if mode != "constant" or value not in (None, 0):
        return f"padding of mode {mode} and value {value}, expected constant zeros"
    if not all(isinstance(n, int) and n >= 0 for n in pad):
        return f"padding {pad} that crops or is open"
    if any(n for n in pad[2 * (node.tensor_type.rank - 2) :]):
        return f"padding {pad} of more than the window's axes"
    if node.attr("padding") == "same":
        return 'padding "same" on top of it'
    return None


def _absorbed(o: Builder, node: Node, padded: Node) -> Node:
    axes = node.tensor_type.rank - 2
    sides = _sides(node.attr("padding"), axes)
    pad = (*padded.attr("pad"), *[0] * (2 * axes))
    # torch's pad begins with the last axis
    added = [pad[2 * (axes - 1 - d) + side] for d in range(axes) for side in (0, 1)]
    total = tuple(a + b for a, b in zip(sides, added, strict=True))
    attrs: dict[str, Any] = dict(node.attrs)
    x, (_, weight, *rest) = padded.args[0], node.args
    attrs["padding"] = total
    if total[::2] == total[1::2]:
        attrs["padding"] = total[::2]
        if node.op is not conv_act:
            convolve = f"aten.conv{axes}d.default"
            return o.in_place_of(node, convolve, x, weight, rest[0], **attrs)
    if node.op is conv_act:
        return o.in_place_of(node, conv_act, x, weight, *rest, **attrs)
    return o.in_place_of(node, conv_act, x, weight, None, rest[0], **attrs)


def _sides(padding: Any, axes: int) -> tuple[int, ...]:
    """(before, after) of every axis."""
    if padding == "valid":
        return (0,) * (2 * axes)
    values = tuple(padding)
    if len(values) == 2 * axes:
        return values
    values = values * axes if len(values) == 1 else values
    return tuple(v for v in values for _ in (0, 1))
