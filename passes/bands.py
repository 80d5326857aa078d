"""Which keys a mask lets queries see: those up to a query's own place, and how many of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from infopt.compiler.graph import Graph, Node
from infopt.passes.simplify_masks import all_true, counted

_EXPANDED = ("aten.expand.default",)


@dataclass(frozen=True)
class Band:
    """A bool mask as the and of: key <= query where causal; key > query - window where window is
    not 0; and `rest`, masks of the same graph."""

    causal: bool
    window: int
    rest: tuple[Node, ...]


def band_of(mask: Node, graph: Graph) -> Band:
    """What is surely known of a bool mask [.., T, S]; a window counts only with causality."""
    causal, window = False, 0
    bounds: list[Node] = []
    rest: list[Node] = []
    for part in _conjuncts(mask):
        found = _constant_band(part, graph) if part.op.name == "const" else None
        if found is not None:
            causal, window = True, _narrower(window, found)
        elif _is_causal(part, graph):
            causal = True
        elif (below := _lower_bound(part, graph)) is not None:
            window = _narrower(window, below)
            bounds.append(part)
        elif not all_true(part, graph):
            rest.append(part)
    if not causal:
        return Band(False, 0, (*bounds, *rest))
    return Band(True, window, tuple(rest))


def added_band(mask: Node, graph: Graph, lowest: float) -> Band | None:
    """The band of a mask that is added: 0 where a key is seen, else `lowest` or less. None where
    it is something else. Each query must be a key, or a row that sees nothing is all alike."""
    if mask.tensor_type.rank < 2 or mask.shape[-1] != mask.shape[-2]:
        return None
    if mask.op.name == "const":
        values = graph.consts[mask.attr("name")]
        if not bool(((values == 0) | (values <= lowest)).all()):
            return None
        window = _tensor_band(values == 0)
        return None if window is None else Band(True, window, ())
    if mask.op.name == "aten.where.ScalarOther":
        hidden = mask.attr("other")
    elif mask.op.name == "aten.where.self":
        hidden = _number(mask.args[2], graph)
    else:
        return None
    condition, seen = mask.args[:2]
    assert isinstance(condition, Node)
    number = isinstance(hidden, int | float) and hidden <= lowest
    if not number or _number(seen, graph) != 0 or condition.shape != mask.shape:
        return None
    band = band_of(condition, graph)
    return band if band.causal and not band.rest else None


def _number(node: object, graph: Graph) -> float | None:
    """The number that a value of one element holds, where the graph says it."""
    if not isinstance(node, Node):
        return None
    if node.op.name == "const" and node.tensor_type.numel == 1:
        return graph.consts[node.attr("name")].item()
    if node.op.name in ("aten.full.default", "aten.scalar_tensor.default"):
        return node.attr("fill_value" if "full" in node.op.name else "s")
    return None


def _narrower(a: int, b: int) -> int:
    return min(a, b) if a and b else a or b


def _conjuncts(mask: Node) -> list[Node]:
    while mask.op.name in _EXPANDED:  # a band's lies in its last dims, whatever is before
        inner = next(mask.inputs)
        if inner.tensor_type.rank < 2 or inner.shape[-2:] != mask.shape[-2:]:
            break
        mask = inner
    if mask.op.name != "aten.bitwise_and.Tensor" or mask.dtype != torch.bool:
        return [mask]
    return [part for node in mask.inputs for part in _conjuncts(node)]


def _constant_band(mask: Node, graph: Graph) -> int | None:
    if mask.dtype != torch.bool or mask.tensor_type.rank < 2:
        return None
    return _tensor_band(graph.consts[mask.attr("name")])


def _tensor_band(mask: torch.Tensor) -> int | None:
    """The window of a causal mask, 0 where there is none; None where it is no band, or several."""
    whole = mask.reshape(-1, *mask.shape[-2:])
    seen, below = whole[0], torch.ones_like(whole[0]).tril()
    window = int(seen.sum(-1).amax()) if seen.numel() else 0
    for width in (0, window):
        expected = below.triu(1 - width) if width else below
        if bool((whole == expected).all()):
            return width
    return None


def _lower_bound(node: Node, graph: Graph) -> int | None:
    """w of a mask that is key > query - w, w > 0."""
    if node.op.name not in ("aten.gt.Tensor", "aten.lt.Tensor"):
        return None
    key, query = node.args if ".gt." in node.op.name else node.args[::-1]
    if not isinstance(query, Node) or query.op.name != "aten.sub.Scalar":
        return None
    width = query.attr("other")
    if not isinstance(width, int) or width < 1 or query.attr("alpha") != 1:
        return None
    fits = _places(key, graph, node.tensor_type.rank) == node.tensor_type.rank - 1
    at_query = _places(next(query.inputs), graph, node.tensor_type.rank)
    return width if fits and at_query == node.tensor_type.rank - 2 else None


def _is_causal(node: Node, graph: Graph) -> bool:
    """True for key <= query: query i of the last dim but one sees the keys 0 to i."""
    rank = node.tensor_type.rank
    sides = {"aten.le.Tensor": 1, "aten.ge.Tensor": -1}
    if rank < 2 or node.op.name not in sides:
        return False
    key, query = node.args[:: sides[node.op.name]]
    return (_places(key, graph, rank), _places(query, graph, rank)) == (rank - 1, rank - 2)


def _places(node: object, graph: Graph, rank: int) -> int | None:
    """The dim of a result of that rank along which a value counts places from 0."""
    found = counted(node, graph) if isinstance(node, Node) else None
    if found is None or found[0] is None:
        return None
    assert isinstance(node, Node)
    return found[0] + rank - node.tensor_type.rank
