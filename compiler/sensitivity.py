"""How much an error at one place of a graph moves its results: all places in a few runs.

Small errors add: results move by J d, where d is the change of a node's value and J the derivative
of the results by that value. For a random vector v of independent normal numbers, the mean of
(v . J d)^2 is |J d|^2 (Hutchinson 1990), and v J comes from one backward run for all nodes at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from infopt.compiler.graph import Graph, Node
from infopt.compiler.interpret import bind_dims, evaluate
from infopt.compiler.ops import CONST, INPUT


def relative_errors(
    graph: Graph,
    sample: Sequence[Any],
    variants: Mapping[Node, Sequence[Node]],
    tensors: Mapping[str, torch.Tensor],
    probes: int = 16,
    seed: int = 0,
) -> dict[Node, list[float]]:
    """For every variant of a node, the relative RMS error that it alone would cause in the results.

    sample    the graph's inputs
    variants  node -> others of its type that read what it reads, and constants, directly or
              through nodes of their own
    tensors   the constants that only variants read, by name
    probes    backward runs; the relative deviation of an error is about 0.7 / sqrt(probes)

    An error is that of all floating point results together, each divided by its own size.
    """
    differences: dict[Node, list[torch.Tensor]] = {}
    places: dict[Node, torch.Tensor] = {}
    values: dict[Node, Any] = dict(zip(graph.inputs, sample, strict=False))
    sizes = bind_dims(graph, sample)
    with torch.enable_grad():
        for node in graph.nodes():
            if node.op is INPUT:
                continue
            value = evaluate(graph, node, values, sizes)
            if node in variants:
                with torch.no_grad():
                    differences[node] = [
                        _variant(graph, other, values, tensors, sizes).float() - value.float()
                        for other in variants[node]
                    ]
                places[node] = torch.zeros_like(value, requires_grad=True)
                value = value + places[node]
            values[node] = value
    results = [values[o] for o in graph.outputs if isinstance(o, Node)]
    results = [r for r in results if r.is_floating_point() and r.requires_grad]
    sums = {node: [0.0] * len(found) for node, found in differences.items()}
    generator = torch.Generator().manual_seed(seed)
    for _ in range(probes if results else 0):
        with torch.enable_grad():
            loss = sum(_projection(r, generator) for r in results)
        gradients = torch.autograd.grad(
            loss,  # type: ignore[arg-type]
            list(places.values()),
            retain_graph=True,
            allow_unused=True,
        )
        for node, gradient in zip(places, gradients, strict=True):
            if gradient is not None:
                for i, difference in enumerate(differences[node]):
                    sums[node][i] += float((gradient.float() * difference).sum()) ** 2
    return {node: [(s / probes) ** 0.5 for s in found] for node, found in sums.items()}


def _projection(result: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    direction = torch.randn(result.shape, generator=generator)
    size = torch.linalg.vector_norm(result.detach().float())
    return (result.float() * direction).sum() / size.clamp_min(1e-30)


def _variant(
    graph: Graph,
    node: Node,
    values: Mapping[Node, Any],
    tensors: Mapping[str, torch.Tensor],
    sizes: Mapping[Any, int],
) -> torch.Tensor:
    known = {n: values[n].detach() for n in node.inputs if n in values}
    for source in node.inputs:
        if source not in known:
            own = source.op is CONST
            known[source] = (
                tensors[str(source.attr("name"))]
                if own
                else _variant(graph, source, values, tensors, sizes)
            )
    return evaluate(graph, node, known, sizes)
