"""Layers whose weights compression looks at: linear layers and tables of rows, by their names."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from re import sub
from typing import Any

import torch

from infopt.codegen.weight_formats.rounding import Moments
from infopt.compiler.alias import is_view
from infopt.compiler.graph import Graph, Node
from infopt.compiler.interpret import Watch, evaluate, interpret
from infopt.compiler.ops import CONST
from infopt.compiler.pipeline import PassContext

LINEARS = {"aten.linear.default": 1, "linear_act": 1, "gated_linear": 2}  # how many weights
_TABLE = "aten.embedding.default"


def is_table(node: Node) -> bool:
    """True for rows of a table by index, which multiply nothing."""
    return node.op.name == _TABLE


def weights_of(node: Node) -> tuple[Node, ...]:
    """The matrices of a layer."""
    first = 0 if is_table(node) else 1
    return node.args[first : first + LINEARS.get(node.op.name, 1)]  # type: ignore[return-value]


def source_of(weight: Node) -> Node | None:
    """The constant that a weight is, or is a view of."""
    while weight.op is not CONST:
        if not is_view(weight) or len(tuple(weight.inputs)) != 1:
            return None
        (weight,) = weight.inputs
    return weight if weight.tensor_type.is_static else None


def names_of(node: Node) -> tuple[str, ...]:
    """The names of a layer's weights; () where one of them is not a constant."""
    sources = [source_of(w) for w in weights_of(node)]
    return () if None in sources else tuple(str(s.attr("name")) for s in sources if s)


def label_of(node: Node) -> str:
    """What a report calls a layer."""
    return " and ".join(names_of(node)) or repr(node)


def value_of(graph: Graph, weight: Node) -> torch.Tensor:
    """The tensor of a constant or of a view of one."""
    if weight.op is CONST:
        return graph.consts[str(weight.attr("name"))]
    (source,) = weight.inputs
    return evaluate(graph, weight, {source: value_of(graph, source)}, {})


def foreign_reader(graph: Graph, node: Node) -> str:
    """Why a layer's weight cannot be exchanged for another form, "" where only layers read it."""
    for weight in weights_of(node):
        source = source_of(weight)
        assert source is not None
        others = [u for u in graph.users(source) if u.op.name not in LINEARS]
        if others and source is weight:
            return f"its weight is also read by {others[0].op.name}"
    return ""


def name_matches(name: str, pattern: str) -> bool:
    """Whether a weight's name fits a pattern of fnmatch in which whatever is not a letter, a digit
    or a wildcard counts as an underscore."""

    def plain(text: str) -> str:
        return sub(r"[^0-9A-Za-z*?\[\]]+", "_", text)

    return fnmatchcase(plain(name).removeprefix("p_"), plain(pattern))


def moments_of(graph: Graph, ctx: PassContext, layers: Iterable[Node]) -> dict[Node, Moments]:
    """What calibration inputs bring to linear layers, by what a layer reads."""
    found: dict[Any, Moments] = {}
    for node in layers:
        x = node.args[0]
        found.setdefault(x, Moments(int(x.shape[-1])))  # type: ignore[union-attr]

    def watch(node: Node, value: Any) -> None:
        if node in found:
            found[node].add(value)

    watch_calibration(graph, ctx, watch)
    return found


def watch_calibration(graph: Graph, ctx: PassContext, watch: Watch) -> None:
    """Run the graph on the calibration inputs, and show every value on the way."""
    for sample in ctx.calibration:
        copies = [v.clone() if isinstance(v, torch.Tensor) else v for v in sample]
        interpret(graph, copies, watch)
