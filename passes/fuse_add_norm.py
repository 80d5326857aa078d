"""norm(x + residual) -> add_norm(x, residual): the sum is normalised while it is still in cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from infopt.codegen.kernels.layer_norm import add_layer_norm
from infopt.codegen.kernels.rms_norm import add_rms_norm
from infopt.compiler.errors import CannotInfer
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.pipeline import Pass, PassContext

_NORMS = ("aten.layer_norm.default", "rms_norm")


@dataclass(frozen=True)
class FuseAddNorm(Pass):
    """norm(x + residual) -> add_norm(x, residual), for layer norm and RMS norm

    Whoever else reads the sum reads it from the fused op, which has it anyway.
    """

    name: ClassVar[str] = "fuse-add-norm"
    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "fuse-norm", "fuse-linear-epilogue")

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        changes: dict[Node, Node] = {}
        for node in graph.nodes():
            if node.op.name not in _NORMS:
                continue
            total = node.args[0]
            assert isinstance(total, Node)
            reason = _declines(graph, node, total, changes)
            if reason is None:
                try:
                    made = _fused(ctx.builder, node, total)
                except CannotInfer as error:
                    reason = str(error)
                else:
                    changes[node] = ctx.builder.getitem(made, 0)
                    if graph.use_count(total) > 1:
                        changes[total] = ctx.builder.getitem(made, 1)
            ctx.site(node, reason is None, reason or "")
        return ctx.exchange(graph, changes) if changes else graph


def _declines(graph: Graph, norm: Node, total: Node, changes: dict[Node, Node]) -> str | None:
    if total.op.name != "aten.add.Tensor" or total.attr("alpha") != 1:
        return f"normalises {total.op.name}, not a sum"
    a, b = total.args
    assert isinstance(a, Node) and isinstance(b, Node)
    for side in (a, b):
        if (side.shape, side.dtype) != (total.shape, total.dtype):
            return f"{side.type} is broadcast or cast in the sum"
    if norm.op.name in _NORMS[:1] and len(norm.attr("normalized_shape")) != 1:
        return "more than the last dim is normalised"
    if total in changes:
        return "another norm of the same sum has it"
    return None


def _fused(o: Builder, norm: Node, total: Node) -> Node:
    attrs = dict(norm.attrs)
    if norm.op.name == "rms_norm":
        return o.call(add_rms_norm, *total.args, norm.args[1], **attrs)
    weight, bias = norm.args[1:]
    return o.call(add_layer_norm, *total.args, weight, bias, eps=attrs["eps"])
