"""Constants that a pass makes, under names that nobody has."""

from __future__ import annotations

from collections.abc import Container

import torch

from infopt.compiler.graph import Graph, Node
from infopt.compiler.infer import Builder
from infopt.compiler.types import TensorType


def free_name(name: str, graph: Graph, made: Container[str]) -> str:
    """The name, or the first longer one that neither the graph has nor what was `made` since."""
    while name in graph.consts or name in made:
        name += "_"
    return name


def new_constant(
    o: Builder, name: str, tensor: torch.Tensor, graph: Graph, made: dict[str, torch.Tensor]
) -> Node:
    """The constant for a tensor, which joins `made` under a free name."""
    name = free_name(name, graph, made)
    made[name] = tensor
    return o.const(name, TensorType.of(tensor))
