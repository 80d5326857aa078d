"""The IR: immutable, hash-consed nodes, and graphs of them."""

from __future__ import annotations

import enum
import hashlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import sympy
import torch

from infopt.compiler.types import Dim, Size, TensorType

if TYPE_CHECKING:
    from infopt.compiler.ops import Op

Type: TypeAlias = "TensorType | tuple[TensorType | None, ...]"
Attrs: TypeAlias = "tuple[tuple[str, Any], ...]"


class Stage(enum.IntEnum):
    """Where in the pipeline a graph is. Stages never go back."""

    NORMALIZE = 0
    COMPRESS = 1
    FUSE = 2
    LAYOUT = 3


def attr_key(value: Any) -> Any:
    """A hashable form in which 1, True, 1.0 and -0.0 differ (Python calls most of them equal)."""
    if isinstance(value, tuple):
        return tuple(attr_key(v) for v in value)
    if isinstance(value, bool | float):
        return (type(value).__name__, repr(value))
    return value


class Node:
    """One value: an op applied to other values.

    op      the operation; its reference is the meaning
    args    tensor arguments in schema order: a Node, None (optional, absent), or a tuple of those
    attrs   every other argument of the op by name, defaults filled in
    type    TensorType, or a tuple of them for an op with several results (read through `getitem`)
    serial  0 for pure ops, so that equal nodes are one object; unique for each impure one

    Nodes are made by a Builder (infer.py), never directly, so that a type always is the one its
    reference has.
    """

    __slots__ = ("op", "args", "attrs", "type", "serial", "__weakref__")
    op: Op
    args: tuple[Any, ...]  # Node, None or a tuple of those: narrowed by who knows the op
    attrs: Attrs
    type: Type
    serial: int

    _table: weakref.WeakValueDictionary[Any, Node] = weakref.WeakValueDictionary()

    def __new__(cls, op: Op, args: tuple, attrs: Attrs, type: Type, serial: int = 0) -> Node:
        key = (op, args, attr_key(attrs), type, serial)
        known = cls._table.get(key)
        if known is not None:
            return known
        node = object.__new__(cls)
        for name, value in zip(cls.__slots__, (op, args, attrs, type, serial), strict=False):
            object.__setattr__(node, name, value)
        # setdefault: two threads may build the same node at once
        return cls._table.setdefault(key, node)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a Node is immutable; build a new one")

    def __reduce__(self) -> Any:
        raise TypeError("a Node is not picklable; use Graph.to_fx or the text dump")

    @property
    def inputs(self) -> Iterator[Node]:
        """The nodes this one reads, in order, repeated where read twice."""
        for arg in self.args:
            if isinstance(arg, tuple):
                yield from (a for a in arg if a is not None)
            elif arg is not None:
                yield arg

    def attr(self, name: str) -> Any:
        """The value of one attribute; KeyError names the ones there are."""
        for key, value in self.attrs:
            if key == name:
                return value
        raise KeyError(
            f"{self.op.name} has no attribute {name!r}, only {[k for k, _ in self.attrs]}"
        )

    @property
    def tensor_type(self) -> TensorType:
        """The type of a single-result node."""
        if not isinstance(self.type, TensorType):
            raise TypeError(f"{self.op.name} has {len(self.type)} results; read one with getitem")
        return self.type

    @property
    def shape(self) -> tuple[Size, ...]:
        return self.tensor_type.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor_type.dtype

    def __repr__(self) -> str:
        return f"<{self.op.name} {type_text(self.type)}>"


Output: TypeAlias = "Node | sympy.Expr | int | float | bool | str | None"


def type_text(type: Type) -> str:
    if isinstance(type, TensorType):
        return str(type)
    return "(" + ", ".join("-" if t is None else str(t) for t in type) + ")"


