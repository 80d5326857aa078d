"""Results that lie in memory in a packed form, which only some kernels read.

A kernel that rounds its result to bytes writes them as the next product wants them
(csrc/byte_panels.h). In the graph such a value is a tensor of numbers like any other; so lowering
uses these kernels only where makers and readers of every packed value agree.
"""

from __future__ import annotations

from collections.abc import Iterator

from infopt.codegen.kernel import Emitter, argument_types, emitters, find_emitter
from infopt.compiler.graph import Graph, Node
from infopt.compiler.ops import GETITEM
from infopt.compiler.target import Target


def packs(node: Node, emitter: Emitter) -> bool:
    """True where the kernel of a node makes or takes packed values."""
    return bool(_taken(node, emitter)) or any(_made(node, emitter))


def packing_agrees(graph: Graph, target: Target) -> bool:
    """Whether every packed value of the graph is read in that form by all, and by kernels."""
    made: set[tuple[Node, int]] = set()
    taken: dict[tuple[Node, int], set[tuple[Node, int]]] = {}
    for node in graph.nodes():
        for emitter in emitters(node.op.name):
            if emitter.kind != target.kind or not packs(node, emitter):
                continue
            if find_emitter(node, target)[0] is not emitter:
                return False
            made |= {(node, i) for i, packed in enumerate(_made(node, emitter)) if packed}
            for place in _taken(node, emitter):
                source = _source(node.args[place])  # type: ignore[arg-type]
                taken.setdefault(source, set()).add((node, place))
    used = {value for value in made if any(True for _ in _readers(graph, *value))}
    return set(taken) == used and all(set(_readers(graph, *v)) == taken[v] for v in used)


def _taken(node: Node, emitter: Emitter) -> list[int]:
    if emitter.takes_packed is None:
        return []
    names = emitter.takes_packed(**dict(node.attrs))
    tensors = [p.name for p in node.op.parameters if p.is_tensor]
    return [tensors.index(name) for name in names]


def _made(node: Node, emitter: Emitter) -> list[bool]:
    if emitter.packed is None:
        return []
    sizes = emitter.packed(*argument_types(node), **dict(node.attrs))
    return [size is not None for size in sizes]


def _source(node: Node) -> tuple[Node, int]:
    if node.op is GETITEM:
        return node.args[0], node.attr("index")  # type: ignore[return-value]
    return node, 0


def _readers(graph: Graph, node: Node, index: int) -> Iterator[tuple[Node | None, int]]:
    """Who reads a result, and as which argument; None for whoever calls the program."""
    for user in graph.users(node):
        if user.op is GETITEM and user.attr("index") == index:
            yield from _readers(graph, user, 0)
        elif user.op is not GETITEM:
            yield from ((user, i) for i, a in enumerate(user.args) if a is node)
    if graph.is_output(node):
        yield None, 0
