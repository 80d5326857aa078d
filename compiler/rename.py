"""The graph with its sizes called as the user called them: batch instead of s77."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import sympy

from infopt.compiler.graph import Graph, Node
from infopt.compiler.types import TensorType


def rename_dims(graph: Graph, names: Mapping[sympy.Symbol, str]) -> Graph:
    """The same graph in other symbols. Names that two sizes share, or that a size of the graph
    already has, are not given."""
    taken = {d.name for d in graph.dims}
    wanted = [names[d.symbol] for d in graph.dims if d.symbol in names]
    symbols = {
        d.symbol: sympy.Symbol(names[d.symbol], **d.symbol.assumptions0)
        for d in graph.dims
        if d.symbol in names and names[d.symbol] not in taken and wanted.count(names[d.symbol]) == 1
    }
    if not symbols:
        return graph

    def renamed(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(renamed, value))
        if isinstance(value, TensorType):
            shape, strides = renamed(value.shape), renamed(value.strides)
            return TensorType(shape, value.dtype, strides, value.device)
        return value.xreplace(symbols) if isinstance(value, sympy.Expr) else value

    def image(node: Node, args: tuple) -> Node:
        return Node(node.op, args, renamed(node.attrs), renamed(node.type), node.serial)

    moved = graph.map(image)
    return replace(
        moved,
        outputs=tuple(o if isinstance(o, Node) else renamed(o) for o in moved.outputs),
        dims=tuple(replace(d, symbol=symbols.get(d.symbol, d.symbol)) for d in graph.dims),
        results=renamed(graph.results),
        scalars=renamed(graph.scalars),
        offsets=renamed(graph.offsets),
    )
