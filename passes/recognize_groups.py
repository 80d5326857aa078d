"""_grouped_mm(x, wᵀ, ends) -> grouped_linear(x, w, ends): the experts of a mixture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from infopt.codegen.kernels.grouped_linear import grouped_linear, grouped_reason
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.pipeline import Pass, PassContext

# As torch and as transformers say it; by name, so that transformers need not be there.
_PRODUCTS = ("aten._grouped_mm.default", "transformers.grouped_mm_fallback.default")


@dataclass(frozen=True)
class RecognizeGroups(Pass):
    """_grouped_mm(x, wᵀ, ends) -> grouped_linear(x, w, ends)

    Rows sorted by group, each group with a matrix of its own. Rows behind the last end, which
    torch leaves open and transformers sets to 0, become 0. Declines what no kernel computes: the
    model's own op costs less there than the reference, which multiplies rows by all matrices.
    """

    name: ClassVar[str] = "recognize-groups"
    stage: ClassVar[Stage] = Stage.NORMALIZE
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        changes: dict[Node, Node] = {}
        for node in graph.nodes():
            if node.op.name not in _PRODUCTS:
                continue
            made = _grouped(ctx.builder, node)
            if isinstance(made, Node):
                changes[node] = made
            ctx.site(node, isinstance(made, Node), "" if isinstance(made, Node) else made)
        return ctx.exchange(graph, changes) if changes else graph


def _grouped(o: Builder, node: Node) -> Node | str:
    """The product as grouped_linear, or why it is none."""
    x, matrices, ends, *bias = node.args
    assert isinstance(x, Node) and isinstance(matrices, Node)
    if x.tensor_type.rank != 2 or matrices.tensor_type.rank != 3 or not isinstance(ends, Node):
        return (
            f"products of {x.type} and {matrices.type}, expected rows and a matrix for each group"
        )
    if any(b is not None for b in bias) or node.dtype != x.dtype:
        return f"a bias, or a result of {node.dtype}"
    weight = _transposed(o, matrices)
    reason = grouped_reason(x.tensor_type, weight.tensor_type)
    if reason is not None:
        return reason
    if ends.dtype is not torch.int32:
        ends = o.call("aten.to.dtype", ends, torch.int32)
    return o.call(grouped_linear, x, weight, ends)


def _transposed(o: Builder, matrices: Node) -> Node:
    """Every matrix transposed; where that was done before, what it was done to."""
    if matrices.op.name == "aten.permute.default" and matrices.attr("dims") == (0, 2, 1):
        (weight,) = matrices.inputs
        return weight
    return o.call("aten.permute.default", matrices, [0, 2, 1])
