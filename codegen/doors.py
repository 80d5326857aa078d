"""A graph's inputs and dims as a plan's: what each call must pass, and where sizes are read."""

from __future__ import annotations

import sympy

from infopt.codegen.plan_writer import PlanWriter, Value, span_bytes
from infopt.codegen.sizes import Sizes
from infopt.codegen.views import Layout
from infopt.compiler.graph import Graph, Node
from infopt.compiler.types import Size
from infopt.runtime.plan import Dim, Guard, InputSpec


class Doors:
    """Inputs of the plan: the graph's tensors, then its integers."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.position = {n: i for i, n in enumerate(graph.inputs)}
        self.dims: list[Dim] = []
        self.found: dict[sympy.Symbol, int] = {}
        self._checked: list[tuple[int, Size]] = []  # dims that only repeat another size
        self._find_dims()
        self.sizes = Sizes(self.found, {d.symbol: d.hint for d in graph.dims})

    def _find_dims(self) -> None:
        wanted = {d.symbol: d for d in self.graph.dims}
        for i, node in enumerate(self.graph.inputs):
            if node.attr("weight"):
                continue
            for axis, size in enumerate(node.shape):
                if isinstance(size, sympy.Symbol) and size in wanted and size not in self.found:
                    self._add(wanted[size].name, wanted[size].lo, wanted[size].hi, i, axis)
                    self.found[size] = len(self.dims) - 1
        for i, size in enumerate(self.graph.scalars, start=len(self.graph.inputs)):
            if isinstance(size, sympy.Symbol) and size in wanted and size not in self.found:
                self._add(wanted[size].name, wanted[size].lo, wanted[size].hi, i, None)
                self.found[size] = len(self.dims) - 1
            else:
                self._add(f"scalar{i}", -(2**63), None, i, None)
                self._checked.append((len(self.dims) - 1, size))
        names = {n.attr("name"): i for i, n in enumerate(self.graph.inputs)}
        for dim in self.graph.dims:
            if dim.counts is not None:
                position = names[dim.counts]
                self.dims.append(Dim(dim.name, dim.lo, dim.hi, position, counted=True))
                self.found[dim.symbol] = len(self.dims) - 1

    def _add(self, name: str, lo: int, hi: int | None, position: int, axis: int | None) -> None:
        self.dims.append(Dim(name, lo, hi, position, axis))

    def specs(self) -> tuple[InputSpec, ...]:
        slots = self.sizes.slots
        specs = []
        for node in self.graph.inputs:
            t = node.tensor_type
            kind = "weight" if node.attr("weight") and t.is_static else "tensor"
            name = str(node.attr("name"))
            specs.append(InputSpec(name, kind, str(t.dtype), slots(t.shape), slots(t.strides)))
        for i, _ in enumerate(self.graph.scalars):
            specs.append(InputSpec(f"scalar{i + len(self.graph.inputs)}", "int"))
        return tuple(specs)

    def guards(self) -> tuple[Guard, ...]:
        """An integer that tracing found equal to another size still is."""
        guards = []
        for dim, size in self._checked:
            expected = self.sizes.tokens(size)
            self.sizes.expressions.append((f"d{dim}", *expected, "=="))
            message = f"{self.dims[dim].name}: expected {size}, as when the graph was traced"
            guards.append(Guard(len(self.sizes.expressions) - 1, message))
        return tuple(guards)

    def value(self, writer: PlanWriter, node: Node) -> Value:
        """The memory of an input."""
        index, t = self.position[node], node.tensor_type
        return Value(writer.buffer("input", span_bytes(t), index), Layout.of(t))
