"""How long a node takes on this machine: its kernels, alone, on memory that is not in cache."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch

from infopt.codegen.alone import alone, random_operand
from infopt.codegen.load import lower_for, program
from infopt.codegen.schedules import Schedules, usual
from infopt.compiler.graph import Graph, Node
from infopt.compiler.target import Target
from infopt.compiler.types import Dim
from infopt.runtime.measure import measure

_BEYOND_CACHES = 1 << 26  # bytes of operands that runs go round
_MOST_COPIES = 16
_NOTHING: Mapping[Node, torch.Tensor] = MappingProxyType({})


def measured_seconds(
    nodes: Iterable[Node],
    target: Target,
    dims: Sequence[Dim] = (),
    rounds: int = 5,
    inner: Collection[Node] = (),
    given: Mapping[Node, torch.Tensor] = _NOTHING,
) -> dict[Node, float]:
    """The least time of each node, in turns (A B C A B C ...), at the sizes seen in tracing.

    inner: nodes that are run with the one that reads them; other values are there already, random
    ones if not given: that matters where time depends on them. Nodes of equal types and attributes
    are measured once.
    """
    keys = {node: _types(node, {node, *inner}) for node in nodes}
    one_of = {key: node for node, key in keys.items()}
    runs = {key: _Run(node, target, dims, inner=inner, given=given) for key, node in one_of.items()}
    least = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for key, run in runs.items():
            least[key] = min(least[key], run.seconds())
    return {node: least[key] for node, key in keys.items()}


def whole_seconds(graphs: Sequence[Graph], target: Target, inputs: Sequence[Any]) -> list[float]:
    """The least time of one call of each graph with these inputs, in turns."""
    runs = {}
    for index, graph in enumerate(graphs):
        copies = [v.clone() if isinstance(v, torch.Tensor) else v for v in inputs]
        made = program(lower_for(graph, target))
        runs[str(index)] = partial(made, copies)
    times = measure(runs, seconds=3.0, rounds=15)
    return [times[name].min for name in runs]


def schedule_seconds(
    node: Node,
    schedules: Sequence[Mapping[str, Any]],
    target: Target,
    dims: Sequence[Dim],
    rounds: int,
) -> list[float]:
    """The least time of one node with each schedule, in turns."""
    runs = [_Run(node, target, dims, lambda n, e, s=s: s) for s in schedules]
    least = [float("inf")] * len(runs)
    for _ in range(rounds):
        for index, run in enumerate(runs):
            least[index] = min(least[index], run.seconds())
    return least


def _types(arg: Any, inner: Collection[Node]) -> Any:
    if isinstance(arg, tuple):
        return tuple(_types(a, inner) for a in arg)
    if arg in inner:
        return arg.op.name, _types(arg.args, inner), arg.attrs
    return arg.type if isinstance(arg, Node) else None


class _Run:
    def __init__(
        self,
        node: Node,
        target: Target,
        dims: Sequence[Dim],
        schedules: Schedules = usual,
        inner: Collection[Node] = (),
        given: Mapping[Node, torch.Tensor] = _NOTHING,
    ) -> None:
        graph, operands = alone(node, dims, inner)
        self.program = program(lower_for(graph, target, schedules))
        size = max(sum(int(n.tensor_type.nbytes) for n in operands.values()), 1)
        copies = min(_MOST_COPIES, -(-_BEYOND_CACHES // size))
        self.inputs = [
            [
                given[a].clone() if a in given else random_operand(n.tensor_type)
                for a, n in operands.items()
            ]
            for _ in range(copies)
        ]

    def seconds(self) -> float:
        """One call, the mean over all copies of the operands."""
        start = time.perf_counter()
        for inputs in self.inputs:
            self.program(inputs)
        return (time.perf_counter() - start) / len(self.inputs)
