"""x * cos + rotate_half(x) * sin of queries and keys -> rotary(q, k, cos, sin)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar

from infopt.codegen.kernels.rotary import rotary
from infopt.compiler.errors import CannotInfer
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.pipeline import Pass, PassContext

_MUL = "aten.mul.Tensor"


@dataclass(frozen=True)
class _Turned:
    """One turned value: the node that has it, what is turned, and the tables [B or 1, T, R]."""

    root: Node
    x: Node
    cos: Node
    sin: Node
    interleaved: bool


@dataclass(frozen=True)
class FuseRotary(Pass):
    """q * cos + rotate_half(q) * sin, the same for k -> rotary(q, k, cos, sin)

    rotate_half is cat(-x[R/2:], x[:R/2]), or the same of neighbouring pairs; features from R on may
    pass unturned, joined by cat.
    """

    name: ClassVar[str] = "fuse-rotary"
    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        pairs: dict[tuple[Node, Node], list[_Turned]] = defaultdict(list)
        for node in graph.nodes():
            try:
                found = _turned(graph, node, ctx.builder)
            except CannotInfer as error:
                ctx.site(node, False, str(error))
                continue
            if found is not None:
                pairs[found.cos, found.sin].append(found)
        changes: dict[Node, Node] = {}
        place = {n: i for i, n in enumerate(graph.nodes())}
        for turned in pairs.values():
            for first, second in zip(turned[::2], turned[1::2], strict=False):
                reason = _fuse(first, second, ctx.builder, place, changes)
                ctx.site(first.root, reason is None, reason or "")
            if len(turned) % 2:
                ctx.site(turned[-1].root, False, "no second value is turned by these angles")
        return ctx.exchange(graph, changes) if changes else graph


def _fuse(
    first: _Turned,
    second: _Turned,
    o: Builder,
    place: dict[Node, int],
    changes: dict[Node, Node],
) -> str | None:
    q, k = first.x, second.x
    if (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]) or q.dtype != k.dtype:
        return f"{q.type} and {k.type} have other tokens"
    if first.interleaved is not second.interleaved:
        return "one is turned in halves, the other in neighbours"
    if _reads(second.x, first.root, place) or _reads(first.x, second.root, place):
        return "one is computed from the other"
    try:
        made = o.call(rotary, q, k, first.cos, first.sin, interleaved=first.interleaved)
        results = [o.getitem(made, 0), o.getitem(made, 1)]
    except CannotInfer as error:
        return str(error)
    for turned, result in zip((first, second), results, strict=True):
        if (result.shape, result.dtype) != (turned.root.shape, turned.root.dtype):
            return f"the result would be {result.type}, expected {turned.root.type}"
    changes.update({first.root: results[0], second.root: results[1]})
    return None


def _reads(value: Node, other: Node, place: dict[Node, int]) -> bool:
    """True where `other` is among what `value` is computed from; only later nodes can read it."""
    seen: set[Node] = set()
    stack = [value]
    while stack:
        node = stack.pop()
        if node is other:
            return True
        if node not in seen:
            seen.add(node)
            stack.extend(n for n in node.inputs if place[n] >= place[other])
    return False


def _turned(graph: Graph, node: Node, o: Builder) -> _Turned | None:
    """What x * cos + rotate_half(x) * sin is here, or None."""
    if node.op.name != "aten.add.Tensor" or node.attr("alpha") != 1:
        return None
    for plain, quarter in (node.args, node.args[::-1]):
        assert isinstance(plain, Node) and isinstance(quarter, Node)
        if plain.op.name != _MUL or quarter.op.name != _MUL:
            continue
        for half, sin in (quarter.args, quarter.args[::-1]):
            x, interleaved = _rotated(half)
            if x is None or x not in plain.args:
                continue
            cos = plain.args[1] if plain.args[0] is x else plain.args[0]
            tables = [_table(t, x, o) for t in (cos, sin)]
            if tables[0] is None or tables[1] is None:
                return None
            root, source = _with_the_rest(graph, node, x)
            return _Turned(root, source, tables[0], tables[1], interleaved)
    return None


def _rotated(node: Node | None | tuple) -> tuple[Node | None, bool]:
    """(x, whether pairs are neighbours) of x turned by a right angle."""
    x = _rotated_half(node)
    return (x, False) if x is not None else (_rotated_neighbours(node), True)


def _rotated_neighbours(node: Node | None | tuple) -> Node | None:
    """x of stack((-x[1::2], x[0::2]), -1).flatten(-2)."""
    if not isinstance(node, Node) or node.op.name != "aten.reshape.default":
        return None
    stack = next(node.inputs)
    if stack.op.name != "aten.stack.default" or stack.tensor_type.rank != node.tensor_type.rank + 1:
        return None
    parts = stack.args[0]
    rank = stack.tensor_type.rank
    if not isinstance(parts, tuple) or len(parts) != 2 or stack.attr("dim") % rank != rank - 1:
        return None
    odd, even = parts
    if odd is None or even is None or odd.op.name != "aten.neg.default":
        return None
    odd = next(odd.inputs)
    for start, part in ((1, odd), (0, even)):
        if part.op.name != "aten.slice.Tensor" or part.attr("step") != 2:
            return None
        whole = part.attr("end") is None or part.attr("end") >= node.shape[-1]
        last = part.attr("dim") % part.tensor_type.rank == part.tensor_type.rank - 1
        if (part.attr("start") or 0) != start or not whole or not last:
            return None
    x = next(odd.inputs)
    return x if x is next(even.inputs) and x.shape == node.shape else None


def _slice_of_last(node: Node) -> tuple[Node, int, int] | None:
    """(x, start, end) of x[..., start:end]."""
    if node.op.name != "aten.slice.Tensor" or node.attr("step") != 1:
        return None
    x = node.args[0]
    assert isinstance(x, Node)
    size = x.shape[-1]
    if node.attr("dim") % x.tensor_type.rank != x.tensor_type.rank - 1 or not isinstance(size, int):
        return None
    return (x, *slice(node.attr("start"), node.attr("end")).indices(size)[:2])


def _rotated_half(node: Node | None | tuple) -> Node | None:
    """x of cat(-x[half:], x[:half])."""
    if not isinstance(node, Node) or node.op.name != "aten.cat.default":
        return None
    rank = node.tensor_type.rank
    parts = node.args[0]
    if not isinstance(parts, tuple) or len(parts) != 2 or node.attr("dim") % rank != rank - 1:
        return None
    negative, low = parts
    if negative is None or low is None or negative.op.name != "aten.neg.default":
        return None
    high, first = _slice_of_last(next(negative.inputs)), _slice_of_last(low)
    if high is None or first is None or high[0] is not first[0]:
        return None
    size = high[0].shape[-1]
    fits = isinstance(size, int) and size % 2 == 0
    halves = fits and high[1:] == (size // 2, size) and first[1:] == (0, size // 2)
    return high[0] if halves else None


def _table(table: Node | None | tuple, x: Node, o: Builder) -> Node | None:
    """The table [B or 1, T, R] behind one that broadcasts over the heads of x [B, H, T, R]."""
    if not isinstance(table, Node) or x.tensor_type.rank != 4:
        return None
    if table.shape == x.shape[2:]:  # one table for all
        return o.reshape(table, [1, *table.shape])
    if table.tensor_type.rank != 4 or table.shape[1] != 1 or table.shape[2:] != x.shape[2:]:
        return None
    if table.shape[0] not in (1, x.shape[0]):
        return None
    shape = (table.shape[0], *table.shape[2:])
    if table.op.name == "aten.reshape.default" and next(table.inputs).shape == shape:
        return next(table.inputs)
    return o.reshape(table, list(shape))


def _with_the_rest(graph: Graph, node: Node, x: Node) -> tuple[Node, Node]:
    """(root, source) where the turned part is joined with the features that are not turned."""
    users = graph.users(node)
    part = _slice_of_last(x)
    alone = (node, x)
    if part is None or part[1] != 0 or len(users) != 1 or graph.is_output(node):
        return alone
    joined = users[0]
    rank = node.tensor_type.rank
    if joined.op.name != "aten.cat.default" or joined.attr("dim") % rank != rank - 1:
        return alone
    parts = joined.args[0]
    if not isinstance(parts, tuple) or len(parts) != 2 or parts[0] is not node or parts[1] is None:
        return alone
    rest = _slice_of_last(parts[1])
    fits = rest is not None and rest == (part[0], part[2], part[0].shape[-1])
    return (joined, part[0]) if fits else alone
