"""f(constants) -> constant, computed once now with the op's reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import sympy
import torch

from infopt.compiler.alias import is_view, owners_of_results
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.interpret import evaluate
from infopt.compiler.ops import CONST, INPUT
from infopt.compiler.pipeline import Pass, PassContext
from infopt.compiler.types import TensorType
from infopt.passes.new_constants import free_name


@dataclass(frozen=True)
class FoldConstants(Pass):
    """f(constants) -> constant

    Matrices of integers (integer_weight.py) stay for keep-quantized.

    limit: bytes a result may have although its inputs have fewer; larger ones are computed at run
    time, so that folding never makes a program hold much more memory than it did.
    """

    name: ClassVar[str] = "fold-constants"
    stage: ClassVar[Stage] = Stage.NORMALIZE
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)

    limit: int = 1 << 20

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        values: dict[Node, Any] = {}
        tensors: dict[str, torch.Tensor] = {}
        changes: dict[Node, Node] = {}
        seen_by_callers = owners_of_results(graph)
        with torch.no_grad():
            for node in graph.nodes():
                if not _constant(node, values):
                    continue
                if node.op is CONST:
                    values[node] = graph.consts[node.attr("name")]
                    continue
                reason = self._declines(node, values)
                if reason is None and not is_view(node) and node in seen_by_callers:
                    reason = "is a result: callers may write to it"
                if reason is not None:
                    ctx.site(node, False, reason)
                    continue
                values[node] = evaluate(graph, node, values, {})
                if isinstance(node.type, TensorType) and not is_view(node):
                    name = free_name(f"folded_{len(tensors)}", graph, tensors)
                    tensors[name] = values[node]
                    changes[node] = ctx.builder.const(name, TensorType.of(values[node]))
                    ctx.derive(name, node)
                    ctx.site(node, True)
        if not changes:
            return graph
        return ctx.exchange(graph, changes).with_consts(tensors)

    def _declines(self, node: Node, values: dict[Node, Any]) -> str | None:
        if not isinstance(node.type, TensorType) or is_view(node):
            return None
        given = sum(
            values[s].nbytes for s in set(node.inputs) if isinstance(values[s], torch.Tensor)
        )
        size = node.type.nbytes
        if size > max(given, self.limit):
            return f"its {size} bytes are more than its inputs' {given} and the limit {self.limit}"
        return None


def _constant(node: Node, values: dict[Node, Any]) -> bool:
    if node.op is INPUT or not node.op.pure or node.serial or node.op.name == "integer_weight":
        return False
    types = node.type if isinstance(node.type, tuple) else (node.type,)
    static = all(t is None or t.is_static for t in types)
    return static and not _open(node.attrs) and all(s in values for s in node.inputs)


def _open(value: Any) -> bool:
    """True where an attribute mentions a dim."""
    if isinstance(value, tuple):
        return any(map(_open, value))
    return isinstance(value, sympy.Expr) and bool(value.free_symbols)
