"""Which values share memory in torch's own run of a graph."""

from __future__ import annotations

from infopt.compiler.graph import Graph, Node
from infopt.compiler.types import TensorType


def is_view(node: Node) -> bool:
    """True where torch gives the result in the memory of an input, so that it costs nothing."""
    schema = getattr(node.op.reference, "_schema", None)
    if schema is None or not isinstance(node.type, TensorType):
        return False
    if schema.is_mutable or not any(r.alias_info is not None for r in schema.returns):
        return False
    source = next(node.inputs, None)
    if source is None or not isinstance(source.type, TensorType):
        return False
    if node.dtype != source.dtype or dict(node.attrs).get("copy"):
        return False
    if node.op.name == "aten.contiguous.default":
        return source.type.is_contiguous
    may_copy = node.op.name.startswith(("aten.reshape", "aten.flatten"))
    return not may_copy or source.type.is_contiguous or node.shape == source.shape


def owners_of_results(graph: Graph) -> set[Node]:
    """The nodes in whose memory results and updates lie: what a caller may hold and write to.

    A pass that drops one of these (a copy) or shares it (a constant) changes what callers see.
    """
    found: set[Node] = set()
    for node in graph.roots:
        while is_view(node):
            node = next(node.inputs)
        found.add(node)
    return found
