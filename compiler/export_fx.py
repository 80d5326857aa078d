"""From a Graph to a runnable fx.GraphModule: what an fx pass edits, and what people can print."""

from __future__ import annotations

import operator
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

from infopt.compiler.errors import IllegalGraph
from infopt.compiler.graph import Graph, Node
from infopt.compiler.infer import FakeWorld
from infopt.compiler.ops import CONST, GETITEM, INPUT
from infopt.compiler.types import Dim

aten = torch.ops.aten


def to_fx(graph: Graph) -> fx.GraphModule:
    """A module that computes the graph with the references of its ops.

    placeholders  the inputs, then the integers of graph.scalars
    results       one tuple: the graph's results, then the new value of each updated input
    consts        buffers, read with get_attr
    sizes         arithmetic on aten.sym_size of the inputs

    Nodes carry fake values in meta["val"], so `Graph.from_fx` reads the module back.
    """
    return _Exporter(graph).run()


class _Exporter:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.fx = fx.Graph()
        self.root = torch.nn.Module()
        self.values: dict[Node, fx.Node] = {}
        self.dims: dict[sympy.Symbol, fx.Node] = {}
        self.sizes: dict[sympy.Expr, Any] = {}
        self.fakes = FakeWorld(graph.dims)

    def run(self) -> fx.GraphModule:
        for index, node in enumerate(self.graph.inputs):
            self.values[node] = made = self.fx.placeholder(_name(node, index))
            made.meta["val"] = self.fakes.fake_of(node.type)
        for index, size in enumerate(self.graph.scalars):
            made = self.fx.placeholder(f"size_{index}")
            made.meta["val"] = self.fakes.size(size)
            if isinstance(size, sympy.Symbol):
                self.dims.setdefault(size, made)
        for node in self.graph.nodes():
            if node.op is not INPUT:
                self.values[node] = made = self.node(node)
                made.meta["val"] = self.fakes.fake_of(node.type)
        results = [self.output(o) for o in self.graph.outputs]
        results += [self.values[n] for _, n in self.graph.updates]
        self.fx.output(tuple(results))
        self.fx.lint()
        return fx.GraphModule(self.root, self.fx)

    def node(self, node: Node) -> fx.Node:
        if node.op is CONST:
            name = node.attr("name")
            if not hasattr(self.root, name):
                self.root.register_buffer(name, self.graph.consts[name])
            return self.fx.get_attr(name)
        if node.op is GETITEM:
            (source,) = node.inputs
            return self.fx.call_function(
                operator.getitem, (self.values[source], node.attr("index"))
            )
        attrs = {k: self.attribute(v) for k, v in node.attrs}
        args, kwargs = node.op.call_arguments(tuple(self.argument(a) for a in node.args), attrs)
        return self.fx.call_function(node.op.reference, tuple(args), kwargs)

    def argument(self, arg: Any) -> Any:
        if isinstance(arg, tuple):
            return tuple(self.argument(a) for a in arg)
        return None if arg is None else self.values[arg]

    def attribute(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self.attribute(v) for v in value)
        return self.size(value) if isinstance(value, sympy.Expr) else value

    def output(self, value: Any) -> Any:
        return self.values[value] if isinstance(value, Node) else self.attribute(value)

    def size(self, expr: sympy.Expr) -> Any:
        """The fx value of a size: arithmetic on the inputs' sizes, each made once."""
        if expr not in self.sizes:
            known = len(self.fx.nodes)
            dims = {s: fx.Proxy(self.dim(s)) for s in sorted(expr.free_symbols, key=str)}
            made = sympy_interp(PythonReferenceAnalysis, dims, expr)
            self.sizes[expr] = made.node if isinstance(made, fx.Proxy) else made
            for step in list(self.fx.nodes)[known:]:
                if "val" not in step.meta:
                    values = fx.map_arg(step.args, lambda n: n.meta["val"])
                    step.meta["val"] = step.target(*values)
        return self.sizes[expr]

    def dim(self, symbol: sympy.Symbol) -> fx.Node:
        if symbol not in self.dims:
            counted = {d.symbol: d for d in self.graph.dims if d.counts is not None}
            if symbol in counted:
                return self.count(counted[symbol])
            for node in self.graph.inputs:
                if symbol in node.shape:
                    where = (self.values[node], node.shape.index(symbol))
                    self.dims[symbol] = made = self.fx.call_function(aten.sym_size.int, where)
                    made.meta["val"] = self.fakes.size(symbol)
                    return made
            raise IllegalGraph(f"the dim {symbol} is not the size of any input")
        return self.dims[symbol]

    def count(self, dim: Dim) -> fx.Node:
        source = next(n for n in self.graph.inputs if n.attr("name") == dim.counts)
        made = self.fx.call_function(count_nonzero, (self.values[source], dim.lo))
        made.meta["val"] = self.fakes.size(dim.symbol)
        self.dims[dim.symbol] = made
        return made


def count_nonzero(x: torch.Tensor, lo: int) -> int:
    """The value of a dim that counts an input's nonzero elements."""
    return max(lo, int(torch.count_nonzero(x)))


def _name(node: Node, index: int) -> str:
    name = "".join(c if c.isalnum() else "_" for c in str(node.attr("name")))
    return name if name.isidentifier() else f"input_{index}"
