"""The quantized form of one layer with weights: what both quantizing passes are made of."""

from __future__ import annotations

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
    moments  what calibration inputs bring to the linear layers, by what a layer reads
    """

    def __init__(
        self, graph: Graph, ctx: PassContext, moments: dict[Node, Moments] | None = None
    ) -> None:
        self.graph, self.ctx, self.o = graph, ctx, ctx.builder
        if moments is not None:
            self.moments = moments
        self.tensors: dict[str, torch.Tensor] = {}
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

    def replacement(self, node: Node, format: str, activations: str) -> Node | str:
        """The layer with weights in a format, or the reason why no kernel computes that."""
        if is_table(node):
            return self._table(node, format)
        count, stored = LINEARS[node.op.name], weight_format(format)
        x, weights, rest = node.args[0], weights_of(node), node.args[count + 1 :]
        op = quantized_gated_linear if count == 2 else quantized_linear
        attrs = {"format": stored.dense.name, "activations": activations, "out": node.dtype}
        if node.op.name != "aten.linear.default":
            attrs["activation"] = node.attr("activation")
        names = ("gate_remainder", "up_remainder") if count == 2 else ("remainder",)

        def made(parts: list[tuple[Node, ...]]) -> Node:
            dense = [part for found in parts for part in found[:3]]
            remainders = {name: p[3] for name, p in zip(names, parts, strict=True) if p[3:]}
            return self.o.call(op, x, *dense, *rest, **remainders, **attrs)

        # types decide whether there is a kernel: ask before the work of encoding
        held = [self._placeholders(stored, *w.shape) for w in weights]
        reason = no_kernel(made(held), self.ctx.target)
        if reason:
            return f"no kernel for {format} here: {reason}"
        return made([self._parts(w, stored, x) for w in weights])

    def _table(self, node: Node, format: str) -> Node | str:
        (table,), ids, stored = weights_of(node), node.args[1], weight_format(format)
        attrs = {"format": stored.dense.name, "width": table.shape[1], "out": node.dtype}

        def made(parts: tuple[Node, ...]) -> Node:  # no row sums: nothing is multiplied
            return self.o.call(quantized_embedding, ids, *parts[:2], *parts[3:], **attrs)

        reason = no_kernel(made(self._placeholders(stored, *table.shape)), self.ctx.target)
        if reason:
            return f"no kernel for {format} here: {reason}"
        return made(self._parts(table, stored, None))

    def error(self, node: Node, format: str) -> float:
        """The relative RMS error of a layer's weights in a format they were encoded in."""
        return max(self._errors[w, format] for w in weights_of(node))

    def bytes(self, node: Node, format: str | None) -> int:
        """What a layer's weights occupy in a format; None: as they are."""
        if format is None:
            return sum(int(w.tensor_type.nbytes) for w in weights_of(node))
        return sum(weight_format(format).bytes(*w.shape) for w in weights_of(node))  # type: ignore[arg-type]

    def _placeholders(self, stored: WeightFormat, n: Any, k: Any) -> tuple[Node, ...]:
        """Inputs of the types that a stored [n, k] weight has."""
        return tuple(
            self.o.input(name, TensorType.dense(shape, dtype))
            for name, (shape, dtype) in stored.types(n, k).items()
        )

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
