"""quantized_linear(norm(x)) -> the norm writes the bytes that the layer multiplies, and alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from infopt.codegen.kernels.layer_norm import add_layer_norm
from infopt.codegen.kernels.packed_layer_norm import packed_layer_norm
from infopt.codegen.kernels.quantized_linear import quantized_linear
from infopt.compiler.accuracy import Accuracy, Bounded, Exact
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.ops import CONST, GETITEM
from infopt.compiler.pipeline import Pass, PassContext
from infopt.passes.quantizing import no_kernel

_NORM = "aten.layer_norm.default"
_How = tuple[str, float, int]  # rounding, step, zero


@dataclass(frozen=True)
class PackActivations(Pass):
    """Rows that layers multiply as bytes are rounded to bytes where they are made

    By a layer norm, in whatever way rows are rounded; and by a linear layer whose result only such
    layers read, where their range is known beforehand. No pass over the rows is left between.

    static  whether linear layers may do so: what was rounded to bf16 in between is not any more,
            so results move as much as bf16 moved them
    """

    name: ClassVar[str] = "pack-activations"
    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[str, ...]] = ("fuse-linear-epilogue",)

    static: bool = False

    @property
    def accuracy(self) -> Accuracy:  # type: ignore[override]
        return Bounded("rms_rel", 0.1) if self.static else Exact()

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        return _Packing(graph, ctx, self.static).run()


class _Packing:
    def __init__(self, graph: Graph, ctx: PassContext, static: bool) -> None:
        self.graph, self.ctx, self.o, self.static = graph, ctx, ctx.builder, static
        self.changes: dict[Node, Node] = {}
        # what a layer multiplies and how its result is rounded, where that changes
        self.inputs: dict[Node, Node] = {}
        self.results: dict[Node, tuple[_How, Node | None]] = {}

    def run(self) -> Graph:
        readers: dict[Node, list[Node]] = {}
        for node in self.graph.nodes():
            if node.op is quantized_linear and _rounding(node)[0] not in ("none", "bf16", "packed"):
                readers.setdefault(node.args[0], []).append(node)  # type: ignore[arg-type]
        for read, layers in readers.items():
            how = _rounding(layers[0])
            alike = [n for n in layers if _rounding(n) == how]
            x, factors = _unscaled(read)
            reason = self.pack(x, factors, how, alike)
            self.ctx.site(x, not reason, reason or f"for {len(alike)} layers")
        for node in {**self.inputs, **self.results}:
            self.changes[node] = self.layer(node)
        return self.ctx.exchange(self.graph, self.changes) if self.changes else self.graph

    def pack(self, x: Node, factors: Node | None, how: _How, layers: list[Node]) -> str:
        """Have the rows of x * factors rounded for these layers where x is made, or say why not."""
        for layer in layers:
            refused = no_kernel(self.layer(layer, _placeholder(self.o, x)), self.ctx.target)
            if refused:
                return refused
        norm = x.args[0] if x.op is GETITEM else x
        assert isinstance(norm, Node)
        if norm.op.name == _NORM or norm.op is add_layer_norm:
            return self.pack_norm(x, norm, factors, how, layers)
        if x.op is quantized_linear and self.static:
            return self.pack_linear(x, factors, how, layers)
        return f"made by {norm.op.name}"

    def pack_norm(
        self, x: Node, norm: Node, factors: Node | None, how: _How, layers: list[Node]
    ) -> str:
        if norm.op.name == _NORM and len(norm.attr("normalized_shape")) != 1:
            return "more than the last dimension is normalised"
        if x is not norm and x.attr("index") != 0:
            return "the sum before a norm"
        rounding, step, zero = how
        attrs = {"eps": norm.attr("eps"), "rounding": rounding, "step": step, "zero": zero}
        first, *weights = norm.args
        residual = None
        if x is not norm:
            residual, *weights = weights
        made = self.o.call(packed_layer_norm, first, residual, *weights, factors, **attrs)
        refused = no_kernel(made, self.ctx.target)
        if refused:
            return refused
        self.changes[x] = self.o.getitem(made, 0)
        if x is not norm:
            for other in self.graph.users(norm):
                if other is not x:
                    self.changes[other] = self.o.getitem(made, 2)
        for layer in layers:
            self.inputs[layer] = self.o.getitem(made, 1)
        return ""

    def pack_linear(self, x: Node, factors: Node | None, how: _How, layers: list[Node]) -> str:
        if how[0] != "int8-static":
            return "its rows' ranges are known only when all of a row is"
        as_numbers = self.graph.is_output(x) or any(x in n.args[1:] for n in layers)
        read = layers[0].args[0]
        scaled = read is not x and self.graph.users(x) == (read,) and not self.graph.is_output(read)
        if as_numbers or not (read is x or scaled) or set(self.graph.users(read)) != set(layers):
            return "somebody reads it as it is"
        self.results[x] = how, factors
        refused = no_kernel(self.layer(x), self.ctx.target)
        if refused:
            del self.results[x]
            return refused
        for layer in layers:
            self.inputs[layer] = x
        return ""

    def layer(self, node: Node, x: Node | None = None) -> Node:
        """A layer with what was decided for it; x: what it multiplies, packed."""
        x = x or self.inputs.get(node)
        attrs = dict(node.attrs)
        if x is not None:
            attrs |= {"activations": "packed", "step": 0.0, "zero": 0}
        tensors = list(node.args[1:])
        if node in self.results:
            (_, step, zero), tensors[-1] = self.results[node]
            attrs |= {"out_step": step, "out_zero": zero, "out": torch.float32}
        return self.o.call(quantized_linear, x or node.args[0], *tensors, **attrs)


def _rounding(layer: Node) -> _How:
    return layer.attr("activations"), layer.attr("step"), layer.attr("zero")


def _unscaled(x: Node) -> tuple[Node, Node | None]:
    """x = y * factors of columns as y and those, as passes/quantizing.py makes it; else x."""
    if x.op.name == "aten.mul.Tensor":
        y, factors = x.args
        if isinstance(factors, Node) and factors.op is CONST and factors.shape == x.shape[-1:]:
            return y, factors  # type: ignore[return-value]
    return x, None


def _placeholder(o: Any, x: Node) -> Node:
    """An input as x is once it is packed: numbers of f32."""
    return o.input("x", x.tensor_type.with_dtype(torch.float32))
