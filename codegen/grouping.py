"""Which nodes are computed together, and in which order.

A unit is one kernel or torch call, or a region: pointwise nodes over one iteration space, read and
written in one pass. A node joins the region of a value it reads unless some other path between
them leaves the region (that would be a cycle), or their loops differ in kind.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from infopt.codegen import fills, pointwise, views
from infopt.codegen.sizes import same
from infopt.compiler.graph import Graph, Node
from infopt.compiler.ops import CONST, GETITEM, INPUT
from infopt.compiler.types import Size

Labels = tuple["int | None", ...]  # per axis of a node: which axis of the region, None where size 1

LEAF, VIEW, PIECES, PIECE, MADE, POINTWISE, CALL = range(7)


@dataclass
class Unit:
    """Nodes that one step computes. labels is filled for regions only."""

    position: int
    nodes: list[Node] = field(default_factory=list)
    labels: dict[Node, Labels] = field(default_factory=dict)
    sizes: tuple[Size, ...] = ()
    scalar: bool = False  # some node needs scalar loops
    vector: bool = False  # some node wants vector loops

    @property
    def is_region(self) -> bool:
        return bool(self.labels)


class Grouping:
    """units in running order; kind and base of every node; which region values others read.

    kinds_of_loops: whether nodes that need scalar loops and such that want vector loops stay apart.
    """

    def __init__(
        self, graph: Graph, kind: Callable[[Node], int], kinds_of_loops: bool = True
    ) -> None:
        self.graph, self._kinds_of_loops = graph, kinds_of_loops
        self.kinds = {n: kind(n) for n in graph.nodes()}
        self.base: dict[Node, Node] = {}
        self.units: list[Unit] = []
        self.unit_of: dict[Node, int] = {}
        self._deps: list[int] = []
        self._forward: dict[int, int] = {}
        self._last_impure: int | None = None
        for position, node in enumerate(graph.nodes()):
            self._visit(position, node)
        self.demanded = self._demanded()
        self.order = self._order()

    def _visit(self, position: int, node: Node) -> None:
        kind = self.kinds[node]
        if kind in (VIEW, PIECE):
            self.base[node] = self.base[_viewed(node, kind)]
            return
        self.base[node] = node
        if kind in (LEAF, PIECES, MADE) or node.op is GETITEM:
            if node.op is GETITEM:
                self.unit_of[node] = self.unit_of[node.args[0]]  # type: ignore[index]
            return
        sources = self._sources(node)
        if kind == POINTWISE and self._join(node, sources):
            return
        unit = Unit(position, [node])
        if kind == POINTWISE:
            axes = [d for d, n in enumerate(node.shape) if n != 1]
            index = {d: i for i, d in enumerate(axes)}
            unit.labels[node] = tuple(index.get(d) for d in range(len(node.shape)))
            unit.sizes = tuple(node.shape[d] for d in axes)
            unit.scalar, unit.vector = self._loops(node)
        number = len(self.units)
        self.units.append(unit)
        self.unit_of[node] = number
        self._deps.append(self._closure(sources))
        if node.serial:
            if self._last_impure is not None:
                last = self._find(self._last_impure)
                self._deps[number] |= self._deps[last] | 1 << last
            self._last_impure = number

    def _loops(self, node: Node) -> tuple[bool, bool]:
        """Whether a node needs scalar loops, and whether it wants vector loops."""
        if not self._kinds_of_loops:
            return False, False
        scalar = pointwise.needs_scalar_loops(node) or pointwise.general_power(node)
        return scalar, not scalar and pointwise.wants_vector_loops(node)

    def _sources(self, node: Node) -> set[int]:
        found = set()
        for a in operands(node):
            number = self.unit_of.get(self.base[a])
            if number is not None:
                found.add(self._find(number))
        return found

    def _closure(self, units: set[int]) -> int:
        bits = 0
        for u in units:
            bits |= self._deps[u] | 1 << u
        return bits

    def _find(self, number: int) -> int:
        while number in self._forward:
            number = self._forward[number]
        return number

    # Regions

    def _join(self, node: Node, sources: set[int]) -> bool:
        scalar, vector = self._loops(node)
        joined: int | None = None
        for number in sorted(sources, reverse=True):
            unit = self.units[number]
            if not unit.is_region or (scalar and unit.vector) or (vector and unit.scalar):
                continue
            labels = self._labels(node, number)
            if labels is None:
                continue
            if joined is None:
                if any(self._deps[s] >> number & 1 for s in sources if s != number):
                    continue
                self._add(node, number, labels, sources)
                joined = number
                unit.scalar |= scalar
                unit.vector |= vector
            else:
                self._merge(node, joined, number, labels)
        return joined is not None

    def _labels(self, node: Node, number: int) -> Labels | None:
        """The axes of `node` in the region's terms; None where it is not one pass over it."""
        unit, found = self.units[number], None
        for a in operands(node):
            if (
                self.unit_of.get(self.base[a]) is None
                or self._find(self.unit_of[self.base[a]]) != number
            ):
                continue
            seen = self.labels_through(a, number)
            if seen is None:
                return None
            padded = (None,) * (len(node.shape) - len(seen)) + seen
            here = tuple(s if n != 1 else None for s, n in zip(padded, node.shape, strict=True))
            if any(s is None and n != 1 for s, n in zip(here, node.shape, strict=True)):
                return None  # the node is larger: its operand is broadcast
            if sum(s is not None for s in here) != len(unit.sizes) or (
                found is not None and here != found
            ):
                return None
            found = here
        return found

    def labels_through(self, node: Node, number: int) -> Labels | None:
        """The labels of a value that views a member of the region, where axes only move."""
        if self.kinds[node] == POINTWISE:
            return self.units[number].labels.get(node)
        if self.kinds[node] != VIEW:
            return None
        source = node.args[0]
        assert isinstance(source, Node)
        labels = self.labels_through(source, number)
        if labels is None or node.dtype != source.dtype:
            return None
        if node.op.name in _PERMUTING:
            return tuple(labels[d] for d in views.permutation(node, len(source.shape)))
        kept = [(n, s) for n, s in zip(source.shape, labels, strict=True) if n != 1]
        here = [n for n in node.shape if n != 1]
        if len(kept) != len(here) or not all(
            same(n, k[0]) for n, k in zip(here, kept, strict=True)
        ):
            return None
        if node.op.name in _CUTTING and node.shape != source.shape:
            return None
        remaining = iter(kept)
        return tuple(None if n == 1 else next(remaining)[1] for n in node.shape)

    def _add(self, node: Node, number: int, labels: Labels, sources: set[int]) -> None:
        self.units[number].nodes.append(node)
        self.units[number].labels[node] = labels
        self.unit_of[node] = number
        self._depend(number, self._closure(sources - {number}))

    def _depend(self, number: int, more: int) -> None:
        """The unit, and all that need it, also need `more`."""
        if not more & ~self._deps[number]:
            return
        self._deps[number] |= more
        bit = 1 << number
        for i, deps in enumerate(self._deps):
            if deps & bit:
                self._deps[i] = deps | more

    def _merge(self, node: Node, first: int, second: int, labels: Labels) -> None:
        """Take another region that `node` reads into its own, if nothing lies between them."""
        a, b = self.units[first], self.units[second]
        if (a.scalar and b.vector) or (a.vector and b.scalar):
            return
        for low, high in ((first, second), (second, first)):
            between = self._deps[high] & ~(1 << low)
            while between:
                lowest = between & -between
                if self._deps[lowest.bit_length() - 1] >> low & 1:
                    return
                between ^= lowest
        own = a.labels[node]
        rename = {
            theirs: mine for theirs, mine in zip(labels, own, strict=True) if theirs is not None
        }
        back = {mine: theirs for theirs, mine in rename.items()}
        if not (self._agree(a, second, rename) and self._agree(b, first, back)):
            return
        for member in b.nodes:
            a.labels[member] = tuple(None if s is None else rename[s] for s in b.labels[member])
            self.unit_of[member] = first
        a.nodes = sorted([*a.nodes, *b.nodes], key=self._index.__getitem__)
        a.position = min(a.position, b.position)
        a.scalar |= b.scalar
        a.vector |= b.vector
        b.nodes, b.labels = [], {}
        self._forward[second] = first
        one, two = 1 << first, 1 << second
        more = (self._deps[first] | self._deps[second]) & ~(one | two)
        self._deps[first], self._deps[second] = more, 0
        for i, deps in enumerate(self._deps):
            if deps & (one | two):
                self._deps[i] = (deps | one | more) & ~two

    def _agree(self, reader: Unit, number: int, rename: Mapping[Any, Any]) -> bool:
        """Whether every node of a region that reads another one does so along the same axes.

        rename: an axis of the region read -> the reader's.
        """
        for node in reader.nodes:
            if number not in self._sources(node):
                continue
            seen = self._labels(node, number)
            if seen is None:
                return False
            if tuple(map(rename.get, seen)) != reader.labels[node]:
                return False
        return True

    @property
    def _index(self) -> dict[Node, int]:
        index = self.__dict__.get("_index_cache")
        if index is None:
            index = self.__dict__["_index_cache"] = {n: i for i, n in enumerate(self.graph.nodes())}
        return index

    # The result

    def _demanded(self) -> set[Node]:
        """Values that somebody outside their own region reads."""
        found = {self.base[r] for r in self.graph.roots}
        for number, unit in enumerate(self.units):
            for node in unit.nodes:
                for a in operands(node):
                    source = self.base[a]
                    if source in self.unit_of and self._find(self.unit_of[source]) != number:
                        found.add(source)
        return found

    def _order(self) -> list[Unit]:
        alive = [i for i, u in enumerate(self.units) if u.nodes]
        users: dict[int, list[int]] = {i: [] for i in alive}
        waiting: dict[int, int] = {}
        for i in alive:
            sources = set().union(*(self._sources(n) for n in self.units[i].nodes)) - {i}
            waiting[i] = len(sources)
            for s in sources:
                users[s].append(i)
        impure = [i for i in alive if self.units[i].nodes[0].serial]
        for earlier, later in pairwise(impure):
            users[earlier].append(later)
            waiting[later] += 1
        ready = [(self.units[i].position, i) for i in alive if not waiting[i]]
        heapq.heapify(ready)
        order = []
        while ready:
            _, i = heapq.heappop(ready)
            order.append(self.units[i])
            for user in users[i]:
                waiting[user] -= 1
                if not waiting[user]:
                    heapq.heappush(ready, (self.units[user].position, user))
        assert len(order) == len(alive), "the regions of a graph depend on each other in a cycle"
        return order


