"""Runs of ops along an axis, and a graph in which they are computed slice by slice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Any

from infopt.compiler.alias import is_view
from infopt.compiler.graph import Graph, Node
from infopt.compiler.infer import Builder
from infopt.compiler.ops import CONST, INPUT
from infopt.compiler.pipeline import PassContext
from infopt.passes.slicing_rules import BATCH, ROWS, Axis, cut_operands, part_attrs

_PANEL = 16  # rows that kernels take at once: slices are multiples of it


@dataclass(frozen=True)
class Run:
    """Nodes, in order, that leave the parts of an axis apart."""

    axis: Axis
    nodes: tuple[Node, ...]

    @property
    def first(self) -> Node:
        return self.nodes[0]

    def __str__(self) -> str:
        parts = "rows" if self.axis.kind == ROWS else "of a batch"
        return f"{len(self.nodes)} ops over {self.axis.count} {parts}"

    @property
    def rows_of_part(self) -> int:
        """How many rows of the longest value one part has."""
        values = [n for n in self.nodes if n.tensor_type.rank > 1]
        rows = [int(n.tensor_type.numel) // int(n.shape[-1]) for n in values]
        return max(rows, default=0) // self.axis.count

    def slices(self, count: int) -> list[tuple[int, int]]:
        """(first, end) of at most `count` slices; of rows whole panels, but for the last."""
        unit = _PANEL if self.axis.kind == ROWS else 1
        step = -(-self.axis.count // (count * unit)) * unit
        starts = range(0, self.axis.count, step)
        return [(i, min(i + step, self.axis.count)) for i in starts]


def batch_runs(graph: Graph) -> list[Run]:
    """The run of everything that leaves the first dimension of the inputs apart."""
    found: list[Run] = []
    for node in graph.inputs:
        count = node.shape[0] if node.tensor_type.rank else 0
        if not isinstance(count, int) or count < 2 or any(r.axis.count == count for r in found):
            continue
        axis = Axis(BATCH, count)
        inside: dict[Node, None] = {}
        tainted: set[Node] = set()
        for n in graph.nodes():
            cut = None if n.op in (INPUT, CONST) else cut_operands(n, axis)
            known = cut is not None and (node in cut or any(c in inside for c in cut))
            whole = [a for a in n.inputs if cut is None or a not in cut]
            if known and not any(a in inside for a in whole) and not tainted & set(n.inputs):
                inside[n] = None
            elif any(a in inside or a in tainted for a in n.inputs):
                tainted.add(n)
        run = Run(axis, tuple(inside))
        if inside and not _is_slice(graph, run):
            found.append(run)
    return found


def row_runs(graph: Graph) -> list[Run]:
    """Runs around values that are wider than what they are made from, each as short as it can be
    for its ends to be narrow."""
    found: list[Run] = []
    taken: set[Node] = set()
    position = {n: i for i, n in enumerate(graph.nodes())}
    for node in graph.nodes():
        axis = _row_axis(node)
        if node in taken or axis is None:
            continue
        run = [node]
        while True:
            best, least = None, _ends(graph, run, axis)
            for user in _users(graph, run):
                if user not in taken and _joins(graph, user, run, axis):
                    ends = _ends(graph, [*run, user], axis)
                    if ends <= least:
                        best, least = user, ends
            if best is None:
                break
            run.append(best)
        made = Run(axis, tuple(sorted(run, key=position.__getitem__)))
        if len(run) > 1 and _inner(graph, run) > 0 and not _is_slice(graph, made):
            found.append(made)
            taken.update(run)
    return found


def sliced(graph: Graph, runs: Iterable[Run], count: int, ctx: PassContext) -> Graph:
    """The graph with the runs computed slice by slice."""
    runs = [run for run in runs if ctx.admits(run.first)]
    run_of = {node: run for run in runs for node in run.nodes}
    new: dict[Node, Node] = {}

    def moved(arg: Any) -> Any:
        if isinstance(arg, tuple):
            return tuple(moved(a) for a in arg)
        return None if arg is None else new[arg]

    for unit in _in_order(graph, run_of):
        if isinstance(unit, Run):
            new.update(_assembled(graph, unit, count, new, ctx.builder))
        else:
            new[unit] = ctx.builder.rebuild(unit, moved(unit.args)) if unit.args else unit
    return graph.with_roots(new)


def _in_order(graph: Graph, run_of: dict[Node, Run]) -> list[Node | Run]:
    """Runs whole and other nodes one by one, each after what it reads."""
    position: dict[Node | Run, int] = {}
    for i, node in enumerate(graph.nodes()):
        position.setdefault(run_of.get(node, node), i)
    sources: dict[Node | Run, set[Node | Run]] = {unit: set() for unit in position}
    for node in graph.nodes():
        unit = run_of.get(node, node)
        sources[unit] |= {run_of.get(a, a) for a in node.inputs} - {unit}
    users: dict[Node | Run, list[Node | Run]] = {unit: [] for unit in position}
    for unit, read in sources.items():
        for source in read:
            users[source].append(unit)
    waiting = {unit: len(read) for unit, read in sources.items()}
    ready = [(position[unit], unit) for unit, n in waiting.items() if not n]
    heapify(ready)
    order = []
    while ready:
        _, unit = heappop(ready)
        order.append(unit)
        for user in users[unit]:
            waiting[user] -= 1
            if not waiting[user]:
                heappush(ready, (position[user], user))
    return order


def _assembled(
    graph: Graph, run: Run, count: int, outside: dict[Node, Node], o: Builder
) -> dict[Node, Node]:
    """What others read of a run, put together from slices. outside: the images of what it reads."""
    made: dict[Node, list[Node]] = {n: [] for n in _exported(graph, run)}
    for first, end in run.slices(count):
        parts: dict[Node, Node] = {}
        for node in run.nodes:
            cut = cut_operands(node, run.axis) or set()
            for source in cut - parts.keys():
                parts[source] = _cut(outside[source], run.axis, first, end, o)
            args = _part(node.args, cut, parts, outside)
            parts[node] = o.node(node.op, args, part_attrs(node, run.axis, end - first))
        for node, pieces in made.items():
            pieces.append(parts[node])
    whole = {
        node: _shaped(o.call("aten.cat.default", tuple(pieces), 0), node.shape, o)
        for node, pieces in made.items()
    }
    for node in run.nodes:
        source = next(node.inputs)
        if node not in whole and is_view(node) and source in whole:
            whole[node] = o.rebuild(node, (whole[source],))
    return whole


def _part(args: Any, cut: set[Node], parts: dict[Node, Node], outside: dict[Node, Node]) -> Any:
    if isinstance(args, tuple):
        return tuple(_part(a, cut, parts, outside) for a in args)
    if args is None:
        return None
    return parts[args] if args in cut else outside[args]


def _cut(value: Node, axis: Axis, first: int, end: int, o: Builder) -> Node:
    whole = _shaped(value, axis.sizes(value, axis.count), o)
    each: int = whole.shape[0] // axis.count  # type: ignore[assignment]
    return o.call("aten.slice.Tensor", whole, 0, first * each, end * each, 1)


def _shaped(value: Node, shape: tuple[Any, ...], o: Builder) -> Node:
    return value if value.shape == shape else o.reshape(value, list(shape))


def _exported(graph: Graph, run: Run) -> list[Node]:
    """The nodes of a run that others read, themselves or through views."""
    inside = set(run.nodes)
    found: dict[Node, None] = {}
    for node in run.nodes:
        if graph.is_output(node) or any(u not in inside for u in graph.users(node)):
            base = node
            while is_view(base) and next(base.inputs) in inside:
                base = next(base.inputs)
            found[base] = None
    return list(found)


def _is_slice(graph: Graph, run: Run) -> bool:
    """Whether a run is one slice of many already: its results are put together with others."""
    users = [u for n in _exported(graph, run) for u in graph.users(n)]
    return any(u.op.name == "aten.cat.default" and u.attr("dim") == 0 for u in users)


def _row_axis(node: Node) -> Axis | None:
    """The rows of a node that makes wide rows from narrow ones."""
    if node.op in (INPUT, CONST) or isinstance(node.type, tuple) or is_view(node):
        return None
    if not node.tensor_type.is_static or node.tensor_type.rank < 2:
        return None
    count = 1
    for size in node.shape[:-1]:
        count *= int(size)
    axis = Axis(ROWS, count)
    cut = cut_operands(node, axis) if count >= 2 * _PANEL else None
    wide = cut is not None and sum(map(_bytes, cut)) < _bytes(node)
    return axis if wide else None


def _users(graph: Graph, run: list[Node]) -> dict[Node, None]:
    return {u: None for n in run for u in graph.users(n) if u not in run}


def _joins(graph: Graph, node: Node, run: list[Node], axis: Axis) -> bool:
    """Whether a reader of a run can be part of it: it keeps rows apart, and nothing that it reads
    from outside is made from the run."""
    cut = cut_operands(node, axis)
    if cut is None:
        return False
    inside = set(run)
    if any(a in inside and a not in cut for a in node.inputs):
        return False
    stack, seen = [a for a in node.inputs if a not in inside], set[Node]()
    while stack:
        source = stack.pop()
        if source in inside:
            return False
        if source not in seen:
            seen.add(source)
            stack.extend(source.inputs)
    return True


def _ends(graph: Graph, run: list[Node], axis: Axis) -> int:
    """Bytes of what a run reads along its axis and of what others read of it."""
    inside = set(run)
    read = {a for n in run for a in cut_operands(n, axis) or () if a not in inside}
    return sum(map(_bytes, read)) + sum(map(_bytes, _exported(graph, Run(axis, tuple(run)))))


def _inner(graph: Graph, run: list[Node]) -> int:
    """Bytes of a run's values that nobody else reads."""
    kept = _exported(graph, Run(Axis(ROWS, 1), tuple(run)))
    return sum(_bytes(n) for n in run if n not in kept and not is_view(n))


def _bytes(node: Node) -> int:
    return int(node.tensor_type.nbytes)
