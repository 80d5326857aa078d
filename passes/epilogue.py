"""What may follow a product as its epilogue: an activation, a residual, read off the graph."""

from __future__ import annotations

from infopt.compiler.graph import Graph, Node

_ACTIVATIONS = {
    "aten.relu.default": "relu",
    "aten.silu.default": "silu",
    "aten.sigmoid.default": "sigmoid",
    "aten.tanh.default": "tanh",
    "aten.relu6.default": "relu6",
    "aten.hardswish.default": "hardswish",
}


def only_reader(graph: Graph, node: Node) -> Node | None:
    """The only reader of a value nobody else sees."""
    users = graph.users(node)
    return users[0] if len(users) == 1 and not graph.is_output(node) else None


def activated(graph: Graph, node: Node) -> tuple[Node, str]:
    """(the activation of a value, its name), or the value itself and "none"."""
    reader = only_reader(graph, node)
    if reader is not None and reader.op.name in _ACTIVATIONS:
        return reader, _ACTIVATIONS[reader.op.name]
    if reader is not None and reader.op.name == "aten.hardtanh.default":
        clipped = (reader.attr("min_val"), reader.attr("max_val"))
        return (reader, "relu6") if clipped == (0, 6) else (node, "none")
    if reader is not None and reader.op.name == "aten.gelu.default":
        return reader, "gelu" if reader.attr("approximate") == "none" else "gelu_tanh"
    quick = _quick_gelu(graph, node)
    return (quick, "quick_gelu") if quick is not None else (node, "none")


def _quick_gelu(graph: Graph, node: Node) -> Node | None:
    """x * sigmoid(1.702 x), whose x is read twice and only there."""
    users = graph.users(node)
    if graph.is_output(node) or len(users) != 2:
        return None
    for scaled, product in (users, users[::-1]):
        if scaled.op.name != "aten.mul.Scalar" or scaled.attr("other") != 1.702:
            continue
        gate = only_reader(graph, scaled)
        if (
            gate is None
            or gate.op.name != "aten.sigmoid.default"
            or only_reader(graph, gate) is not product
        ):
            continue
        if product.op.name == "aten.mul.Tensor" and set(product.args) == {node, gate}:
            return product
    return None


def summed(graph: Graph, node: Node) -> tuple[Node, Node | None]:
    """(the sum of a value and a residual like it, that residual), or the value and None."""
    reader = only_reader(graph, node)
    if reader is None or reader.op.name != "aten.add.Tensor" or reader.attr("alpha") != 1:
        return node, None
    a, b = reader.args
    other = b if a is node else a
    assert isinstance(other, Node)
    if other is node or (other.shape, other.dtype) != (node.shape, node.dtype):
        return node, None
    return reader, other


def why_not(graph: Graph, node: Node) -> str:
    if graph.is_output(node):
        return "is a result"
    readers = [u.op.name for u in graph.users(node)]
    return f"is read by {', '.join(dict.fromkeys(readers))}" + (" twice" * (len(readers) > 1))
