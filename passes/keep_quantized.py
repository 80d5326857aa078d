"""linear(x, integers * factors) -> the layer on those integers: models that come quantized."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from infopt.codegen.kernels.quantized_embedding import quantized_embedding
from infopt.codegen.kernels.quantized_linear import quantized_gated_linear, quantized_linear
from infopt.codegen.weight_formats.formats import format_of
from infopt.codegen.weight_formats.integers import Integers
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.inline import inlined
from infopt.compiler.interpret import evaluate
from infopt.compiler.ops import CONST
from infopt.compiler.pipeline import Pass, PassContext
from infopt.compiler.types import TensorType
from infopt.passes.layers import LINEARS, is_table, weights_of
from infopt.passes.new_constants import new_constant
from infopt.passes.quantizing import no_kernel

_WEIGHT, _BYTES = "integer_weight", "byte_rows"


@dataclass(frozen=True)
class KeepQuantized(Pass):
    """linear(x, integer_weight(q, s)) -> quantized_linear(x, values, scales, sums)

    For every layer whose weights a model brings as integers (compiler/integer_weight.py): the same
    integers and factors in a format of ours. A layer that no kernel takes gets the matrix they
    stand for, computed once here.
    """

    name: ClassVar[str] = "keep-quantized"
    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[str, ...]] = ("fuse-linear-epilogue",)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        if all(node.op.name != _WEIGHT for node in graph.nodes()):
            return graph
        keeping = _Keeping(graph, ctx)
        changes: dict[Node, Node] = {}
        for node in graph.nodes():
            weights = _weights(node)
            if not any(w.op.name == _WEIGHT for w in weights):
                continue
            made = keeping.replacement(node, weights)
            label = " and ".join(_name(w) for w in weights)
            if isinstance(made, str):
                ctx.site(label, False, made)
                continue
            changes[node] = made
            ctx.site(label, True, str(made.attr("format")))
        found = ctx.exchange(graph, changes).with_consts(keeping.tensors)
        return _decoded(found, ctx)


class _Keeping:
    """tensors: constants made so far."""

    def __init__(self, graph: Graph, ctx: PassContext) -> None:
        self.graph, self.ctx, self.o = graph, ctx, ctx.builder
        self.tensors: dict[str, torch.Tensor] = {}
        self.made: dict[tuple[Node, str], tuple[Node, ...]] = {}
        self.formats: dict[Node, tuple[Integers, torch.Tensor] | str] = {}

    def replacement(self, node: Node, weights: tuple[Node, ...]) -> Node | str:
        """The layer on integers, or the reason why not."""
        formats = []
        for weight in weights:
            if weight.op.name != _WEIGHT:
                return "one of its two weights is not of integers"
            found = self.format(weight)
            if isinstance(found, str):
                return found
            formats.append(found[0])
        codec = formats[0]
        if any(c != codec for c in formats):
            return f"one product of two formats, {' and '.join(c.name for c in formats)}"
        parts = [part for w in weights for part in self.parts(w, codec)]
        attrs: dict[str, Any] = {"format": codec.name, "out": node.dtype}
        if is_table(node):
            attrs["width"] = weights[0].shape[1]
            made = self.o.call(quantized_embedding, node.args[1], *parts[:2], **attrs)
            return no_kernel(made, self.ctx.target) or made
        op = quantized_gated_linear if len(weights) == 2 else quantized_linear
        x, rest = node.args[0], node.args[len(weights) + 1 :]
        assert isinstance(x, Node)
        if x.op.name == _BYTES:
            x, attrs["activations"] = x.args[0], x.attr("rounding")
        if node.op.name != "aten.linear.default":
            attrs["activation"] = node.attr("activation")
        made = self.o.call(op, x, *parts, *rest, **attrs)
        return no_kernel(made, self.ctx.target) or made

    def format(self, weight: Node) -> tuple[Integers, torch.Tensor] | str:
        """The least format that holds a weight's integers and factors exactly, and the factors."""
        if weight not in self.formats:
            integers, scales = weight.args
            if integers.op is not CONST or scales.op is not CONST:
                self.formats[weight] = "its integers are not constants"
            else:
                self.formats[weight] = format_of(self.value(integers), self.value(scales))
        return self.formats[weight]

    def parts(self, weight: Node, codec: Integers) -> tuple[Node, ...]:
        """Constants with values, scales and row sums."""
        key = (weight, codec.name)
        if key not in self.made:
            integers, scales = map(self.value, weight.args)
            store = _stored_as(codec, integers.shape[1])
            parts = zip(("values", "scales", "sums"), store(integers, scales), strict=True)
            self.made[key] = tuple(self.constant(weight, k, t) for k, t in parts)
            recipe = inlined(store, weight.args, self.o)
            for const, expression in zip(self.made[key], recipe, strict=True):
                self.ctx.derive(str(const.attr("name")), expression, held=True)
        return self.made[key]

    def constant(self, weight: Node, kind: str, tensor: torch.Tensor) -> Node:
        name = f"{_name(weight)}_{kind}"
        return new_constant(self.o, name, tensor, self.graph, self.tensors)

    def value(self, const: Node) -> torch.Tensor:
        return self.graph.consts[str(const.attr("name"))].detach()


def _stored_as(codec: Integers, k: int) -> Callable[..., tuple[torch.Tensor, ...]]:
    """(integers, scales) -> values, scales and row sums in a format that holds them."""

    def stored(integers: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values, factors = codec.pack(integers, codec.factors_of(scales, k))
        return values, factors, codec.sums(values, factors, k)

    return stored


def _decoded(graph: Graph, ctx: PassContext) -> Graph:
    """The graph with matrices in the place of the integers that are left."""
    changes, tensors = {}, {}
    for node in graph.nodes():
        if node.op.name == _WEIGHT and all(a.op is CONST for a in node.inputs):
            values = {a: graph.consts[str(a.attr("name"))] for a in node.inputs}
            name = f"{_name(node)}_decoded"
            with torch.no_grad():
                tensors[name] = evaluate(graph, node, values, {})
            changes[node] = ctx.builder.const(name, TensorType.of(tensors[name]))
            ctx.derive(name, node)
    return ctx.exchange(graph, changes).with_consts(tensors) if changes else graph


def _weights(node: Node) -> tuple[Node, ...]:
    return weights_of(node) if is_table(node) or node.op.name in LINEARS else ()


def _name(weight: Node) -> str:
    """What the model calls a weight of integers."""
    source = weight.args[0] if weight.args else weight
    return (
        str(source.attr("name")).removesuffix("_integers") if source.op is CONST else repr(weight)
    )
