"""linear(x, a), linear(x, b) -> the two halves of linear(x, [a; b]): x is read and packed once."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.ops import CONST
from infopt.compiler.pipeline import Pass, PassContext
from infopt.passes.new_constants import new_constant


@dataclass(frozen=True)
class MergeLinears(Pass):
    """linear(x, a), linear(x, b) -> the two halves of linear(x, [a; b])

    Not in the default list: linears that read the same x share its panels already, and on BERT-base
    this measured no gain. For constant weights that nobody else reads: the concatenation takes
    their place. Weights that are inputs stay apart: joining them would copy them at every call.
    """

    name: ClassVar[str] = "merge-linears"
    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "fuse-linear-epilogue")

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        groups: dict[Any, list[Node]] = defaultdict(list)
        for node in graph.nodes():
            if node.op.name == "aten.linear.default":
                x, weight, bias = node.args
                assert isinstance(x, Node) and isinstance(weight, Node)
                groups[x, weight.dtype, bias is None].append(node)
        changes: dict[Node, Node] = {}
        tensors: dict[str, torch.Tensor] = {}
        for linears in groups.values():
            if len(linears) < 2:
                continue
            reason = _declines(graph, linears)
            for node in linears:
                ctx.site(node, reason is None, reason or "")
            if reason is None:
                changes.update(_merged(graph, linears, tensors, ctx))
        if not changes:
            return graph
        return ctx.exchange(graph, changes).with_consts(tensors)


def _declines(graph: Graph, linears: list[Node]) -> str | None:
    for node in linears:
        for value in node.args[1:]:
            if not isinstance(value, Node):
                continue
            if value.op is not CONST:
                return f"weights are {value.op.name}s, not constants"
            if graph.use_count(value) > 1:
                return f"the constant {value.attr('name')} is read elsewhere too"
    if any(node.args[1].tensor_type.rank != 2 for node in linears):  # type: ignore[union-attr]
        return "a weight that is not a matrix"
    return None


def _merged(
    graph: Graph, linears: list[Node], tensors: dict[str, torch.Tensor], ctx: PassContext
) -> dict[Node, Node]:
    """Each linear as a slice of one linear of all their rows."""
    o = ctx.builder

    def joined(position: int) -> Node | None:
        parts = [node.args[position] for node in linears]
        if not isinstance(parts[0], Node):
            return None
        value = torch.cat([graph.consts[p.attr("name")].detach() for p in parts])  # type: ignore[union-attr]
        made = new_constant(o, f"merged_{len(tensors)}", value, graph, tensors)
        ctx.derive(str(made.attr("name")), o.call("aten.cat.default", tuple(parts), 0))
        return made

    whole = o.call("aten.linear.default", linears[0].args[0], joined(1), joined(2))
    changes, start = {}, 0
    for node in linears:
        end = start + node.shape[-1]
        last = node.tensor_type.rank - 1
        changes[node] = o.call("aten.slice.Tensor", whole, last, start, end, 1)
        start = end
    return changes