@dataclass(frozen=True, eq=False)
class Graph:
    """A program: a pure function of its inputs and constants.

    inputs    input nodes in calling order
    scalars   integer inputs, passed after the tensors: the size each one is (usually one dim)
    outputs   flat results: nodes, sizes (ints or expressions over dims), or plain constants
    consts    tensors of the `const` nodes, by name
    dims      the dynamic sizes that types and attributes may mention
    updates   input index -> node whose value that input holds after the call (in-place programs)
    stage     how far the pipeline has come
    results   the type each output had in torch's own run: the strides a caller sees
    memory    whose memory each output lies in: the name of an input, or a number that outputs in
              one new piece of memory share; empty where nobody asks
    offsets   where in that memory each output begins, in its own elements: counted from the begin
              of the input, or of the new memory; empty like memory
    """

    inputs: tuple[Node, ...]
    outputs: tuple[Output, ...]
    consts: Mapping[str, torch.Tensor] = field(default_factory=dict)
    dims: tuple[Dim, ...] = ()
    updates: tuple[tuple[int, Node], ...] = ()
    stage: Stage = Stage.NORMALIZE
    results: tuple[TensorType | None, ...] = ()
    scalars: tuple[Size, ...] = ()
    memory: tuple[int | str | None, ...] = ()
    offsets: tuple[Size, ...] = ()

    def __post_init__(self) -> None:
        if not self.results:
            types = tuple(o.tensor_type if isinstance(o, Node) else None for o in self.outputs)
            object.__setattr__(self, "results", types)

    @property
    def roots(self) -> tuple[Node, ...]:
        """Every node the graph must compute: outputs, then updates."""
        return tuple(o for o in self.outputs if isinstance(o, Node)) + tuple(
            n for _, n in self.updates
        )

    @cached_property
    def _order(self) -> tuple[Node, ...]:
        order: dict[Node, None] = dict.fromkeys(self.inputs)
        for root in self.roots:
            stack: list[tuple[Node, bool]] = [(root, False)]
            while stack:
                node, ready = stack.pop()
                if node in order:
                    continue
                if ready:
                    order[node] = None
                    continue
                stack.append((node, True))
                stack.extend((n, False) for n in reversed(tuple(node.inputs)) if n not in order)
        # random ops keep the order of the program; everything else only follows its inputs
        if not any(n.serial for n in order):
            return tuple(order)
        return _by_serial(tuple(order))

    def nodes(self) -> tuple[Node, ...]:
        """All nodes, inputs first, each after those it reads; impure ones in program order."""
        return self._order

    @cached_property
    def _users(self) -> dict[Node, tuple[Node, ...]]:
        users: dict[Node, list[Node]] = {n: [] for n in self._order}
        for node in self._order:
            for source in dict.fromkeys(node.inputs):
                users[source].append(node)
        return {n: tuple(u) for n, u in users.items()}

    def users(self, node: Node) -> tuple[Node, ...]:
        """The nodes that read this one, each once, in order."""
        return self._users[node]

    def is_output(self, node: Node) -> bool:
        """True where the value leaves the graph as a result or an update."""
        return node in self._root_set

    @cached_property
    def _root_set(self) -> frozenset[Node]:
        return frozenset(self.roots)

    def use_count(self, node: Node) -> int:
        """How many nodes and results read this value."""
        return len(self._users[node]) + sum(r is node for r in self.roots)

    def map(self, f: Callable[[Node, tuple], Node]) -> Graph:
        """Rebuild every non-input node bottom up: f(old node, new args) -> new node.

        Unchanged nodes come out as the same objects, so mapping to nothing new returns self.
        """
        new: dict[Node, Node] = {}

        def moved(arg: Any) -> Any:
            if isinstance(arg, tuple):
                return tuple(moved(a) for a in arg)
            return None if arg is None else new[arg]

        for node in self._order:
            new[node] = f(node, moved(node.args)) if node.args else f(node, ())
        return self.with_roots(new)

    def with_roots(self, new: Mapping[Node, Node]) -> Graph:
        """The graph with inputs, outputs and updates exchanged for their images under `new`."""
        outputs = tuple(new[o] if isinstance(o, Node) else o for o in self.outputs)
        updates = tuple((i, new[n]) for i, n in self.updates)
        inputs = tuple(new[n] for n in self.inputs)
        if (outputs, updates, inputs) == (self.outputs, self.updates, self.inputs):
            return self
        return replace(self, inputs=inputs, outputs=outputs, updates=updates)

    def with_consts(self, consts: Mapping[str, torch.Tensor]) -> Graph:
        """The graph with these constants added; those no node reads any more are dropped."""
        merged = {**self.consts, **consts}
        used = {n.attr("name") for n in self._order if n.op.name == "const"}
        kept = {k: v for k, v in merged.items() if k in used}
        if kept.keys() == self.consts.keys() and all(kept[k] is self.consts[k] for k in kept):
            return self
        return replace(self, consts=kept)

    @cached_property
    def key(self) -> str:
        """sha256 of ops, attributes, types, edges and dims. Constants count by type only."""
        index = {n: i for i, n in enumerate(self._order)}

        def ref(arg: Any) -> Any:
            return (
                tuple(map(ref, arg))
                if isinstance(arg, tuple)
                else (None if arg is None else index[arg])
            )

        digest = hashlib.sha256()
        for node in self._order:
            line = (node.op.key, ref(node.args), attr_key(node.attrs), type_text(node.type))
            digest.update(repr(line).encode())
        ends = [ref(o) if isinstance(o, Node) else repr(o) for o in self.outputs]
        updates = [(i, index[n]) for i, n in self.updates]
        dims = [(d.name, d.lo, d.hi, d.counts) for d in self.dims]
        results = [str(t) for t in self.results]
        scalars = [str(s) for s in self.scalars]
        memory = (self.memory, [str(s) for s in self.offsets])
        digest.update(
            repr((ends, updates, dims, results, scalars, memory, int(self.stage))).encode()
        )
        return digest.hexdigest()

    def __str__(self) -> str:
        from infopt.compiler.dump import (
            text,
        )  # dump reads graphs; printing one is its only way back

        return text(self)

    @classmethod
    def from_fx(cls, module: torch.fx.GraphModule, inputs: Sequence[Any] | None = None) -> Graph:
        """The graph of an fx.GraphModule.

        inputs: example inputs to trace it with; not needed for a module of aten operators whose
        nodes carry fake values in meta["val"], as torch.export makes. Sizes are fixed to the
        example's. Raises TraceDeclined where the program is not a pure tensor program.
        """
        from infopt.compiler.tracing import (
            capture,
            trace,  # tracing builds graphs: it stands above them
        )

        return trace.from_fx(module if inputs is None else capture.retraced(module, inputs))

    def to_fx(self) -> torch.fx.GraphModule:
        """A runnable fx.GraphModule that computes the same with the ops' references."""
        from infopt.compiler.export_fx import to_fx

        return to_fx(self)


def _by_serial(order: tuple[Node, ...]) -> tuple[Node, ...]:
    """Topological order in which impure nodes come by serial number."""
    impure = sorted((n for n in order if n.serial), key=lambda n: n.serial)
    done: dict[Node, None] = {}

    def visit(root: Node) -> None:
        stack = [(root, False)]
        while stack:
            node, ready = stack.pop()
            if node in done:
                continue
            if ready:
                done[node] = None
            else:
                stack.append((node, True))
                stack.extend((n, False) for n in reversed(tuple(node.inputs)))

    for node in order:
        if not node.args and not node.serial:
            visit(node)
    for node in impure:
        visit(node)
    for node in order:
        visit(node)
    return tuple(done)


def flatten_nodes(values: Iterable[Any]) -> Iterator[Node]:
    """The nodes among arguments, looking into tuples."""
    for value in values:
        if isinstance(value, Node):
            yield value
        elif isinstance(value, tuple | list):
            yield from flatten_nodes(value)
