"""act(linear(x, w, b)) + residual -> linear_act(x, w, b, residual): finished while in cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from infopt.codegen.kernels.linear import linear_act
from infopt.compiler.errors import CannotInfer
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.pipeline import Pass, PassContext
from infopt.passes.epilogue import activated, summed, why_not


@dataclass(frozen=True)
class FuseLinearEpilogue(Pass):
    """act(linear(x, w, b)) + residual -> linear_act(x, w, b, residual)

    act is relu, gelu (both forms), quick gelu, silu, sigmoid or tanh; either part may be missing.
    """

    name: ClassVar[str] = "fuse-linear-epilogue"
    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        changes: dict[Node, Node] = {}
        for node in graph.nodes():
            if node.op.name != "aten.linear.default":
                continue
            if not node.tensor_type.is_float:
                ctx.site(node, False, f"the result is {node.dtype}")
                continue
            root, activation = activated(graph, node)
            root, residual = summed(graph, root)
            if root is node:
                ctx.site(node, False, why_not(graph, node))
                continue
            try:
                changes[root] = ctx.builder.call(
                    linear_act, *node.args, residual, activation=activation
                )
                ctx.site(root, True)
            except CannotInfer as error:
                ctx.site(root, False, str(error))
        return ctx.exchange(graph, changes) if changes else graph
