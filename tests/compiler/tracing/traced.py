"""Trace a function the way the backend does, and run what came out with the interpreter."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import torch

from infopt.compiler.errors import TraceDeclined
from infopt.compiler.graph import Graph
from infopt.compiler.interpret import interpret
from infopt.compiler.tracing.capture import aten_module
from infopt.compiler.tracing.trace import from_fx
from infopt.compiler.verify import verify

Change = Callable[[Graph], Graph]


def same(graph: Graph) -> Graph:
    return graph


def check(fn: Callable, *inputs: Any, change: Change = same, dynamic: bool = False) -> Graph:
    """The graph of fn; results and the inputs afterwards are those of eager, bit for bit unless
    `change` rewrites the graph, then within rounding."""
    graphs: list[Graph] = []

    def backend(module: torch.fx.GraphModule, examples: list[Any]) -> Callable:
        weights = [i for i, v in enumerate(examples) if isinstance(v, torch.nn.Parameter)]
        graph = from_fx(aten_module(module, examples), weights, guard=True)
        verify(graph, "trace")
        graph = change(graph)
        verify(graph, "the change")
        graphs.append(graph)

        def run(*args: Any) -> list[Any]:
            tensors = [a for a in args if isinstance(a, torch.Tensor)]
            return interpret(graph, tensors + [a for a in args if not isinstance(a, torch.Tensor)])

        return run

    torch._dynamo.reset()
    mine, theirs = copy.deepcopy(inputs), copy.deepcopy(inputs)
    with torch.no_grad():
        expected = fn(*theirs)
        found = torch.compile(fn, backend=backend, dynamic=dynamic, fullgraph=True)(*mine)
    tolerance = {"rtol": 0, "atol": 0} if change is same else {}
    torch.testing.assert_close(found, expected, equal_nan=True, check_stride=False, **tolerance)
    torch.testing.assert_close(mine, theirs, equal_nan=True, **tolerance)
    assert len(graphs) == 1, "dynamo made no graph, or several"
    return graphs[0]


def declined(fn: Callable, *inputs: Any, dynamic: bool = False) -> str:
    """The reason why fn cannot become a graph."""
    reasons: list[str] = []

    def backend(module: torch.fx.GraphModule, examples: list[Any]) -> Callable:
        try:
            from_fx(aten_module(module, examples), guard=True)
        except TraceDeclined as error:
            reasons.append(str(error))
        return module.forward

    torch._dynamo.reset()
    with contextlib.suppress(RuntimeError):  # some of these programs are errors in eager too
        torch.compile(fn, backend=backend, dynamic=dynamic)(*copy.deepcopy(inputs))
    assert reasons, "the program was traced"
    return reasons[0]


def names(graph: Graph) -> list[str]:
    """The ops of a graph in order, leaves left out."""
    return [n.op.name for n in graph.nodes() if n.op.name not in ("input", "const")]


def by_hand(*calls: tuple[Any, tuple, Any], **inputs: Any) -> torch.fx.GraphModule:
    """A program of calls, each (operator, arguments, value); the last one is the result. Text among
    arguments is the name of an input, or a number: of an earlier call."""
    graph = torch.fx.Graph()
    made: dict[str, torch.fx.Node] = {}

    def resolved(arg: Any) -> Any:
        if isinstance(arg, list | tuple):
            return type(arg)(map(resolved, arg))
        return made[arg] if isinstance(arg, str) else arg

    for name, value in inputs.items():
        made[name] = graph.placeholder(name)
        made[name].meta["val"] = value
    for index, (target, args, value) in enumerate(calls):
        made[str(index)] = graph.call_function(target, resolved(args))
        made[str(index)].meta["val"] = value
    graph.output((made[str(len(calls) - 1)],))
    return torch.fx.GraphModule(torch.nn.Module(), graph)