_PERMUTING = {
    f"aten.{n}"
    for n in (
        "permute.default",
        "t.default",
        "transpose.int",
        "swapaxes.default",
        "swapdims.default",
        "mT.default",
        "numpy_T.default",
        "movedim.int",
    )
}
_CUTTING = {
    f"aten.{n}"
    for n in (
        "slice.Tensor",
        "narrow.default",
        "select.int",
        "diagonal.default",
        "unfold.default",
        "view.dtype",
        "as_strided.default",
    )
}


def _viewed(node: Node, kind: int) -> Node:
    """The node whose memory a view shows."""
    source = node.args[0]
    assert isinstance(source, Node)
    if kind == PIECE:
        source = source.args[0]  # type: ignore[assignment]
    assert isinstance(source, Node)
    return source


def operands(node: Node) -> tuple[Node, ...]:
    """The values that computing a node reads; some arguments only lend their dtype or shape."""
    if node.op.name in ("aten.to.other", "aten.type_as.default"):
        return (node.args[0],)  # type: ignore[return-value]
    if node.op.name == "aten.copy.default":
        return (node.args[1],)  # type: ignore[return-value]
    return tuple(node.inputs)


def basic_kind(node: Node, is_kernel: Callable[[Node], bool], generated: bool) -> int:
    """What lowering does with a node."""
    if node.op in (INPUT, CONST):
        return LEAF
    if node.op is GETITEM:
        return PIECE if views.gives_pieces(node.args[0]) else CALL  # type: ignore[arg-type]
    if views.gives_pieces(node):
        return PIECES
    if generated and (fills.fill_value(node) is not None or fills.count_from(node) is not None):
        return MADE
    if is_kernel(node):
        return CALL
    if views.is_view_op(node) and _stays(node):
        return VIEW
    if generated and pointwise.reason_against(node) is None:
        return POINTWISE
    return VIEW if views.is_view_op(node) else CALL


_CHANGING = {
    f"aten.{n}"
    for n in (
        "to.dtype",
        "to.dtype_layout",
        "to.device",
        "to.other",
        "type_as.default",
        "_to_copy.default",
        "clone.default",
        "contiguous.default",
    )
}


def _stays(node: Node) -> bool:
    """False for conversions and copies that do move data."""
    if node.op.name not in _CHANGING:
        return True
    source = node.args[0].tensor_type  # type: ignore[union-attr]
    copies = node.op.name in ("aten._to_copy.default", "aten.clone.default") or dict(
        node.attrs
    ).get("copy")
    return (
        not copies
        and node.dtype == source.dtype
        and views.Layout.of(source).has_strides(node.tensor_type.strides)
    )
