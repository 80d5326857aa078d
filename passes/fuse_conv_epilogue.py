"""act(conv(x, w) * scale + shift + residual) -> conv_act(...): finished while in cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from infopt.codegen.kernels.conv import conv_act
from infopt.codegen.kernels.rows import FLOATS
from infopt.compiler.errors import CannotInfer
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.pipeline import Pass, PassContext
from infopt.passes.epilogue import activated, summed, why_not
from infopt.passes.fold_batch_norm import CONVOLUTIONS


@dataclass(frozen=True)
class FuseConvEpilogue(Pass):
    """act(conv(x, w, b) + residual) -> conv_act(x, w, None, b, residual, add_first=True)
    act(conv(x, w, b)) + residual -> conv_act(x, w, None, b, residual)

    act is relu, gelu (both forms), quick gelu, silu, sigmoid or tanh; either part may be missing.
    """

    name: ClassVar[str] = "fuse-conv-epilogue"
    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "fold-batch-norm")

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        changes: dict[Node, Node] = {}
        for node in graph.nodes():
            found = _operands(node)
            if found is None:
                continue
            args, attrs = found
            if node.dtype not in FLOATS:
                ctx.site(node, False, f"the result is {node.dtype}")
                continue
            root, activation = activated(graph, node)
            root, residual = summed(graph, root)
            if activation == "none" and residual is not None:
                root, activation = activated(graph, root)
                attrs["add_first"] = True
            if root is node or root in changes:
                reason = why_not(graph, node) if root is node else "another convolution takes it"
                ctx.site(node, False, reason)
                continue
            try:
                changes[root] = ctx.builder.in_place_of(
                    root, conv_act, *args, residual, **attrs, activation=activation
                )
                ctx.site(root, True)
            except CannotInfer as error:
                ctx.site(root, False, str(error))
        return ctx.exchange(graph, changes) if changes else graph


def _operands(node: Node) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """(x, weight, scale, shift) and the window of a convolution that ends with none of this."""
    attrs = dict(node.attrs)
    if node.op.name in CONVOLUTIONS:
        x, weight, bias = node.args
        return (x, weight, None, bias), attrs
    if node.op is not conv_act or node.args[4] is not None or attrs["activation"] != "none":
        return None
    del attrs["activation"], attrs["add_first"]
    return node.args[:4], attrs
