"""Weights of a torch.compile program as constants: what quantization needs, and how later changes
to them are noticed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from infopt.compiler.exchange import exchange
from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder


@dataclass(frozen=True, eq=False)
class Freezing:
    """Which inputs of a traced program become constants.

    graph  as traced, with weights as inputs
    order  for each input of the graph, its position in a call
    names  position in a call -> the constant's name
    """

    graph: Graph
    order: tuple[int, ...]
    names: Mapping[int, str]

    @classmethod
    def find(
        cls, module: fx.GraphModule, graph: Graph, order: Sequence[int], args: Sequence[Any]
    ) -> Freezing:
        """All matrices of the model that the program only reads and whose changes torch counts."""
        placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
        written = {i for i, _ in graph.updates}
        names = {}
        for index, node in enumerate(graph.inputs):
            tensor = args[order[index]]
            if (
                node.attr("weight")
                and tensor.dim() == 2
                and tensor.is_floating_point()
                and not tensor.is_inference()
                and index not in written
                and not graph.is_output(node)
                and node.attr("name") not in graph.memory
            ):
                names[order[index]] = name_in_model(placeholders[order[index]])
        return cls(graph, tuple(order), names)

    def apply(self, args: Sequence[Any]) -> tuple[Graph, list[int]]:
        """The graph with these weights of a call as its constants, and its inputs' positions."""
        graph, o = self.graph, Builder(self.graph.dims)
        changes = {
            node: o.const(self.names[position], node.tensor_type)
            for node, position in zip(graph.inputs, self.order, strict=False)
            if position in self.names
        }
        kept = [i for i, node in enumerate(graph.inputs) if node not in changes]
        made = exchange(graph, changes, o)
        consts = {name: args[position].detach() for position, name in self.names.items()}
        bound = replace(
            made,
            inputs=tuple(made.inputs[i] for i in kept),
            updates=tuple((kept.index(i), n) for i, n in made.updates),
            consts={**graph.consts, **consts},
        )
        return bound.with_consts({}), [p for p in self.order if p not in self.names]

    def state(self, args: Sequence[Any]) -> tuple[tuple[int, int, int], ...]:
        """Which tensors a call passes, how often torch saw them written, where they lie."""
        return tuple((id(t), t._version, t.data_ptr()) for t in map(args.__getitem__, self.names))


def name_in_model(node: fx.Node) -> str:
    """What the model calls a placeholder of dynamo's, "encoder_layers_0_weight"."""
    source = getattr(node.meta.get("grapharg"), "source", None)
    text = getattr(source, "name", "")
    path = re.findall(r"\['?([^'\]]+)'?\]", text() if callable(text) else text)
    return "_".join(path[1:]) or node.name
