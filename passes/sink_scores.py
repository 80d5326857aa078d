"""[scores, sink of each head] below a softmax, its last column dropped: attention with sinks."""

from __future__ import annotations

from infopt.compiler.graph import Node


def sink_scores(node: Node) -> tuple[Node, Node] | None:
    """(scores [B, H, T, S], sinks [H]) of what a softmax reads, None where it is something else.

    The rows' maxima may have been taken away before, which changes no softmax.
    """
    if node.op.name == "aten.sub.Tensor" and node.attr("alpha") == 1 and _is_maximum(node):
        node = node.args[0]  # type: ignore[assignment]
    rank = node.tensor_type.rank
    if node.op.name != "aten.cat.default" or node.attr("dim") not in (-1, rank - 1) or rank != 4:
        return None
    parts = list(node.inputs)
    if len(parts) != 2:
        return None
    scores, column = parts
    if column.op.name == "aten.expand.default":
        column = next(column.inputs)
    if column.op.name != "aten.reshape.default":
        return None
    sinks = next(column.inputs)
    heads = scores.shape[1]
    if column.shape != (1, heads, 1, 1) or sinks.shape != (heads,):
        return None
    return scores, sinks


def _is_maximum(difference: Node) -> bool:
    """True for x - max(x, -1)."""
    x, most = difference.args
    assert isinstance(most, Node)
    if most.op.name == "getitem" and most.attr("index") == 0:
        most = next(most.inputs)
    elif most.op.name != "aten.amax.default":
        return False
    if most.op.name not in ("aten.max.dim", "aten.amax.default") or most.args[0] is not x:
        return False
    dim = most.attr("dim")
    last = difference.tensor_type.rank - 1
    return most.attr("keepdim") and (dim in (-1, last) or tuple_of(dim) in ((-1,), (last,)))


def tuple_of(dim: object) -> tuple | None:
    return tuple(dim) if isinstance(dim, tuple | list) else None
