"""Matrices that a model unpacks from integers of its own: qweight, scales and zero points of some
layout, spelled out in torch; or from floats of 8 bits. Which expression it is does not matter, only
what it gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from infopt.compiler.graph import Graph, Node
from infopt.compiler.ops import CONST, INPUT

FLOATS = (torch.float8_e4m3fn, torch.float8_e5m2)
_LAYERS = ("aten.linear.default", "aten.mm.default", "aten.matmul.default")


@dataclass(frozen=True)
class PackedWeight:
    """layer: what multiplies by it. matrix: its expression, [N, K] of a linear layer, [K, N] of a
    product. leaves: the constants, or inputs that are weights, it is made of."""

    layer: Node
    matrix: Node
    leaves: tuple[Node, ...]

    @property
    def is_linear(self) -> bool:
        return self.layer.op.name == _LAYERS[0]

    @property
    def stored(self) -> torch.dtype:
        """Of what the model stores: floats of 8 bits, or int8 for integers of any layout."""
        return next((leaf.dtype for leaf in self.leaves if leaf.dtype in FLOATS), torch.int8)

    def parts(self) -> list[Node]:
        """Every value of the expression, the leaves first."""
        found: dict[Node, None] = {}
        _visit(self.matrix, found)
        return list(found)


def packed_weights(graph: Graph) -> Iterator[PackedWeight]:
    """Every layer whose matrix is a static expression of weights, integers or floats of 8 bits."""
    leaves: dict[Node, tuple[Node, ...] | None] = {}
    for node in graph.nodes():
        leaves[node] = _leaves(node, leaves)
        if node.op.name not in _LAYERS:
            continue
        matrix = node.args[1]
        found = leaves[matrix]
        if not found or matrix in found or matrix.tensor_type.rank != 2:
            continue
        stored = any(not f.tensor_type.is_float or f.dtype in FLOATS for f in found)
        if matrix.tensor_type.is_float and stored:
            yield PackedWeight(node, matrix, found)


def _leaves(node: Node, known: dict[Node, tuple[Node, ...] | None]) -> tuple[Node, ...] | None:
    """The weights that a value is made of, None where it is made of anything else."""
    if node.op.name == "integer_weight" or isinstance(node.type, tuple):
        return None
    if node.op is CONST or (node.op is INPUT and node.attr("weight")):
        return (node,) if node.tensor_type.is_static else None
    if node.op is INPUT or not node.op.pure or not node.tensor_type.is_static:
        return None
    found: dict[Node, None] = {}
    for arg in node.inputs:
        below = known[arg]
        if below is None:
            return None
        found |= dict.fromkeys(below)
    return tuple(found)


def _visit(node: Node, found: dict[Node, None]) -> None:
    if node not in found:
        for arg in node.inputs:
            _visit(arg, found)
        found[node] = None
