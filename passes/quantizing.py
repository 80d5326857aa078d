"""The quantized form of one layer with weights: what both quantizing passes are made of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from re import sub
from typing import Any

import torch

from infopt.codegen.kernel import find_emitter
from infopt.codegen.kernels.quantized_embedding import quantized_embedding
from infopt.codegen.kernels.quantized_linear import quantized_gated_linear, quantized_linear
from infopt.codegen.rounding import Moments
from infopt.codegen.weight_format import WeightFormat, weight_format
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
    weights_of,
)

_LEAST = 4096  # elements: smaller weights cost nothing as they are
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class Quantizing:
    """Layers of one graph in other formats.

    tensors  the constants made so far, by name: each encoded weight once, however often it is read
    typical  what inputs of candidates hold on whose values a kernel's time depends
    moments  what calibration inputs bring to the linear layers, by what a layer reads
    """

    def __init__(
        self, graph: Graph, ctx: PassContext, moments: dict[Node, Moments] | None = None
    ) -> None:
        self.graph, self.ctx, self.o = graph, ctx, ctx.builder
        if moments is not None:
            self.moments = moments
        self.tensors: dict[str, torch.Tensor] = {}
        self.typical: dict[Node, torch.Tensor] = {}
        self._encoded: dict[tuple[Node, str], tuple[Node, ...]] = {}
        self._errors: dict[tuple[Node, str], float] = {}

    def layers(self) -> list[Node]:
        """The linear layers and the tables of rows, in order."""
        return [n for n in self.graph.nodes() if n.op.name in LINEARS or is_table(n)]

    def refusal(self, node: Node) -> str:
        """Why no format at all is possible for the layer, "" where one is."""
        weights = weights_of(node)
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
        found, stored = self.candidate(node, format, activations), weight_format(format)
        if isinstance(found, str):
            return found
        x = None if is_table(node) else node.args[0]
        parts = [self._parts(w, stored, x) for w in weights_of(node)]
        return self._made(node, stored, activations, parts)

    def _made(
        self,
        node: Node,
        stored: WeightFormat,
        activations: str,
        parts: Sequence[tuple[Node, ...]],
    ) -> Node:
        """parts: of every weight the values, scales, row sums and, if there is one, remainder."""
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
        names = ("gate_remainder", "up_remainder") if count == 2 else ("remainder",)
        dense = [part for found in parts for part in found[:3]]
        remainders = {name: p[3] for name, p in zip(names, parts, strict=True) if p[3:]}
        return self.o.call(op, node.args[0], *dense, *node.args[count + 1 :], **remainders, **attrs)

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
        linear = [n for n in self.layers() if not is_table(n) and not self.refusal(n)]
        return moments_of(self.graph, self.ctx, linear)

    def _parts(self, weight: Node, format: WeightFormat, x: Node | None) -> tuple[Node, ...]:
        """Constants with values, scales, row sums and the remainder, if there is one, of a weight,
        made once; x: what it multiplies first, which calibration looks at."""
        key = (weight, format.name)
        if key in self._encoded:
            return self._encoded[key]
        source = source_of(weight)
        assert source is not None
        tensor = value_of(self.graph, weight)
        moments = None
        if x is not None and self.ctx.calibration and self.moments[x].rows:
            moments = self.moments[x]
        with torch.no_grad():
            *parts, decoded = format.store(tensor, moments)
        self._errors[key] = compare(tensor.float(), decoded).rms_rel
        stem = f"{source.attr('name')}_{sub('[^0-9a-z]+', '_', format.name)}".rstrip("_")
        nodes = []
        kinds = ("values", "scales", "sums", "remainder")
        for kind, part in zip(kinds, parts, strict=True):
            if part is None:
                continue
            name = f"{stem}_{kind}"
            while name in self.graph.consts or name in self.tensors:
                name += "_"
            self.tensors[name] = part
            nodes.append(self.o.const(name, TensorType.of(part)))
        # else no expression says how they were found
        if format.is_expression and (x is None or not self.ctx.calibration):

            def encode(w: torch.Tensor) -> tuple[torch.Tensor, ...]:
                return format.store(w)[:3]  # type: ignore[return-value]

            recipe = inlined(encode, (weight,), self.o)
            for node, expression in zip(nodes, recipe, strict=True):
                self.ctx.derive(str(node.attr("name")), expression)
        self._encoded[key] = tuple(nodes)
        return self._encoded[key]


def no_kernel(node: Node, target: Target) -> str:
    """Why the target has no kernel for a node, "" where it has."""
    emitter, reason = find_emitter(node, target)
    return "" if emitter is not None else reason
