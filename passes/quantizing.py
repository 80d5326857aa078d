"""The quantized form of one layer with weights: what both quantizing passes are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from re import sub
from typing import Any

import torch

from infopt.codegen.activation_range import ActivationRange
from infopt.codegen.kernel import find_emitter
from infopt.codegen.kernels.quantized_embedding import quantized_embedding
from infopt.codegen.kernels.quantized_linear import quantized_gated_linear, quantized_linear
from infopt.codegen.weight_formats.integers import Integers
from infopt.codegen.weight_formats.rounding import Moments
from infopt.codegen.weight_formats.stored_op import stored_weight
from infopt.codegen.weight_formats.weight_format import WeightFormat, weight_format
from infopt.compiler.accuracy import compare
from infopt.compiler.graph import Graph, Node
from infopt.compiler.inline import inlined
from infopt.compiler.pipeline import PassContext
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType
from infopt.passes.layers import (
    LINEARS,
    is_table,
    moments_of,
    names_of,
    source_of,
    value_of,
    watch_calibration,
    weights_of,
)
from infopt.passes.new_constants import new_constant

_NORM = "aten.layer_norm.default"
_LEAST = 4096  # elements: smaller weights cost nothing as they are
_GROUPED = "grouped_linear"
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class Quantizing:
    """Layers of one graph in other formats.

    tensors  the constants made so far, by name: each encoded weight once, however often it is read
    typical  what inputs of candidates hold on whose values a kernel's time depends
    moments  what calibration inputs bring to the linear layers, by what a layer reads
    smooth   whether columns of what layers read may be multiplied by factors that calibration
             gives, and weights divided
    most     of a layer's results: what bytes may lose of them before 16 bits are taken
    coarse   layers whose activations stay in 16 bits: what bytes would lose of their results
    """

    def __init__(
        self,
        graph: Graph,
        ctx: PassContext,
        moments: dict[Node, Moments] | None = None,
        smooth: bool = False,
        most: float = math.inf,
    ) -> None:
        self.graph, self.ctx, self.o = graph, ctx, ctx.builder
        self.smooth, self.most = smooth, most
        if moments is not None:
            self.moments = moments
        self.tensors: dict[str, torch.Tensor] = {}
        self.typical: dict[Node, torch.Tensor] = {}
        self._encoded: dict[tuple[Node, str, Node | None], tuple[Node, ...]] = {}
        self._errors: dict[tuple[Node, str], float] = {}
        self._smoothing: dict[Node, tuple[torch.Tensor, Node] | None] = {}
        self.coarse: dict[Node, float] = {}

    def layers(self) -> list[Node]:
        """The linear layers, those of groups of rows and the tables of rows, in order."""
        known = (*LINEARS, _GROUPED)
        return [n for n in self.graph.nodes() if n.op.name in known or is_table(n)]

    def refusal(self, node: Node) -> str:
        """Why no format at all is possible for the layer, "" where one is."""
        weights = weights_of(node)
        if node.op.name == _GROUPED:
            return (
                "every group of its rows has a weight of its own: formats have no kernel for that"
            )
        if not names_of(node):
            return "its weight is not a constant"
        n, k = weights[0].shape
        for dtype in (*(w.dtype for w in weights), node.dtype):
            if dtype not in _FLOATS:
                return f"it computes in {dtype}"
        return f"{n} x {k} is too small to pay" if n * k < _LEAST else ""

    def candidate(self, node: Node, format: str, activations: str) -> Node | str:
        """The layer with inputs in place of weights in a format, before the work of encoding them,
        or the reason why no kernel computes that."""
        stored = weight_format(format)
        held = [self._placeholders(stored, i, w) for i, w in enumerate(weights_of(node))]
        found = self._made(node, stored, activations, held)
        reason = no_kernel(found, self.ctx.target)
        return f"no kernel for {format} here: {reason}" if reason else found

    def replacement(self, node: Node, format: str, activations: str) -> Node | str:
        """The layer with weights in a format, or the reason why no kernel computes that."""
        if activations == "int8-static" and not self.is_made_by_layer(node):
            activations = "int8"
        found, stored = self.candidate(node, format, activations), weight_format(format)
        if isinstance(found, str):
            return found
        if is_table(node):
            parts = [self._parts(w, stored, None) for w in weights_of(node)]
            return self._made(node, stored, activations, parts)
        x, fixed = node.args[0], (1.0, 0)
        assert isinstance(x, Node)
        smoothing = self.smoothing(x, stored.dense, activations) if self.smooth else None
        rounded = activations.startswith("int8") and self.most < math.inf
        if rounded and self.ranges[x].seen:
            error = self.rounding_error(x, smoothing, activations)
            if error > self.most and activations == "int8-static":  # a range for each row may do
                activations, smoothing = "int8", None
                error = self.rounding_error(x, smoothing, activations)
            if error > self.most:
                self.coarse[node], activations, smoothing = error, "bf16", None
        if activations == "int8-static":
            if not self.ranges[x].seen:
                return "calibration inputs never reached it"
            fixed = self.ranges[x].step_and_zero(smoothing and smoothing[0])
        parts = [self._parts(w, stored, x, smoothing) for w in weights_of(node)]
        scaled = x if smoothing is None else self.o.mul(x, smoothing[1])
        return self._made(node, stored, activations, parts, scaled, fixed)

    def _made(
        self,
        node: Node,
        stored: WeightFormat,
        activations: str,
        parts: Sequence[tuple[Node, ...]],
        x: Node | None = None,
        fixed: tuple[float, int] = (1.0, 0),
    ) -> Node:
        """parts: of every weight the values, scales, row sums and, if there is one, remainder;
        x: what it multiplies, if not what it did; fixed: step and zero point of a static range."""
        attrs: dict[str, Any] = {"format": stored.dense.name, "out": node.dtype}
        if is_table(node):  # no row sums: nothing is multiplied
            (table,), ids = weights_of(node), node.args[1]
            held = (*parts[0][:2], *parts[0][3:])
            return self.o.call(quantized_embedding, ids, *held, width=table.shape[1], **attrs)
        count = LINEARS[node.op.name]
        op = quantized_gated_linear if count == 2 else quantized_linear
        attrs["activations"] = activations
        if node.op.name != "aten.linear.default":
            attrs["activation"] = node.attr("activation")
        if activations == "int8-static":
            attrs["step"], attrs["zero"] = fixed
        names = ("gate_remainder", "up_remainder") if count == 2 else ("remainder",)
        dense = [part for found in parts for part in found[:3]]
        remainders = {name: p[3] for name, p in zip(names, parts, strict=True) if p[3:]}
        rest = node.args[count + 1 :]
        return self.o.call(op, x or node.args[0], *dense, *rest, **remainders, **attrs)

    def is_made_by_layer(self, node: Node) -> bool:
        """Whether a linear layer makes what this layer reads for such layers alone, which can round
        it to bytes (passes/pack_activations.py) if the range is known before. Whoever else makes it
        sees whole rows, or a pass over them is needed anyway: then every row may have its own."""
        x = node.args[0]
        if not isinstance(x, Node) or LINEARS.get(x.op.name) != 1:
            return False
        others = len(self._readers(x)) != len(self.graph.users(x)) or self.graph.is_output(x)
        return not others

    def _readers(self, x: Node) -> list[Node]:
        """The layers that multiply x, of those that can be given packed rows."""
        return [
            n
            for n in self.graph.users(x)
            if n in self._linear and n.args.index(x) == 0 and LINEARS[n.op.name] == 1
        ]

    def smoothing(
        self, x: Node, codec: Integers, activations: str
    ) -> tuple[torch.Tensor, Node] | None:
        """Factors for the columns of what layers read, where whoever makes it can apply them for
        nothing and they make the error of those layers less."""
        static, readers = activations == "int8-static", self._readers(x)
        if not readers or not (static or (activations == "int8" and x.op.name == _NORM)):
            return None
        if x not in self._smoothing:
            self._smoothing[x] = None
            if self.ranges[x].seen:
                weights = [value_of(self.graph, w) for n in readers for w in weights_of(n)]
                factors = self.ranges[x].smoothing(weights, codec, static)
                if factors is not None:
                    name = f"{names_of(readers[0])[0]}_smoothing"
                    made = new_constant(self.o, name, factors, self.graph, self.tensors)
                    self._smoothing[x] = factors, made
        return self._smoothing[x]

    def rounding_error(
        self, x: Node, smoothing: tuple[torch.Tensor, Node] | None, activations: str
    ) -> float:
        """What rounding x to bytes moves the results of all layers that read it by: one answer for
        them, as x is rounded once, where it is made."""
        weights = [w for n in self._linear if n.args[0] is x for w in weights_of(n)]
        values = [value_of(self.graph, w) for w in weights]
        static = activations == "int8-static"
        return self.ranges[x].rounding_error(values, smoothing and smoothing[0], static)

    def error(self, node: Node, format: str) -> float:
        """The relative RMS error of a layer's weights in a format they were encoded in."""
        return max(self._errors[w, format] for w in weights_of(node))

    def bytes(self, node: Node, format: str | None) -> int:
        """What a layer's weights occupy in a format; None: as they are."""
        if format is None:
            return sum(int(w.tensor_type.nbytes) for w in weights_of(node))
        return sum(weight_format(format).bytes(*w.shape) for w in weights_of(node))  # type: ignore[arg-type]

    def _placeholders(self, stored: WeightFormat, index: int, weight: Node) -> tuple[Node, ...]:
        """Inputs of the types that the stored weight, a layer's index-th, has."""
        n, k = weight.shape
        held = {
            kind: self.o.input(f"{kind}{index}", TensorType.dense(shape, dtype))
            for kind, (shape, dtype) in stored.types(n, k).items()
        }
        if stored.remainder:
            self.typical[held["remainder"]] = stored.remainder.evenly(n, k)
        return tuple(held.values())

    @cached_property
    def moments(self) -> dict[Node, Moments]:
        return moments_of(self.graph, self.ctx, self._linear)

    @cached_property
    def _linear(self) -> list[Node]:
        """The linear layers that a format is possible for."""
        return [n for n in self.layers() if not is_table(n) and not self.refusal(n)]

    @cached_property
    def ranges(self) -> dict[Node, ActivationRange]:
        """Ranges of what the linear layers read, on calibration inputs."""
        found: dict[Any, ActivationRange] = {}
        for layer in self._linear:
            x = layer.args[0]
            found.setdefault(x, ActivationRange(int(x.shape[-1])))  # type: ignore[union-attr]

        def watch(node: Node, value: Any) -> None:
            if node in found:
                found[node].add(value)

        watch_calibration(self.graph, self.ctx, watch)
        return found

    def _parts(
        self,
        weight: Node,
        format: WeightFormat,
        x: Node | None,
        smoothing: tuple[torch.Tensor, Node] | None = None,
    ) -> tuple[Node, ...]:
        """Constants with values, scales, row sums and the remainder, if there is one, of a weight,
        made once; x: what it multiplies first, which calibration looks at; smoothing: by what x is
        multiplied before that."""
        key = (weight, format.name, smoothing and smoothing[1])
        if key in self._encoded:
            return self._encoded[key]
        source = source_of(weight)
        assert source is not None
        tensor = value_of(self.graph, weight)
        if smoothing is not None:
            tensor = tensor.float() / smoothing[0]
        moments = None
        if x is not None and self.ctx.calibration and self.moments[x].rows:
            moments = self.moments[x]
            if smoothing is not None:
                moments = moments.of_scaled(smoothing[0])
        with torch.no_grad():
            *parts, decoded = format.store(tensor, moments)
        self._errors[weight, format.name] = compare(tensor.float(), decoded).rms_rel
        stem = f"{source.attr('name')}_{sub('[^0-9a-z]+', '_', format.name)}".rstrip("_")
        nodes = []
        kinds = ("values", "scales", "sums", "remainder")
        for kind, part in zip(kinds, parts, strict=True):
            if part is None:
                continue
            name = f"{stem}_{kind}"
            nodes.append(new_constant(self.o, name, part, self.graph, self.tensors))
        # else no expression says how they were found
        if format.remainder is None and (x is None or not self.ctx.calibration):

            def encode(w: torch.Tensor) -> tuple[torch.Tensor, ...]:
                if format.is_expression:
                    return format.store(w)[:3]  # type: ignore[return-value]
                return tuple(stored_weight(w, format.name))

            recipe = inlined(encode, (weight,), self.o)
            for node, expression in zip(nodes, recipe, strict=True):
                self.ctx.derive(str(node.attr("name")), expression)
        self._encoded[key] = tuple(nodes)
        return self._encoded[key]


def no_kernel(node: Node, target: Target) -> str:
    """Why the target has no kernel for a node, "" where it has."""
    emitter, reason = find_emitter(node, target)
    return "" if emitter is not None else reason
