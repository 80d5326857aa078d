"""The few schedules of a kernel that are worth a look for one node: weighed by the cost model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from infopt.codegen.alone import alone
from infopt.codegen.gpu_tuning.cost_model import Estimate, estimate
from infopt.codegen.kernel import Config, Emitter
from infopt.codegen.launch import Launch
from infopt.compiler.cost import cost_of
from infopt.compiler.graph import Graph, Node
from infopt.compiler.target import Target
from infopt.compiler.types import Dim, TensorType, contiguous_strides, hint

MOST = 8  # that are measured


@dataclass(frozen=True)
class Candidate:
    """A schedule, and what the model says of it; None where a kernel does not say what it does."""

    schedule: Mapping[str, Any]
    estimate: Estimate | None


@dataclass(frozen=True)
class Candidates:
    """Of one node, the usual schedule first, then by estimated time.

    graph  the node alone, at the sizes seen in tracing
    points of the schedule space; different: those of them whose launches differ at these sizes
    """

    graph: Graph
    kept: tuple[Candidate, ...]
    points: int
    different: int


def candidates(
    node: Node, emitter: Emitter, target: Target, dims: Sequence[Dim], most: int = MOST
) -> Candidates:
    """At most `most`, schedules that make the same launches as an earlier one left out."""
    graph, _ = alone(node, dims)
    inner = node_of(graph)
    found: dict[tuple[Launch, ...], Mapping[str, Any]] = {}
    points = 0
    for schedule in emitter.schedules():
        points += 1
        found.setdefault(launches_of(inner, emitter, target, schedule), schedule)
    bytes = hint(cost_of(inner).bytes, ())
    weighed = [
        Candidate(schedule, estimate(launches, target, bytes, {}))
        for launches, schedule in found.items()
    ]
    usual, others = weighed[0], weighed[1:]
    able = [c for c in others if c.estimate is None or c.estimate.seconds < math.inf]
    if all(c.estimate is not None for c in able):
        able.sort(key=lambda c: c.estimate.seconds if c.estimate is not None else math.inf)
    return Candidates(graph, (usual, *able[: most - 1]), points, len(found))


def fits(
    node: Node, emitter: Emitter, target: Target, dims: Sequence[Dim], schedule: Mapping[str, Any]
) -> bool:
    """Whether a schedule, perhaps measured on another GPU, can run on this one."""
    inner = node_of(alone(node, dims)[0])
    found = estimate(launches_of(inner, emitter, target, schedule), target, 0, {})
    return found is None or found.seconds < math.inf


def node_of(graph: Graph) -> Node:
    """The one node of a graph from `alone`."""
    last = graph.outputs[0]
    assert isinstance(last, Node)
    if last.op.name == "getitem":
        (last,) = last.inputs
    return last


def launches_of(
    node: Node, emitter: Emitter, target: Target, schedule: Mapping[str, Any]
) -> tuple[Launch, ...]:
    """What an emitter makes of a node whose operands are laid out as it wants them."""
    attrs = dict(node.attrs)
    tensors = [p for p in node.op.parameters if p.is_tensor]
    types = [_laid_out(arg, emitter, p.name) for p, arg in zip(tensors, node.args, strict=True)]
    made = (node.type,) if isinstance(node.type, TensorType) else node.type
    outs = tuple(t and replace(t, strides=contiguous_strides(t.shape)) for t in made)
    if emitter.out is not None:
        outs = (emitter.out(*types, **attrs),)
    given = emitter.emit(Config(outs, schedule), target, *types, **attrs)
    calls = [given] if isinstance(given, Launch) else list(given)  # type: ignore[arg-type]
    return tuple(c for c in calls if isinstance(c, Launch))


def _laid_out(arg: Any, emitter: Emitter, name: str) -> Any:
    if isinstance(arg, tuple):
        return tuple(_laid_out(a, emitter, name) for a in arg)
    if not isinstance(arg, Node):
        return None
    wanted = emitter.layouts.get(name)
    strides = wanted(arg.tensor_type) if wanted else None
    return arg.type if strides is None else replace(arg.tensor_type, strides=strides)
