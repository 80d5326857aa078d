"""Whether a program treats the parts of an open size apart, from its inputs to its results."""

from __future__ import annotations

from typing import Any

import sympy

from infopt.compiler.graph import Graph, Node
from infopt.compiler.ops import CONST, INPUT
from infopt.compiler.types import Dim
from infopt.passes.slicing_rules import BATCH, RESHAPES, Axis, cut_operands

# Made from no input, and alike in every part of what they fill.
_UNIFORM = {"aten.full.default", "aten.zeros.default", "aten.ones.default", "aten.expand.default"}


def inputs_of(graph: Graph, dim: Dim) -> tuple[int, ...] | str:
    """The inputs to cut so that the results of parts, put together, are the results; or why there
    are none. Every such value has the dim in its first size and in no other."""
    if dim.counts is not None:
        return f"{dim.name} counts elements of {dim.counts}"
    if graph.updates or graph.scalars:
        return "the program writes to its inputs, or is given sizes"
    axis = Axis(BATCH, dim.symbol)
    cut = tuple(i for i, n in enumerate(graph.inputs) if _mentions(n.type, dim))
    if not cut or not all(axis.holds(graph.inputs[i]) for i in cut):
        return f"{dim.name} is not the first size of the inputs that have it"
    apart = {graph.inputs[i] for i in cut}
    for node in graph.nodes():
        if node.op in (INPUT, CONST) or not (
            _mentions(node.type, dim) or any(a in apart for a in node.inputs)
        ):
            continue
        reason = _reason_against(node, axis, dim, apart)
        if reason is not None:
            return f"{node!r}: {reason}"
        apart.add(node)
    for output, kept, memory in zip(
        graph.outputs, graph.results, graph.memory or (None,) * len(graph.outputs), strict=True
    ):
        if not isinstance(output, Node) or output not in apart:
            return f"a result does not grow with {dim.name}"
        if isinstance(memory, str) or (memory is not None and graph.memory.count(memory) > 1):
            return "a result shares memory with an input or another result"
        if kept is not None and kept.strides != type(kept).dense(kept.shape, kept.dtype).strides:
            return "a result does not lie in order"
    return cut


def _reason_against(node: Node, axis: Axis, dim: Dim, apart: set[Node]) -> str | None:
    """Why parts of a node do not come from parts of what it reads alone."""
    name, moving = node.op.name, {a for a in node.inputs if a in apart}
    sized = any(_in_attribute(value, dim) for _, value in node.attrs)
    if not moving:
        fine = name in _UNIFORM and axis.holds(node)
        return None if fine else f"it is made for all of {dim.name} at once"
    if sized and name not in RESHAPES and name != "aten.expand.default":
        return f"it is told how large {dim.name} is"
    cut = cut_operands(node, axis)
    if cut is None:
        return f"it mixes parts of {dim.name}, or is not known not to"
    if cut != moving:
        return f"it reads a part and all of {dim.name}"
    return None


def _mentions(type: Any, dim: Dim) -> bool:
    if isinstance(type, tuple):
        return any(_mentions(t, dim) for t in type)
    return type is not None and any(_in_attribute(n, dim) for n in type.shape)


def _in_attribute(value: Any, dim: Dim) -> bool:
    if isinstance(value, tuple | list):
        return any(_in_attribute(v, dim) for v in value)
    return isinstance(value, sympy.Expr) and dim.symbol in value.free_symbols
