"""Weights of a torch.compile program as constants: what quantization needs, and how later changes
to them are noticed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from infopt.compiler.errors import TraceDeclined
from infopt.compiler.exchange import exchange
from infopt.compiler.graph import Graph, Node
from infopt.compiler.infer import Builder
from infopt.compiler.tracing.packed_weight import packed_weights
from infopt.compiler.tracing.torchao_weight import is_torchao, torchao_weight


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
        cls,
        module: fx.GraphModule,
        graph: Graph,
        order: Sequence[int],
        args: Sequence[Any],
        matrices: bool = True,
    ) -> Freezing:
        """What torchao quantized, what matrices are unpacked from, and with `matrices` all matrices
        of the model that the program only reads and whose changes torch counts."""
        placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
        written = {i for i, _ in graph.updates}
        packed = {leaf for weight in packed_weights(graph) for leaf in weight.leaves}
        names = {}
        for index, node in enumerate(graph.inputs):
            tensor = args[order[index]]
            if is_torchao(tensor):
                if index in written or graph.is_output(node):
                    raise TraceDeclined("a weight of torchao's is written to or returned")
                names[order[index]] = name_in_model(placeholders[order[index]])
            elif (
                node.attr("weight")
                and (node in packed or (matrices and tensor.dim() == 2))
                and (node in packed or tensor.is_floating_point())
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
        changes: dict[Node, Node] = {}
        consts: dict[str, torch.Tensor] = {}
        frozen = set()
        for node, position in zip(graph.inputs, self.order, strict=False):
            if position not in self.names:
                continue
            name, value = self.names[position], args[position]
            frozen.add(node)
            if is_torchao(value):
                weight = torchao_weight(name, value)
                whole, parts = weight.node(o, name)
                changes |= weight.changes(o, node, whole, graph.users(node))
                consts |= parts
            else:
                changes[node] = o.const(name, node.tensor_type)
                consts[name] = value.detach()
        kept = [i for i, node in enumerate(graph.inputs) if node not in frozen]
        made = exchange(graph, changes, o)
        bound = replace(
            made,
            inputs=tuple(made.inputs[i] for i in kept),
            updates=tuple((kept.index(i), n) for i, n in made.updates),
            consts={**graph.consts, **consts},
        )
        return bound.with_consts({}), [p for p in self.order if p not in self.names]

    def state(self, args: Sequence[Any]) -> tuple[tuple[int, int, int], ...]:
        """Which tensors a call passes, how often torch saw them written, where they lie."""
        tensors = (t for position in self.names for t in _memory(args[position]))
        return tuple((id(t), t._version, t.data_ptr()) for t in tensors)


def _memory(value: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The plain tensors that hold a weight."""
    if not is_torchao(value):
        return (value,)
    names, _ = value.__tensor_flatten__()  # type: ignore[attr-defined]
    return tuple(getattr(value, name) for name in names)


def name_in_model(node: fx.Node) -> str:
    """What the model calls a placeholder of dynamo's, "encoder_layers_0_weight"."""
    source = getattr(node.meta.get("grapharg"), "source", None)
    text = getattr(source, "name", "")
    path = re.findall(r"\['?([^'\]]+)'?\]", text() if callable(text) else text)
    return "_".join(path[1:]) or node.name
