"""From a Graph to a Plan: kernels, buffers and the order of steps.

Every value is a buffer and a layout. Views change only the layout. Pointwise ops are grouped into
regions, one generated loop nest each. An op with a legal kernel becomes that kernel's native step;
all else becomes a torch call, and the report says why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import sympy
import torch

import infopt.codegen.gpu
import infopt.codegen.kernels  # noqa: F401  declares the kernels
from infopt.codegen import pointwise, views
from infopt.codegen.assemble import DISJOINT, can_assemble
from infopt.codegen.assemble import parts as assembled_parts
from infopt.codegen.calls import Calls
from infopt.codegen.doors import Doors
from infopt.codegen.expand import expand
from infopt.codegen.grouping import MADE, VIEW, Grouping, Unit, basic_kind
from infopt.codegen.kernel import Emitter, KernelOp, find_emitter
from infopt.codegen.launches import KernelText, LaunchTexts
from infopt.codegen.lower_region import Regions, Texts, copy, fill, lower_region, make
from infopt.codegen.overwriting import overwrite
from infopt.codegen.packing import packing_agrees, packs
from infopt.codegen.plan_writer import PlanWriter, Value
from infopt.codegen.results import Results
from infopt.codegen.schedules import Schedules, usual
from infopt.codegen.sizes import LoweringDeclined, same
from infopt.codegen.views import Layout
from infopt.compiler.graph import Graph, Node
from infopt.compiler.ops import CONST, GETITEM, INPUT
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType
from infopt.runtime.lifetime import arena_bytes
from infopt.runtime.plan import (
    Mutation,
    Output,
    OutputConst,
    OutputInt,
    OutputNone,
    Plan,
)

__all__ = ["Lowered", "LoweringDeclined", "LoweringReport", "lower"]


@dataclass
class LoweringReport:
    """What became of the nodes: native kernels, views, or torch calls with their reasons."""

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
    """A plan with what it needs: constants by index, and C++ texts by the library they make.

    names: what the graph calls each constant. kernels: of a GPU, as `plan.kernels` numbers them.
    """

    plan: Plan
    constants: list[torch.Tensor]
    sources: Mapping[str, str]
    level: str
    report: LoweringReport
    names: tuple[str, ...] = ()
    kernels: tuple[KernelText, ...] = ()
    kind: str = "cpu"

    @property
    def arena_bytes(self) -> int:
        """Bytes that a call of fixed sizes needs beside inputs, constants and results, scratch of
        threads aside: known before anything is built."""
        return arena_bytes(self.plan)


def lower(
    graph: Graph,
    target: Target,
    *,
    shipped: bool = True,
    generated: bool = True,
    schedules: Schedules = usual,
) -> Lowered:
    """The plan of a graph for a target.

    shipped: the installed kernels of the target's level may be used; generated: so may C++ text
    made for this graph. Without both every op is a torch call. schedules: chooses each kernel's.
    Raises LoweringDeclined.
    """
    return _Lowering(graph, target, shipped, generated, schedules).run()


class _Lowering:
    def __init__(
        self, graph: Graph, target: Target, shipped: bool, generated: bool, schedules: Schedules
    ) -> None:
        self.target, self.shipped, self.generated = target, shipped, generated
        self.schedules = schedules
        self.report = LoweringReport()
        self._emitters: dict[Node, tuple[Emitter | None, str]] = {}
        self.packing_agrees = packing_agrees(graph, target)
        self.graph = expand(graph, self.has_kernel)
        self.doors = Doors(self.graph)
        self.sizes = self.doors.sizes
        self.writer = PlanWriter(self.sizes)
        self.launches = LaunchTexts(target) if target.kind == "gpu" else None
        self.texts = Texts()
        self.regions: Regions = self.texts if self.launches is None else self.launches
        self.calls = Calls(self)
        self.values: dict[Node, Value] = {}
        self.several: dict[Node, tuple[Value | None, ...]] = {}
        self.constants: list[torch.Tensor] = []
        self.names: list[str] = []
        self.grouping = Grouping(
            self.graph,
            lambda n: basic_kind(n, self.has_kernel, generated),
            kinds_of_loops=self.launches is None,
        )

    def has_kernel(self, node: Node) -> bool:
        return self.emitter(node)[0] is not None

    def emitter(self, node: Node) -> tuple[Emitter | None, str]:
        """The kernel of a node on this target, or why there is none."""
        if not (self.shipped or self.generated):
            return None, "no native code"
        found = self._emitters.get(node)
        if found is None:
            found = find_emitter(node, self.target)
            if found[0] is not None and not self.packing_agrees and packs(node, found[0]):
                found = None, "rows in a packed form that somebody cannot read"
            self._emitters[node] = found
        return found

    def run(self) -> Lowered:
        specs = self.doors.specs()
        for unit in self.grouping.order:
            self.unit(unit)
        mutations = self.mutations()
        outputs = tuple(self.outputs())
        guards = self.doors.guards()
        overwrite(self.writer, mutations)
        w = self.writer
        plan = Plan(
            tuple(self.sizes.expressions),
            tuple(self.doors.dims),
            specs,
            tuple(w.buffers),
            tuple(w.views),
            tuple(w.steps),
            outputs,
            mutations,
            guards,
            () if self.launches is None else self.launches.described(),
        )
        sources = {**self.texts.files(), **self.calls.sources}
        level, names = self.target.level, tuple(self.names)
        kernels = () if self.launches is None else tuple(self.launches.kernels.values())
        return Lowered(
            plan, self.constants, sources, level, self.report, names, kernels, self.target.kind
        )

    def unit(self, unit: Unit) -> None:
        if unit.is_region:
            lower_region(self, self.regions, unit)
            self.report.native.update(n.op.name for n in unit.nodes)
            return
        (node,) = unit.nodes
        emitter, _ = self.emitter(node)
        if emitter is not None and self.calls.emit(node, emitter):
            self.report.native[node.op.name] += 1
        elif self.generated and can_assemble(node):
            self.assemble(node)
            self.report.native[node.op.name] += 1
        else:
            self.as_torch_call(node)

    def assemble(self, node: Node) -> None:
        """A node that is copies of its operands."""
        out = self.define(node)
        found = assembled_parts(node, out.layout, self.sizes)
        assert found is not None
        landed: dict[int, Value] = {}
        for part in found:
            target = Value(out.buffer, part.target)
            if part.source is None:
                fill(self, self.regions, part.fill, target)
                continue
            source = self.value(part.source)
            if part.expanded is None and self.can_land(part.source, node, source, target, landed):
                landed[source.buffer] = target
                continue
            if part.expanded is not None:
                source = Value(source.buffer, part.expanded(source.layout))
            copy(self, self.regions, source, target)
        self.writer.land(landed)

    def can_land(
        self,
        node: Node,
        user: Node,
        source: Value,
        target: Value,
        landed: Mapping[int, Value],
    ) -> bool:
        """Whether what was computed for `user` alone can be computed in its place there instead:
        memory of its own that is laid out as the place is."""
        alone = self.graph.users(node) == (user,) and not self.graph.is_output(node)
        here, there = source.layout, target.layout
        return (
            user.op.name in DISJOINT
            and self.has_memory_of_its_own(node)
            and alone
            and source.buffer not in landed
            and here.offset == 0
            and (here.shape, here.strides, here.dtype) == (there.shape, there.strides, there.dtype)
        )

    # Values

    def value(self, node: Node) -> Value:
        """The memory of a value that its unit has computed; views and fills are made on demand."""
        found = self.values.get(node)
        if found is None:
            found = self.values[node] = self.found_on_demand(node)
        return found

    def found_on_demand(self, node: Node) -> Value:
        kind = self.grouping.kinds[node]
        if node.op is INPUT:
            return self.doors.value(self.writer, node)
        if node.op is CONST:
            return self.constant(node)
        if kind == MADE:
            value = self.writer.allocate(dense_form(node.tensor_type))
            make(self, self.regions, node, value)
            self.report.native[node.op.name] += 1
            return value
        if node.op is GETITEM:
            return self.getitem(node)
        assert kind == VIEW, f"{node} is read before it is computed"
        source = self.value(node.args[0])  # type: ignore[arg-type]
        layout = views.view(node, source.layout, self.sizes)
        if layout is None:
            return self.moved(node, source)
        self.report.views += 1
        return Value(source.buffer, layout)

    def constant(self, node: Node) -> Value:
        tensor = self.graph.consts[node.attr("name")]
        self.constants.append(tensor)
        self.names.append(node.attr("name"))
        t = TensorType.of(tensor)
        buffer = self.writer.buffer("const", t.nbytes, len(self.constants) - 1)
        return Value(buffer, Layout.of(t))

    def getitem(self, node: Node) -> Value:
        parent, index = node.args[0], node.attr("index")
        assert isinstance(parent, Node)
        if views.gives_pieces(parent):
            source = self.value(parent.args[0])  # type: ignore[arg-type]
            layout = views.piece(parent, index, source.layout, self.sizes)
            if layout is not None:
                self.report.views += 1
                return Value(source.buffer, layout)
            if parent not in self.several:
                self.as_torch_call(parent)
        value = self.several[parent][index]
        assert value is not None
        return value

    def define(self, node: Node) -> Value:
        """New memory for what a node computes, in the strides torch would give it."""
        value = self.values[node] = self.writer.allocate(dense_form(node.tensor_type))
        return value

    def results(
        self, node: Node, preferred: TensorType | None, packed: tuple[Size | None, ...] = ()
    ) -> tuple[Value | None, ...]:
        """New contiguous memory for the results of a kernel; of several only for those read.

        packed: of each result the bytes of its packed form, or None; () for none at all
        """

        def dense(t: TensorType) -> TensorType:
            return TensorType.dense(t.shape, t.dtype)

        if isinstance(node.op, KernelOp) and node.op.in_place is not None:
            return (self.written_in_place(node, node.op.in_place),)

        def new(t: TensorType, index: int) -> Value:
            bytes = packed[index] if packed else None
            if bytes is None:
                return self.writer.allocate(t)
            return Value(self.writer.buffer("arena", bytes), Layout.of(t))

        if isinstance(node.type, TensorType):
            return (new(preferred or dense(node.type), 0),)
        read = {u.attr("index") for u in self.graph.users(node)}
        return tuple(
            new(dense(t), i) if t is not None and i in read else None
            for i, t in enumerate(node.type)
        )

    def written_in_place(self, node: Node, parameter: str) -> Value:
        """The memory of the value that `node` changes a part of, which becomes its result.

        Where nobody else reads its old value, that is its own: of an input if the program updates
        it to just this node, of what a kernel has computed in any case. Else it is a copy's.
        """
        names = [p.name for p in node.op.parameters if p.is_tensor]
        old = node.args[names.index(parameter)]
        assert isinstance(old, Node)
        value = self.value(old)
        if old.op is INPUT:
            free = (self.graph.inputs.index(old), node) in self.graph.updates
        else:
            free = self.has_memory_of_its_own(old)
        alone = self.graph.users(old) == (node,) and not self.graph.is_output(old)
        return value if free and alone else self.copied(value, value.type)

    def has_memory_of_its_own(self, node: Node) -> bool:
        """Whether a value was computed into memory that no other value is a view of."""
        if node not in self.values or self.grouping.kinds[node] in (VIEW, MADE):
            return False
        return self.writer.buffers[self.values[node].buffer].kind == "arena"

    def moved(self, node: Node, source: Value) -> Value:
        """A view op for which data must move: a copy in which the view exists."""
        if node.op.name in RESHAPING:
            dense = self.copied(source, TensorType.dense(source.layout.shape, source.layout.dtype))
            return Value(dense.buffer, Layout.of(TensorType.dense(node.shape, node.dtype)))
        if node.op.name in CONVERTING and node.dtype == source.layout.dtype:
            return self.copied(source, node.tensor_type)
        self.as_torch_call(node, "no form as a view")
        return self.values[node]

    def copied(self, value: Value, wanted: TensorType) -> Value:
        """The same values in new memory with these strides."""
        layout = value.layout
        type = dense_form(TensorType(layout.shape, layout.dtype, wanted.strides))
        target = self.writer.allocate(type)
        self.copy_into(value, target)
        return target

    def copy_into(self, value: Value, target: Value) -> None:
        if not (self.generated and copy(self, self.regions, value, target)):
            self.writer.aten("aten.copy_.default", (target, value), (), {})

    # Torch calls

    def as_torch_call(self, node: Node, reason: str | None = None) -> None:
        op = node.op.reference
        if not isinstance(op, torch._ops.OpOverload):
            raise LoweringDeclined(f"{node.op.name} has several results and is read whole")
        name = str(op)
        self.report.aten[name] += 1
        if name not in self.report.reasons:
            self.report.reasons[name] = reason or self.reason(node)
        args, kwargs = node.op.call_arguments(self.operands(node.args), dict(node.attrs))
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

    def reason(self, node: Node) -> str:
        if pointwise.find(node) is not None:
            lacking = "no C++ compiler" if self.launches is None else "Triton is not installed"
            return pointwise.reason_against(node) or lacking
        return self.emitter(node)[1] or "no installed kernels"

    def operands(self, args: tuple) -> tuple:
        return tuple(
            self.operands(a) if isinstance(a, tuple) else None if a is None else self.operand(a)
            for a in args
        )

    def operand(self, node: Node) -> Value:
        """A value in the strides that torch would give it.

        In other strides torch's loops have other bits: which of 0 and -0 is the smaller one
        depends on the place, sums on the order.
        """
        value, wanted = self.value(node), node.tensor_type
        strides = zip(wanted.shape, wanted.strides, value.layout.strides, strict=True)
        if 0 in wanted.strides or all(n == 1 or same(a, b) for n, a, b in strides):
            return value
        return self.copied(value, wanted)

    # The ends of the program

    def mutations(self) -> tuple[Mutation, ...]:
        """Writes to inputs come last; what is written must not lie in an input written before."""
        written = {i for i, _ in self.graph.updates}
        made = []
        for index, node in self.graph.updates:
            value = self.value(node)
            if self._input_of(value) in written - {index} or (
                self._input_of(value) == index and value != self.value(self.graph.inputs[index])
            ):
                value = self.copied(value, value.type)
            made.append(Mutation(index, self.writer.view(value)))
        return tuple(made)

    def _input_of(self, value: Value) -> int | None:
        buffer = self.writer.buffers[value.buffer]
        return buffer.index if buffer.kind == "input" else None

    def outputs(self) -> list[Output]:
        made: list[Output] = []
        results = Results(self.graph, self)
        for index, output in enumerate(self.graph.outputs):
            if isinstance(output, Node):
                made.append(results.output(index))
            elif output is None:
                made.append(OutputNone())
            elif isinstance(output, int | sympy.Expr) and not isinstance(output, bool):
                made.append(OutputInt(self.sizes.slot(output)))
            else:
                made.append(OutputConst(output))
        return made


RESHAPING = {
    f"aten.{name}"
    for name in (
        "view.default",
        "_unsafe_view.default",
        "reshape.default",
        "_reshape_alias.default",
        "view_as.default",
        "reshape_as.default",
        "unflatten.int",
        "flatten.using_ints",
        "ravel.default",
    )
}
CONVERTING = {
    f"aten.{name}"
    for name in (
        "to.dtype",
        "to.dtype_layout",
        "to.device",
        "to.other",
        "type_as.default",
        "contiguous.default",
        "clone.default",
        "_to_copy.default",
    )
}


def dense_form(type: TensorType) -> TensorType:
    """The type as new memory can have it: contiguous where elements would share memory."""
    shares = any(s == 0 and n != 1 for n, s in zip(type.shape, type.strides, strict=True))
    return TensorType.dense(type.shape, type.dtype) if shares else type
