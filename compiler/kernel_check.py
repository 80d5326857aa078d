"""Which kernel is wrong: each one alone, on the values it meets in a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from infopt.codegen.kernel import KernelOp, find_emitter
from infopt.codegen.load import LoweringDeclined, lower_for, program
from infopt.compiler.accuracy import Exact
from infopt.compiler.graph import Graph, Node, attr_key
from infopt.compiler.infer import Builder, types_of
from infopt.compiler.interpret import interpret
from infopt.compiler.rewrite import place
from infopt.compiler.target import Target


@dataclass(frozen=True)
class WrongKernel:
    """An operation whose kernel leaves the tolerance of its op: the node, and how far it is."""

    node: str
    error: str

    def __str__(self) -> str:
        return f"the kernel of {self.node}: {self.error}"


def wrong_kernels(graph: Graph, sample: Sequence[Any], target: Target) -> list[WrongKernel]:
    """The nodes of a graph, after its passes, whose kernels differ from their references.

    Each distinct operation with a kernel is built alone and given the values that the references
    make of the sample. What depends on a size that none of its inputs has is left out.
    """
    values: dict[Node, Any] = {}

    def remember(node: Node, value: Any) -> None:
        values[node] = value

    copies = [v.clone() if isinstance(v, torch.Tensor) else v for v in sample]
    interpret(graph, copies, remember)
    found, done = [], set()
    for node in graph.nodes():
        key = (node.op, types_of(node.args), attr_key(node.attrs))
        if key in done or not node.args or find_emitter(node, target)[0] is None:
            continue
        done.add(key)
        error = _error(graph, node, values, target)
        if error:
            found.append(WrongKernel(place(graph, node), error))
    return found


def _error(graph: Graph, node: Node, values: dict[Node, Any], target: Target) -> str | None:
    alone, sources = _alone(graph, node)
    own = _symbols([s.shape for s in sources])
    if not _symbols((node.attrs, [t.shape for t in alone.results if t])) <= own:
        return None
    inputs = [values[s] for s in sources]
    try:
        results = program(lower_for(alone, target))(inputs)
    except LoweringDeclined:
        return None
    tolerance = node.op.tolerance if isinstance(node.op, KernelOp) else Exact()
    for position, (a, b) in enumerate(zip(interpret(alone, inputs), results, strict=True)):
        reason = tolerance.accepts(a, b)
        if reason is not None:
            return f"result {position} {reason}"
    return None


def _alone(graph: Graph, node: Node) -> tuple[Graph, list[Node]]:
    """The node as a program over its own inputs, and the nodes those stand for."""
    o = Builder(graph.dims)
    sources = list(dict.fromkeys(node.inputs))
    inputs = {s: o.input(f"x{i}", s.tensor_type) for i, s in enumerate(sources)}

    def moved(arg: Any) -> Any:
        if isinstance(arg, tuple):
            return tuple(moved(a) for a in arg)
        return None if arg is None else inputs[arg]

    made = o.node(node.op, moved(node.args), node.attrs, node.type)
    outputs: tuple[Node, ...] = (made,)
    if isinstance(made.type, tuple):
        outputs = tuple(o.getitem(made, i) for i, t in enumerate(made.type) if t is not None)
    own = _symbols([s.shape for s in sources])
    dims = tuple(d for d in graph.dims if d.symbol in own)
    return Graph(tuple(inputs.values()), outputs, dims=dims, stage=graph.stage), sources


def _symbols(value: Any) -> set[sympy.Symbol]:
    """The dims that nested sizes mention."""
    if isinstance(value, list | tuple):
        return set().union(*map(_symbols, value))
    return value.free_symbols if isinstance(value, sympy.Expr) else set()
