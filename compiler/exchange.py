"""Putting nodes into a graph in the place of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infopt.compiler.graph import Graph, Node
from infopt.compiler.infer import Builder


def exchange(
    graph: Graph, changes: Mapping[Node, Node], o: Builder, images: dict[Node, Node] | None = None
) -> Graph:
    """The graph with nodes exchanged for others everywhere they are read.

    A replacement may read old nodes, which are exchanged in turn; one that reads the very node it
    replaces wraps it. Types above a change are inferred anew. `images`, if given, receives what
    every node of the graph became.
    """
    new: dict[Node, Node] = {} if images is None else images

    def moved(arg: Any, inside: dict[Node, Node]) -> Any:
        if isinstance(arg, tuple):
            return tuple(moved(a, inside) for a in arg)
        if arg is None:
            return None
        if arg in new:
            return new[arg]
        # a node of the replacement, or the replaced node itself inside its wrapper
        if arg not in inside:
            inside[arg] = o.rebuild(arg, moved(arg.args, inside))
        return inside[arg]

    for node in graph.nodes():
        if node in changes:
            new[node] = moved(changes[node], {})
        else:
            new[node] = o.rebuild(node, moved(node.args, {})) if node.args else node
    return graph.with_roots(new)
