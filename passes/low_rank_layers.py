"""The low-rank form of one layer: what passes that factor weights are made of."""

from __future__ import annotations

from math import prod
from typing import Any

import torch

from infopt.codegen.factoring import Factoring, Factors
from infopt.codegen.weight_formats.rounding import Moments
from infopt.compiler.cost import node_seconds
from infopt.compiler.graph import Graph, Node
from infopt.compiler.pipeline import PassContext
from infopt.compiler.types import TensorType
from infopt.passes.layers import (
    LINEARS,
    moments_of,
    names_of,
    source_of,
    value_of,
    weights_of,
)
from infopt.passes.low_rank_convs import (
    factor_shapes,
    factored,
    is_convolution,
    is_second_convolution,
)
from infopt.passes.new_constants import new_constant

ENERGY = "energy-"  # begins a rank that is told by the share of power it keeps
_LEAST = 4096  # elements: smaller weights cost nothing as they are
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class LowRankLayers:
    """Layers of one graph as two thin products.

    tensors  the constants made so far, by name
    moments  what calibration inputs bring to the layers, by what they read, where it is known
    """

    def __init__(
        self, graph: Graph, ctx: PassContext, moments: dict[Node, Moments] | None = None
    ) -> None:
        self.graph, self.ctx, self.o = graph, ctx, ctx.builder
        self.tensors: dict[str, torch.Tensor] = {}
        self._factorings: dict[Node, Factoring] = {}
        self._made: dict[tuple[Node, int], Factors] = {}
        self._moments = moments

    def shape(self, node: Node) -> tuple[int, int]:
        """Rows and columns of a layer's weight; of gate and up one below the other."""
        weights = weights_of(node)
        n, *window = weights[0].shape
        return len(weights) * n, prod(window)  # type: ignore[return-value, operator, arg-type]

    def refusal(self, node: Node) -> str:
        """Why no rank at all is possible for the layer, "" where one is."""
        if not names_of(node):
            return "its weight is not a constant"
        for dtype in (*(w.dtype for w in weights_of(node)), node.dtype):
            if dtype not in _FLOATS:
                return f"it computes in {dtype}"
        if is_convolution(node) and node.attr("groups") != 1:
            return f"it has {node.attr('groups')} groups"
        n, k = self.shape(node)
        if n * k < _LEAST:
            return f"{n} x {k} is too small to pay"
        if is_second_factor(node) or self._is_first_factor(node):
            return "it is one of two thin products already"
        for weight in weights_of(node):
            source = source_of(weight)
            assert source is not None
            others = [u for u in self.graph.users(source) if not can_be_factored(u)]
            if others and source is weight:
                return f"its weight is also read by {others[0].op.name}"
        return ""

    def rank(self, node: Node, wanted: float | str) -> int:
        """The rank of a layer that is asked for as a share of the full one or "energy-0.99"."""
        if isinstance(wanted, str):
            return self.factoring(node).rank_for(float(wanted.removeprefix(ENERGY)))
        return max(1, round(wanted * min(self.shape(node))))

    def profit(self, node: Node, rank: int) -> tuple[str, float | None]:
        """Why a rank does not pay, "" where it does, and the seconds that it saves."""
        n, k = self.shape(node)
        thin, wide = rank * (n + k), n * k
        if thin >= wide:
            return f"rank {rank} does not pay: {thin} numbers in two factors, {wide} in one", None
        dims, target = self.graph.dims, self.ctx.target
        second = self._second(node, self._placeholders(node, rank))
        before = node_seconds(node, target, dims)
        after = sum(node_seconds(part, target, dims) for part in (second.args[0], second))
        if after >= before:
            return (
                f"rank {rank} does not pay: two products take {after * 1e6:.4g} us, "
                f"one takes {before * 1e6:.4g} us",
                before - after,
            )
        return "", before - after

    def replacement(self, node: Node, rank: int) -> Node:
        """The layer as two products; its factors are among `tensors` then."""
        made = self._made[node, rank] = self.factoring(node)(rank)
        source = source_of(weights_of(node)[0])
        assert source is not None
        stem = f"{source.attr('name')}_rank{made.a.shape[0]}"
        if is_convolution(node):
            shapes = factor_shapes(weights_of(node)[0], made.a.shape[0])
            a = self._const(f"{stem}_a", made.a.reshape(shapes[0]))
            b = self._const(f"{stem}_b", made.b.reshape(shapes[1]).contiguous())
            return factored(self.o, node, a, b)
        parts = [self._const(f"{stem}_a", made.a)]
        names = ("b",) if len(weights_of(node)) == 1 else ("gate", "up")
        for name, part in zip(names, made.b.chunk(len(names)), strict=True):
            parts.append(self._const(f"{stem}_{name}", part.contiguous()))
        biases = list(node.args[len(parts) : len(parts) + len(names)])
        if made.shift is not None:
            for i, shift in enumerate(made.shift.chunk(len(names))):
                old = value_of(self.graph, biases[i])  # type: ignore[arg-type]
                biases[i] = self._const(f"{stem}_bias", (old.double() + shift).to(old.dtype))
        return self._second(node, parts, biases)

    def description(self, node: Node, rank: int) -> str:
        """Rank, error and bytes of a layer that was replaced."""
        made, (n, k) = self._made[node, rank], self.shape(node)
        size, rank = made.a.element_size(), made.a.shape[0]
        return (
            f"rank {rank} of {min(n, k)}, error {made.error:.2%}, "
            f"{n * k * size} bytes -> {rank * (n + k) * size}"
        )

    def factoring(self, node: Node) -> Factoring:
        """The spectrum of a layer's outputs."""
        found = self._factorings.get(node)
        if found is None:
            weight = torch.cat([value_of(self.graph, w).detach() for w in weights_of(node)])
            if is_convolution(node):  # windows overlap: their moments are not those of x
                found = Factoring(weight.flatten(1))
            else:
                found = Factoring(weight, self.moments.get(node.args[0]), self._has_bias(node))
            self._factorings[node] = found
        return found

    @property
    def moments(self) -> dict[Node, Moments]:
        """What calibration inputs bring to the layers that can be factored."""
        if self._moments is None:
            linear = [n for n in self.graph.nodes() if n.op.name in LINEARS]
            linear = [n for n in linear if not self.refusal(n)] if self.ctx.calibration else []
            self._moments = moments_of(self.graph, self.ctx, linear)
        return self._moments

    def _has_bias(self, node: Node) -> bool:
        """Whether there are biases that may be changed."""
        count = LINEARS[node.op.name]
        biases = node.args[1 + count : 1 + 2 * count]
        return all(isinstance(b, Node) and source_of(b) is not None for b in biases)

    def _is_first_factor(self, node: Node) -> bool:
        users = self.graph.users(node)
        return bool(users) and all(is_second_factor(u) and u.args[0] is node for u in users)

    def _placeholders(self, node: Node, rank: int) -> list[Node]:
        if is_convolution(node):
            shapes = list(factor_shapes(weights_of(node)[0], rank))
        else:
            n, k = weights_of(node)[0].shape
            shapes = [(rank, k), *((n, rank) for _ in weights_of(node))]
        dtype = weights_of(node)[0].dtype
        return [
            self.o.input(f"factor{i}", TensorType.dense(shape, dtype))
            for i, shape in enumerate(shapes)
        ]

    def _second(self, node: Node, parts: list[Node], biases: list[Any] | None = None) -> Node:
        """The product with the second factor, which reads that with the first."""
        if is_convolution(node):
            return factored(self.o, node, *parts)
        count = len(parts) - 1
        first = self.o.linear(node.args[0], parts[0])
        rest = list(node.args[1 + count :])
        if biases is not None:
            rest[:count] = biases
        return self.o.call(node.op, first, *parts[1:], *rest, **dict(node.attrs))

    def _const(self, name: str, tensor: torch.Tensor) -> Node:
        return new_constant(self.o, name, tensor, self.graph, self.tensors)


def can_be_factored(node: Node) -> bool:
    """True for layers that can be two thin ones."""
    return node.op.name in LINEARS or is_convolution(node)


def is_second_factor(node: Node) -> bool:
    """True where a layer reads a plain product and both hold fewer numbers than one would."""
    if is_convolution(node):
        return is_second_convolution(node)
    first = node.args[0] if node.op.name in LINEARS else None
    if not isinstance(first, Node) or first.op.name != "aten.linear.default":
        return False
    if first.args[2] is not None or any(w.tensor_type.rank != 2 for w in weights_of(node)):
        return False
    rank, k = first.args[1].shape  # type: ignore[union-attr]
    n = sum(w.shape[0] for w in weights_of(node))  # type: ignore[misc]
    numbers = (rank, k, n)
    return all(isinstance(x, int) for x in numbers) and rank * (n + k) < n * k
