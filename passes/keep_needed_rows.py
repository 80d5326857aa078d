"""f(x)[rows] -> f(x[rows]) for every f that treats rows apart, as far down as it goes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from sympy import sympify

from infopt.codegen.pointwise import find as pointwise_form
from infopt.compiler.alias import is_view
from infopt.compiler.cost import node_seconds
from infopt.compiler.errors import CannotInfer
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.ops import CONST, INPUT
from infopt.compiler.pipeline import Pass, PassContext
from infopt.compiler.types import Dim

_END = 2**63 - 1
_MANY = 512  # rows, where there is no limit
# Ops that treat every row of their first argument apart; the last dim is theirs.
_ROWWISE = (
    "aten.linear.default",
    "aten.layer_norm.default",
    "aten.softmax.int",
    "aten.log_softmax.int",
    "linear_act",
    "rms_norm",
    "gated_linear",
    "adapter_linear",
)
# Of ops that read rows beside x, the places of all rows among their arguments.
_ROWS_AT = {"linear_act": (0, 3), "adapter_linear": (0, 1)}
_ATTENTION = ("attention", "aten.scaled_dot_product_attention.default")


@dataclass(frozen=True)
class Cut:
    """Rows [start, end) along a dim; negative numbers count from the end, as in torch. With an
    index i64 [B, R, 1], those rows of each of B matrices, along dim 1."""

    dim: int
    start: Any = None
    end: Any = None
    index: Node | None = None

    def __str__(self) -> str:
        chosen = f"{self.start}:{self.end}" if self.index is None else f"by {self.index.type}"
        return f"rows {chosen} of dim {self.dim}"


@dataclass(frozen=True)
class KeepNeededRows(Pass):
    """f(x)[rows] -> f(x[rows])

    A pooler that reads the first token, or a head that reads the last one, needs one row of the
    last layer: its products, norms and queries are computed for that row alone. Rows may also be
    data, as those whose logits a decoder's caller wants.
    """

    name: ClassVar[str] = "keep-needed-rows"
    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        wanted = _demands(graph)
        if not wanted:
            return graph
        try:
            result = _rebuilt(graph, wanted, ctx)
        except CannotInfer as error:
            ctx.site("graph", False, str(error))
            return graph
        dims = _judged(graph, wanted)
        before, after = (
            sum(node_seconds(n, ctx.target, dims) for n in g.nodes()) for g in (graph, result)
        )
        gain = before - after
        applied = gain > 0 and result is not graph
        for node, cut in wanted.items():
            if node.op.name in (*_ROWWISE, *_ATTENTION):
                reason = "" if applied else f"does not pay on {ctx.target.name}"
                ctx.site(f"{node!r} needs {cut}", applied, reason)
        return result if applied else graph


def _judged(graph: Graph, wanted: dict[Node, Cut]) -> tuple[Dim, ...]:
    """The sizes at which the cost is judged: those seen, but the most rows where some are chosen
    by data: with few rows little is lost, and the caller chooses few of many."""
    many: set[Any] = set()
    for node, cut in wanted.items():
        if cut.index is not None:
            many |= sympify(node.shape[1]).free_symbols - sympify(cut.index.shape[1]).free_symbols
    return tuple(
        replace(d, hint=d.hi or max(_MANY, d.hint)) if d.symbol in many else d for d in graph.dims
    )


def _demands(graph: Graph) -> dict[Node, Cut]:
    """The nodes of which all readers want the same rows, and only those can be computed apart."""
    asked: dict[Node, set[Cut | None]] = {n: set() for n in graph.nodes()}
    wanted: dict[Node, Cut] = {}
    for node in reversed(graph.nodes()):
        cuts = asked[node]
        cut = next(iter(cuts)) if len(cuts) == 1 and not graph.is_output(node) else None
        own = None if cut is None else _argument_cuts(node, cut)
        if own is not None:
            assert cut is not None
            wanted[node] = cut
        taken = _taken(node)
        for index, arg in enumerate(node.args):
            for source in arg if isinstance(arg, tuple) else (arg,):
                if source is None:
                    continue
                if own is not None:
                    asked[source].add(own[index])
                else:
                    asked[source].add(taken if index == 0 else None)
    return wanted


def _taken(node: Node) -> Cut | None:
    """The rows that a select or slice takes of its input."""
    if node.op.name == "aten.select.int":
        rank = node.args[0].tensor_type.rank  # type: ignore[union-attr]
        index = node.attr("index")
        if isinstance(index, int):
            return Cut(node.attr("dim") % rank, index, _END if index == -1 else index + 1)
    if node.op.name == "aten.slice.Tensor" and node.attr("step") == 1:
        rank = node.args[0].tensor_type.rank  # type: ignore[union-attr]
        end = node.attr("end")
        return Cut(node.attr("dim") % rank, node.attr("start") or 0, _END if end is None else end)
    if node.op.name == "aten.gather.default":
        return _picked(node)
    return None


def _picked(node: Node) -> Cut | None:
    """The rows that a gather takes of every matrix of its input, the same for all of a row."""
    x, index = node.args
    assert isinstance(x, Node) and isinstance(index, Node)
    if index.op.name != "aten.expand.default" or x.tensor_type.rank != 3 or node.attr("dim") != 1:
        return None
    rows = index.args[0]
    assert isinstance(rows, Node)
    source = rows
    while is_view(source):
        source = next(source.inputs)
    if rows.shape != (x.shape[0], index.shape[1], 1) or index.shape[2] != x.shape[2]:
        return None
    return Cut(1, index=rows) if source.op in (INPUT, CONST) else None  # no cut changes it


def _argument_cuts(node: Node, cut: Cut) -> list[Cut | None] | None:
    """The rows each argument must give for these rows of the node; None where that is not all."""
    name, x = node.op.name, node.args[0] if node.args else None
    if not isinstance(x, Node):
        return None
    rank = node.tensor_type.rank if not isinstance(node.type, tuple) else -1
    if cut.index is not None:
        whole = name in _ROWWISE or pointwise_form(node) is not None
        alike = (a.shape[:-1] == node.shape[:-1] for a in _of_rows(node))
        if not whole or rank != 3 or not all(alike):
            return None
    if name in _ROWWISE:
        last = len(node.attr("normalized_shape")) if name == "aten.layer_norm.default" else 1
        if name.endswith("softmax.int") and node.attr("dim") != -1:
            return None
        if cut.dim >= rank - last or (name == "adapter_linear" and cut.dim == 0):
            return None
        rows = _ROWS_AT.get(name, (0,))  # weights have other rows
        return [_aligned(a, node, cut) if i in rows else None for i, a in enumerate(node.args)]
    if name == "aten.permute.default":
        return [Cut(node.attr("dims")[cut.dim] % rank, cut.start, cut.end)]
    if name == "aten.reshape.default":
        keeps = node.shape[: cut.dim + 1] == x.shape[: cut.dim + 1]
        return [cut] if keeps else None
    if name == "aten.embedding.default":
        return [None, cut] if cut.dim < rank - 1 else None
    if name in _ATTENTION:
        order = ("causal", "is_causal", "dropout_p")
        if cut.dim != rank - 2 or any(v for k, v in node.attrs if k in order):
            return None
        return [cut, None, None, *(_aligned(m, node, cut) for m in node.args[3:])]
    if pointwise_form(node) is not None:
        return [_aligned(a, node, cut) for a in node.args]
    return None


def _of_rows(node: Node) -> list[Node]:
    """The arguments that have the node's rows, weights and biases aside."""
    if node.op.name in _ROWWISE:
        found = [node.args[i] for i in _ROWS_AT.get(node.op.name, (0,)) if i < len(node.args)]
        return [a for a in found if isinstance(a, Node)]
    return [a for a in node.inputs if a.tensor_type.rank > 1]


