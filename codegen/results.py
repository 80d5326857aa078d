"""Results as tensors that share memory with inputs and with each other exactly where torch's do."""

from __future__ import annotations

from typing import Protocol

from infopt.codegen.doors import Doors
from infopt.codegen.grouping import PIECE, VIEW, Grouping
from infopt.codegen.plan_writer import PlanWriter, Value
from infopt.codegen.views import Layout
from infopt.compiler.graph import Graph, Node
from infopt.compiler.ops import INPUT
from infopt.compiler.types import TensorType
from infopt.runtime.plan import Output, OutputInput, OutputTensor

Owner = int | str | None


class Lowering(Protocol):
    """What results need of the lowering around them."""

    writer: PlanWriter
    doors: Doors
    grouping: Grouping

    def value(self, node: Node) -> Value: ...
    def copied(self, value: Value, wanted: TensorType) -> Value: ...


class Results:
    """The results of one plan, in order.

    Equal values are one node here, but two tensors in torch; and a tensor that was filled from
    another one is that very value here. So whether memory is shared is not seen in the values: it
    is `Graph.memory` that says it, where the graph came from a program.
    """

    def __init__(self, graph: Graph, low: Lowering) -> None:
        self.low = low
        self._written = {i for i, _ in graph.updates}
        self._names = {n.attr("name"): i for i, n in enumerate(graph.inputs)}
        self._owners: dict[int, Owner] = {}  # of buffers that were handed out
        self._copies: dict[tuple[Node, Owner, TensorType], Value] = {}
        self._seen: set[Node] = set()

    def output(self, node: Node, wanted: TensorType, owner: Owner) -> Output:
        """One result; owner: its entry of `Graph.memory`, None where that is empty."""
        low = self.low
        if node.op is INPUT and owner in (None, node.attr("name")):
            return OutputInput(low.doors.position[node])
        value = low.value(node)
        if self._foreign(node, value, owner):
            value = self._own(node, value, owner, wanted)
        if not value.layout.has_strides(wanted.strides):
            key = (node, owner, wanted)
            if owner is None or key not in self._copies:
                self._copies[key] = self._copied(value, wanted)
            value = self._copies[key]
        self._owners.setdefault(value.buffer, owner)
        layout = Layout(value.layout.offset, wanted.shape, wanted.strides, value.layout.dtype)
        low.writer.hand_out(value)
        return OutputTensor(low.writer.view(Value(value.buffer, layout)))

    def _own(self, node: Node, value: Value, owner: Owner, wanted: TensorType) -> Value:
        """A copy of a value; views of one memory become views of one copy."""
        base = self.low.grouping.base[node]
        whole = self.low.value(base)
        if owner is None or whole.buffer != value.buffer:
            return self._copied(value, wanted)
        key = (base, owner, base.tensor_type)
        if key not in self._copies:
            self._copies[key] = self.low.copied(whole, base.tensor_type)
        copy = self._copies[key]
        if copy.layout != whole.layout:
            return self._copied(value, wanted)
        return Value(copy.buffer, value.layout)

    def _copied(self, value: Value, wanted: TensorType) -> Value:
        """The value in new memory; along a step of 0 there is one element, for all to see."""
        layout = value.layout
        steps = zip(layout.shape, wanted.strides, strict=True)
        kept = tuple(1 if s == 0 else n for n, s in steps)
        one = Layout(layout.offset, kept, layout.strides, layout.dtype)
        return self.low.copied(
            Value(value.buffer, one), TensorType(kept, wanted.dtype, wanted.strides)
        )

    def _foreign(self, node: Node, value: Value, owner: Owner) -> bool:
        """Whether a value lies in memory that is not this result's."""
        buffer = self.low.writer.buffers[value.buffer]
        if buffer.kind == "input" and buffer.index in self._written:
            return True  # the write must not show in it
        if owner is None:
            again = node in self._seen
            if self.low.grouping.kinds[node] not in (VIEW, PIECE):
                self._seen.add(node)
            return again
        if buffer.kind == "input":
            return self._names.get(str(owner)) != buffer.index
        return self._owners.get(value.buffer, owner) != owner
