"""Run a graph in plain torch, op by op, with the references."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy
import torch

from infopt.compiler.graph import Graph, Node
from infopt.compiler.ops import CONST, GETITEM, INPUT
from infopt.compiler.types import substitute

Watch = Callable[[Node, Any], None]


def interpret(graph: Graph, inputs: Sequence[Any], watch: Watch | None = None) -> list[Any]:
    """The graph's flat results for these inputs; updates are written into the inputs.

    inputs: the tensors of graph.inputs, then the integers of graph.scalars.

    watch(node, value) is called for every node in order: for recording and comparing.
    Raises ValueError if the inputs do not agree with the graph's dims.
    """
    values: dict[Node, Any] = {}
    sizes = bind_dims(graph, inputs)
    remaining = {n: len(graph.users(n)) for n in graph.nodes()}
    keep = set(graph.roots)
    with torch.no_grad():
        for node, value in zip(graph.inputs, inputs, strict=False):
            values[node] = value
        for node in graph.nodes():
            if node.op is not INPUT:
                values[node] = evaluate(graph, node, values, sizes)
            if watch is not None:
                watch(node, values[node])
            for source in dict.fromkeys(node.inputs):
                remaining[source] -= 1
                if not remaining[source] and source not in keep:
                    del values[source]
        results = [_result(o, values, sizes) for o in graph.outputs]
        # every new value is read from the old inputs, also where it is a view of one
        held = {t.untyped_storage().data_ptr() for t in inputs if isinstance(t, torch.Tensor)}
        changed = [values[node] for _, node in graph.updates]
        changed = [v.clone() if v.untyped_storage().data_ptr() in held else v for v in changed]
        for (index, _), value in zip(graph.updates, changed, strict=True):
            inputs[index].copy_(value)
    return results


def evaluate(
    graph: Graph, node: Node, values: Mapping[Node, Any], sizes: Mapping[sympy.Symbol, int]
) -> Any:
    """The value of one node from the values of those it reads."""
    if node.op is CONST:
        return graph.consts[node.attr("name")]
    if node.op is GETITEM:
        return values[node.args[0]][node.attr("index")]  # type: ignore[index]
    attrs = {k: concrete(v, sizes) for k, v in node.attrs}
    positional, keyword = node.op.call_arguments(
        tuple(_look_up(a, values) for a in node.args), attrs
    )
    return node.op.reference(*positional, **keyword)


def bind_dims(graph: Graph, inputs: Sequence[Any]) -> dict[sympy.Symbol, int]:
    """The value of every dim, read from the inputs' shapes and the integer inputs."""
    tensors = len(graph.inputs)
    if len(inputs) != tensors + len(graph.scalars):
        wanted = f"{tensors} tensors and {len(graph.scalars)} sizes"
        raise ValueError(f"the graph takes {wanted}, found {len(inputs)} inputs")
    sizes: dict[sympy.Symbol, int] = {}
    for size, value in zip(graph.scalars, inputs[tensors:], strict=True):
        if isinstance(size, sympy.Symbol):
            sizes[size] = int(value)
    for node, value in zip(graph.inputs, inputs, strict=False):
        if len(value.shape) != node.tensor_type.rank:
            raise ValueError(
                f"input {node.attr('name')}: expected {node.type}, found {value.shape}"
            )
        for size, actual in zip(node.shape, value.shape, strict=True):
            if isinstance(size, sympy.Symbol):
                sizes.setdefault(size, int(actual))
    given = {n.attr("name"): value for n, value in zip(graph.inputs, inputs, strict=False)}
    for dim in graph.dims:
        if dim.counts is not None:
            sizes[dim.symbol] = max(dim.lo, int(torch.count_nonzero(given[dim.counts])))
    for node, value in zip(graph.inputs, inputs, strict=False):
        expected = tuple(substitute(s, sizes) for s in node.shape)
        if expected != tuple(value.shape):
            name = node.attr("name")
            raise ValueError(
                f"input {name}: expected {expected} = {node.type}, found {value.shape}"
            )
    return sizes


def concrete(value: Any, sizes: Mapping[sympy.Symbol, int]) -> Any:
    """An attribute with its sizes put in."""
    if isinstance(value, tuple):
        return tuple(concrete(v, sizes) for v in value)
    return substitute(value, sizes) if isinstance(value, sympy.Expr) else value


def _look_up(arg: Any, values: Mapping[Node, Any]) -> Any:
    if isinstance(arg, tuple):
        return tuple(_look_up(a, values) for a in arg)
    return None if arg is None else values[arg]


def _result(output: Any, values: Mapping[Node, Any], sizes: Mapping[sympy.Symbol, int]) -> Any:
    return values[output] if isinstance(output, Node) else concrete(output, sizes)