def _aligned(arg: Any, node: Node, cut: Cut) -> Cut | None:
    """The same rows of an argument that broadcasts to the node's shape."""
    if not isinstance(arg, Node):
        return None
    dim = cut.dim - (node.tensor_type.rank - arg.tensor_type.rank)
    if dim < 0 or (arg.shape[dim] == 1 and node.shape[cut.dim] != 1):
        return None
    return replace(cut, dim=dim)


def _rebuilt(graph: Graph, wanted: dict[Node, Cut], ctx: PassContext) -> Graph:
    o = ctx.builder
    new: dict[Node, Node] = {}

    def rows(source: Node, cut: Cut | None) -> Node:
        if cut is None or wanted.get(source) == cut:
            return new[source]
        if cut.index is not None:
            index = o.expand(cut.index, [*cut.index.shape[:2], source.shape[2]])
            return o.call("aten.gather.default", new[source], cut.dim, index)
        return o.call("aten.slice.Tensor", new[source], cut.dim, cut.start, cut.end, 1)

    def argument(arg: Any, cut: Cut | None) -> Any:
        if isinstance(arg, tuple):
            return tuple(argument(a, cut) for a in arg)
        return None if arg is None else rows(arg, cut)

    for node in graph.nodes():
        if node in wanted:
            cuts = _argument_cuts(node, wanted[node])
            assert cuts is not None
            args = tuple(argument(a, c) for a, c in zip(node.args, cuts, strict=True))
            new[node] = _with_rows(o, node, args, wanted[node])
        elif (taken := _taken(node)) is not None and wanted.get(node.args[0]) == taken:  # type: ignore[arg-type]
            kept = new[node.args[0]]  # type: ignore[index]
            one = node.op.name == "aten.select.int"
            new[node] = kept if not one else o.call("aten.select.int", kept, taken.dim, 0)
        else:
            new[node] = o.rebuild(node, argument(node.args, None)) if node.args else node
    return graph.with_roots(new)


def _with_rows(o: Any, node: Node, args: tuple, cut: Cut) -> Node:
    """The node on fewer rows; shapes written in its attributes follow."""
    if node.op.name == "aten.reshape.default":
        shape = [*args[0].shape[: cut.dim + 1], *node.shape[cut.dim + 1 :]]
        return o.reshape(args[0], shape)
    return o.rebuild(node, args)
