"""From a Graph to a Plan: kernels, buffers and the order of steps.

Every value is a buffer and a layout. Views change only the layout. Pointwise ops are grouped into
regions, one generated loop nest each. An op with a legal kernel becomes that kernel's native step;
all else becomes a torch call, and the report says why.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch

from infopt.codegen import views
from infopt.codegen.doors import Doors
from infopt.codegen.expand import expand
from infopt.codegen.plan_writer import PlanWriter, Value
from infopt.codegen.sizes import LoweringDeclined
from infopt.codegen.views import Layout
from infopt.compiler.graph import Graph, Node
from infopt.compiler.ops import CONST, GETITEM, INPUT
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType
from infopt.runtime.plan import (
    Mutation,
    Output,
    OutputConst,
    OutputInput,
    OutputInt,
    OutputNone,
    OutputTensor,
    Plan,
)

__all__ = ["Lowered", "LoweringDeclined", "LoweringReport", "lower"]


@dataclass
class LoweringReport:
    """What became of the nodes: native kernels, metadata only, or torch calls with their reasons."""

    native: Counter[str] = field(default_factory=Counter)
    views: int = 0
    aten: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def native_nodes(self) -> int:
        return sum(self.native.values())

    @property
    def aten_nodes(self) -> int:
        return sum(self.aten.values())

    def __str__(self) -> str:
        head = f"{self.native_nodes} nodes native, {self.aten_nodes} by torch, {self.views} views"
        lines = [f"  {n} x {op}: {self.reasons.get(op, '')}" for op, n in self.aten.most_common()]
        return "\n".join([head, *lines])


@dataclass(frozen=True)
class Lowered:
    """A plan with what it needs: constants by index, and the C++ texts of its own library."""

    plan: Plan
    constants: list[torch.Tensor]
    sources: tuple[str, ...]
    level: str
    report: LoweringReport


def lower(
    graph: Graph, target: Target, *, shipped: bool = True, generated: bool = True
) -> Lowered:
    """The plan of a graph for a target.

    shipped: the installed kernels of the target's level may be used; generated: so may C++ text
    made for this graph. Without both every op is a torch call. Raises LoweringDeclined.
    """
    return _Lowering(graph, target, shipped, generated).run()


class _Lowering:
    def __init__(self, graph: Graph, target: Target, shipped: bool, generated: bool) -> None:
        self.target, self.shipped, self.generated = target, shipped, generated
        self.report = LoweringReport()
        self.graph = expand(graph, lambda node: False)
        self.doors = Doors(self.graph)
        self.sizes = self.doors.sizes
        self.writer = PlanWriter(self.sizes)
        self.values: dict[Node, Value] = {}
        self.several: dict[Node, tuple[Value | None, ...]] = {}
        self.constants: list[torch.Tensor] = []
        self.skipped: set[Node] = set()

    def run(self) -> Lowered:
        specs = self.doors.specs()
        for node in self.graph.nodes():
            self.node(node)
        mutations = self.mutations()
        outputs = tuple(self.outputs())
        guards = self.doors.guards()
        w = self.writer
        plan = Plan(
            tuple(self.sizes.expressions), tuple(self.doors.dims), specs, tuple(w.buffers),
            tuple(w.views), tuple(w.steps), outputs, mutations, guards,
        )
        return Lowered(plan, self.constants, (), self.target.level, self.report)

    def node(self, node: Node) -> None:
        if node.op is INPUT:
            if self.graph.users(node) or self.graph.is_output(node):
                self.values[node] = self.doors.value(self.writer, node)
        elif node.op is CONST:
            self.values[node] = self.constant(node)
        elif node.op is GETITEM:
            self.values[node] = self.getitem(node)
        elif views.gives_pieces(node):
            return  # each piece is a view; getitem makes it
        elif not self.as_view(node):
            self.as_torch_call(node)

    def constant(self, node: Node) -> Value:
        tensor = self.graph.consts[node.attr("name")]
        self.constants.append(tensor)
        t = TensorType.of(tensor)
        buffer = self.writer.buffer("const", t.nbytes, len(self.constants) - 1)
        return Value(buffer, Layout.of(t))

    def getitem(self, node: Node) -> Value:
        parent, index = node.args[0], node.attr("index")
        assert isinstance(parent, Node)
        if views.gives_pieces(parent):
            source = self.values[parent.args[0]]  # type: ignore[index]
            layout = views.piece(parent, index, source.layout, self.sizes)
            if layout is not None:
                self.report.views += 1
                return Value(source.buffer, layout)
            if parent not in self.several:
                self.as_torch_call(parent)
        value = self.several[parent][index]
        assert value is not None
        return value

    def as_view(self, node: Node) -> bool:
        """Try to make the node a matter of strides."""
        if not views.is_view_op(node):
            return False
        source = self.values[node.args[0]]  # type: ignore[index]
        layout = views.view(node, source.layout, self.sizes)
        if layout is None:
            return False
        self.values[node] = Value(source.buffer, layout)
        self.report.views += 1
        return True

    def as_torch_call(self, node: Node, reason: str = "no kernel") -> None:
        op = node.op.reference
        if not isinstance(op, torch._ops.OpOverload):
            if any(node in self.graph.users(p) for p in node.inputs):
                raise LoweringDeclined(f"{node.op.name} is not a torch operator")
            return
        name = _SAFE_FORM.get(str(op), str(op))
        self.report.aten[name] += 1
        self.report.reasons.setdefault(name, reason)
        attrs = dict(node.attrs)
        args, kwargs = node.op.call_arguments(self.operands(node.args), attrs)
        if name != str(op):  # a reshape of memory that cannot be viewed: torch copies
            args, kwargs = [args[0], list(node.shape)], {}
        if isinstance(node.type, TensorType):
            made = self.values[node] = self.writer.allocate(node.type, "torch")
            self.writer.aten(name, args, (made,), kwargs)
            return
        read = {u.attr("index") for u in self.graph.users(node)}
        results = tuple(
            self.writer.allocate(t, "torch") if t is not None and i in read else None
            for i, t in enumerate(node.type)
        )
        self.several[node] = results
        self.writer.aten(name, args, results, kwargs)

    def operands(self, args: tuple) -> tuple:
        return tuple(
            self.operands(a) if isinstance(a, tuple) else None if a is None else self.values[a]
            for a in args
        )

    # The ends of the program

    def mutations(self) -> tuple[Mutation, ...]:
        """Writes to inputs come last; what is written must not lie in an input written before."""
        written = {i for i, _ in self.graph.updates}
        made = []
        for index, node in self.graph.updates:
            value = self.values[node]
            if self._input_of(value) in written - {index} or (
                self._input_of(value) == index and value != self.values.get(self.graph.inputs[index])
            ):
                value = self.copied(value, value.type)
            made.append(Mutation(index, self.writer.view(value)))
        return tuple(made)

    def _input_of(self, value: Value) -> int | None:
        buffer = self.writer.buffers[value.buffer]
        return buffer.index if buffer.kind == "input" else None

    def outputs(self) -> list[Output]:
        made: list[Output] = []
        seen: set[Node] = set()
        written = {i for i, _ in self.graph.updates}
        for output, wanted in zip(self.graph.outputs, self.graph.results, strict=True):
            if isinstance(output, Node):
                made.append(self.output(output, wanted, output in seen, written))
                seen.add(output)
            elif output is None:
                made.append(OutputNone())
            elif isinstance(output, int) and not isinstance(output, bool):
                made.append(OutputInt(self.sizes.slot(output)))
            elif isinstance(output, sympy.Expr):
                made.append(OutputInt(self.sizes.slot(output)))
            else:
                made.append(OutputConst(output))
        return made

    def output(
        self, node: Node, wanted: TensorType | None, again: bool, written: set[int]
    ) -> Output:
        if node.op is INPUT:
            return OutputInput(self.doors.position[node])
        value = self.values[node]
        wanted = wanted or node.tensor_type
        old_value = self._input_of(value) in written  # the write must not show in it
        if again or old_value or not value.layout.has_strides(wanted.strides):
            value = self.copied(value, wanted)
        layout = Layout(value.layout.offset, wanted.shape, wanted.strides, value.layout.dtype)
        self.writer.hand_out(value)
        return OutputTensor(self.writer.view(Value(value.buffer, layout)))

    def copied(self, value: Value, wanted: TensorType) -> Value:
        """The same values in new memory with these strides."""
        layout = value.layout
        strides = wanted.strides if _writable(wanted) else None
        made = TensorType(layout.shape, layout.dtype, strides) if strides else TensorType.dense(
            layout.shape, layout.dtype
        )
        target = self.writer.allocate(made)
        self.writer.aten("aten.copy_.default", (target, value), (), {})
        return target


# A view of torch's own layout may not exist of ours; the form that copies always does.
_SAFE_FORM = {
    f"aten.{name}": "aten.reshape.default"
    for name in ("view.default", "_unsafe_view.default", "_reshape_alias.default",
                 "view_as.default", "unflatten.int", "flatten.using_ints")
}


def _writable(type: TensorType) -> bool:
    """False where elements share memory, as in an expanded tensor."""
    return all(s != 0 or n == 1 for n, s in zip(type.shape, type.strides, strict=True))
