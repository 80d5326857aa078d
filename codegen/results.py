"""Results as tensors that share memory with inputs and with each other exactly where torch's do."""

from __future__ import annotations

from typing import Protocol

import sympy

from infopt.codegen.doors import Doors
from infopt.codegen.grouping import PIECE, VIEW, Grouping
from infopt.codegen.plan_writer import PlanWriter, Value, span_bytes
from infopt.codegen.sizes import same
from infopt.codegen.views import Layout
from infopt.compiler.graph import Graph, Node
from infopt.compiler.ops import INPUT
from infopt.compiler.types import Size, TensorType
from infopt.runtime.plan import Buffer, Output, OutputInput, OutputTensor

Owner = int | str | None


class Lowering(Protocol):
    """What results need of the lowering around them."""

    writer: PlanWriter
    doors: Doors
    grouping: Grouping

    def value(self, node: Node) -> Value: ...
    def copied(self, value: Value, wanted: TensorType) -> Value: ...
    def copy_into(self, value: Value, target: Value) -> None: ...


class Results:
    """The results of one plan.

    Equal values are one node here, but two tensors in torch; and what was read from one tensor
    there may be two values here (of a tensor that was filled from another one, say). So whether
    memory is shared is not seen in the values: it is `Graph.memory` and `Graph.offsets` that say
    it, where the graph came from a program.
    """

    def __init__(self, graph: Graph, low: Lowering) -> None:
        self.graph, self.low = graph, low
        self._written = {i for i, _ in graph.updates}
        self._names = {n.attr("name"): i for i, n in enumerate(graph.inputs)}
        self._owners: dict[int, Owner] = {}  # of buffers that were handed out
        self._new: dict[int, dict[int, Value]] = {}  # by owner, then by result
        self._seen: set[Node] = set()

    def output(self, index: int) -> Output:
        """One result."""
        node, low = self._node(index), self.low
        owner = self.graph.memory[index] if self.graph.memory else None
        if node.op is INPUT and owner in (None, node.attr("name")):
            return OutputInput(low.doors.position[node])
        if isinstance(owner, int):
            if owner not in self._new:
                self._new[owner] = self._new_memory(owner)
            value = self._new[owner][index]
        elif owner is None:
            value = self._value_of_its_own(index)
        else:
            value = self._view_of_input(index, owner)
        low.writer.hand_out(value)
        return OutputTensor(low.writer.view(value))

    def _node(self, index: int) -> Node:
        node = self.graph.outputs[index]
        assert isinstance(node, Node)
        return node

    def _wanted(self, index: int) -> TensorType:
        return self.graph.results[index] or self._node(index).tensor_type

    def _buffer(self, value: Value) -> Buffer:
        return self.low.writer.buffers[value.buffer]

    def _view_of_input(self, index: int, owner: str) -> Value:
        """A view of an input shows what is written to it: the value that it has is not asked."""
        wanted = self._wanted(index)
        if owner not in self._names:  # a parameter that has become a constant
            return self._value_of_its_own(index)
        source = self.low.value(self.graph.inputs[self._names[owner]])
        offset = self.graph.offsets[index]
        return Value(source.buffer, Layout(offset, wanted.shape, wanted.strides, wanted.dtype))

    def _value_of_its_own(self, index: int) -> Value:
        """Nobody says whose memory it is: a node's own is handed out once, views as they lie."""
        node, wanted = self._node(index), self._wanted(index)
        value = self.low.value(node)
        buffer = self._buffer(value)
        # the write must not show in it
        foreign = buffer.kind == "input" and buffer.index in self._written
        foreign |= node in self._seen
        if self.low.grouping.kinds[node] not in (VIEW, PIECE):
            self._seen.add(node)
        if foreign or not value.layout.has_strides(wanted.strides):
            value = self._copied(value, wanted)
        return _as(value, wanted)

    def _new_memory(self, owner: int) -> dict[int, Value]:
        """All results in one new piece of memory: as they lie, or copied to torch's places."""
        members = [i for i, o in enumerate(self.graph.memory) if o == owner]
        found = {i: self.low.value(self._node(i)) for i in members}
        if not self._lie_there(found, owner):
            found = self._placed(found)
        self._owners[found[members[0]].buffer] = owner
        return {i: _as(value, self._wanted(i)) for i, value in found.items()}

    def _lie_there(self, found: dict[int, Value], owner: int) -> bool:
        """Whether the values are one memory's, nobody else's, each where torch has it."""
        index, first = next(iter(found.items()))
        if self._buffer(first).kind == "input":
            return False
        if self._owners.get(first.buffer, owner) != owner:
            return False
        shift = _begin(first) - self._place(index)
        return all(
            value.buffer == first.buffer
            and value.layout.has_strides(self._wanted(i).strides)
            and same(_begin(value), self._place(i) + shift)
            for i, value in found.items()
        )

    def _place(self, index: int) -> Size:
        """The byte of its memory at which a result begins in torch."""
        return self.graph.offsets[index] * self._wanted(index).dtype.itemsize

    def _placed(self, found: dict[int, Value]) -> dict[int, Value]:
        """Copies in one new piece of memory; views of one tensor agree where they overlap."""
        if len(found) == 1:
            ((index, value),) = found.items()
            return {index: self._copied(value, self._wanted(index))}
        ends = [self._place(i) + span_bytes(self._wanted(i)) for i in found]
        fixed = max([e for e in ends if isinstance(e, int)], default=0)
        open_ends = [e for e in ends if not isinstance(e, int)]
        size = sympy.Max(fixed, *open_ends) if open_ends else fixed
        buffer = self.low.writer.buffer("output", size)
        made: dict[int, Value] = {}
        copied: set[tuple[Value, Value]] = set()
        for i, value in found.items():
            wanted = self._wanted(i)
            offset = self.graph.offsets[i]
            layout = Layout(offset, wanted.shape, wanted.strides, wanted.dtype)
            made[i] = Value(buffer, layout)
            if (value, made[i]) not in copied:
                copied.add((value, made[i]))
                self.low.copy_into(_once(value, wanted), _once(made[i], wanted))
        return made

    def _copied(self, value: Value, wanted: TensorType) -> Value:
        """The value in new memory."""
        kept = _once(value, wanted)
        type = TensorType(kept.layout.shape, wanted.dtype, wanted.strides)
        return self.low.copied(kept, type)


def _begin(value: Value) -> Size:
    """The byte of its buffer at which a value begins."""
    return value.layout.offset * value.layout.dtype.itemsize


def _as(value: Value, wanted: TensorType) -> Value:
    """The same memory in exactly the shape and strides that callers see."""
    layout = value.layout
    return Value(value.buffer, Layout(layout.offset, wanted.shape, wanted.strides, layout.dtype))


def _once(value: Value, wanted: TensorType) -> Value:
    """Without the repetitions along steps of 0: there is one element, for all to see."""
    layout = value.layout
    steps = zip(layout.shape, wanted.strides, strict=True)
    kept = tuple(1 if s == 0 else n for n, s in steps)
    return Value(value.buffer, Layout(layout.offset, kept, layout.strides, layout.dtype))
