"""layer_norm(table[ids] + ...) -> embedding_norm: rows are summed and normalised where they lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from infopt.codegen.kernels.embedding import embedding_norm
from infopt.compiler.errors import CannotInfer
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.pipeline import Pass, PassContext

_Term = tuple[Node | None, Node]  # ids, or None for rows that are added as they are; the table


@dataclass(frozen=True)
class FuseEmbeddingNorm(Pass):
    """layer_norm((table[ids] + table1[ids1]) + table2[ids2]) -> embedding_norm(ids, table, ...)

    Up to three tables; one may be rows for the positions [T, W], or one row for all [W]. The sum
    keeps its order, and is rounded to its dtype after every addition as separate ones would be.
    """

    name: ClassVar[str] = "fuse-embedding-norm"
    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        changes: dict[Node, Node] = {}
        for node in graph.nodes():
            if node.op.name != "aten.layer_norm.default":
                continue
            terms = _terms(graph, node.args[0])
            if not any(ids is not None for ids, _ in terms):
                continue
            reason = _declines(node, terms)
            if reason is None:
                try:
                    changes[node] = ctx.builder.call(
                        embedding_norm, *_arguments(node, terms), eps=node.attr("eps")
                    )
                except CannotInfer as error:
                    reason = str(error)
            ctx.site(node, reason is None, reason or "")
        return ctx.exchange(graph, changes) if changes else graph


def _terms(graph: Graph, node: Any) -> list[_Term]:
    """The addends of a sum that nobody else reads, in the order in which they are added."""
    if graph.use_count(node) == 1:
        if node.op.name == "aten.add.Tensor" and node.attr("alpha") == 1:
            a, b = node.args
            if b.op.name == "aten.add.Tensor":
                a, b = b, a
            return [*_terms(graph, a), *_one(graph, b)]
        return _one(graph, node)
    return [(None, node)]


def _one(graph: Graph, node: Node) -> list[_Term]:
    if graph.use_count(node) == 1:
        if node.op.name == "aten.embedding.default":
            return [(node.args[1], node.args[0])]
        if node.op.name == "aten.index_select.default" and node.attr("dim") == 0:
            return [(node.args[1], node.args[0])]
    return [(None, node)]


def _declines(norm: Node, terms: list[_Term]) -> str | None:
    shape, dtype = norm.shape, norm.dtype
    if len(norm.attr("normalized_shape")) != 1 or len(shape) not in (2, 3):
        return f"the norm is over {norm.attr('normalized_shape')} of {norm.args[0].type}"
    if len(terms) > 3:
        return f"{len(terms)} terms, the kernel sums three"
    if not any(ids is not None and ids.shape == shape[:-1] for ids, _ in terms[:2]):
        return "no table is read for every token"
    for ids, table in terms:
        if table.dtype != dtype:
            return f"a term is {table.dtype}, the sum {dtype}"
        if ids is None and table.shape not in (shape[-2:], shape[-1:]):
            return f"{table.type} is added, which is no row of a token"
        if ids is not None and ids.tensor_type.rank > len(shape) - 1:
            return f"ids {ids.type}"
    return None


def _arguments(norm: Node, terms: list[_Term]) -> list[Node | None]:
    """The op's operands: the first two may change places, a sum of two is the same either way."""
    tokens = norm.shape[:-1]
    if terms[0][0] is None or terms[0][0].shape != tokens:
        terms = [terms[1], terms[0], *terms[2:]]
    flat: list[Node | None] = [value for term in terms for value in term]
    flat += [None] * (6 - len(flat))
    return [*flat, *norm.args[1:]]
