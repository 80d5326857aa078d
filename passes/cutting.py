"""Layers with fewer channels: coupled structures of a graph, rebuilt from makers to readers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from infopt.compiler.errors import DependsOnSize
from infopt.compiler.graph import Graph, Node
from infopt.compiler.infer import Builder
from infopt.compiler.ops import CONST
from infopt.compiler.types import Size, TensorType, contiguous_strides
from infopt.passes.coupled import CUT, Coupled
from infopt.passes.coupled_channels import is_convolution, sees_a_border
from infopt.passes.layers import source_of, value_of
from infopt.passes.new_constants import new_constant


@dataclass(frozen=True)
class Layer:
    """A layer's input and constants.

    scale   what a convolution's products are multiplied by, feature by feature
    border  [features, 1, ..]: the window of one more channel, of ones, added to the result
    """

    x: Node
    weight: torch.Tensor
    scale: torch.Tensor | None
    shift: torch.Tensor | None
    border: torch.Tensor | None = None

    @property
    def factors(self) -> torch.Tensor:
        """f64, of the weight's shape: what inputs are multiplied by in all."""
        if self.scale is None:
            return self.weight.double()
        return self.weight.double() * self.scale.double().view(-1, *[1] * (self.weight.dim() - 1))

    def rows(self, places: torch.Tensor) -> Layer:
        """The layer with these features only."""
        scale, shift, border = (
            None if t is None else t[places].contiguous()
            for t in (self.scale, self.shift, self.border)
        )
        return Layer(self.x, self.weight[places].contiguous(), scale, shift, border)


@dataclass(frozen=True)
class Cut:
    """A structure with fewer units: its readers, and what they became."""

    nodes: dict[Node, Node]
    layers: dict[Node, Layer]


class Cutting:
    """Structures of one graph with fewer units.

    tensors  the constants made so far, by name
    changes  readers of the structures that were accepted -> what they became
    """

    def __init__(self, graph: Graph, o: Builder) -> None:
        self.graph, self.o = graph, o
        self.tensors: dict[str, torch.Tensor] = {}
        self.changes: dict[Node, Node] = {}
        self._layers: dict[Node, Layer] = {}
        self._values: dict[Node, torch.Tensor] = {}

    def accept(self, cut: Cut) -> None:
        """What is cut from now on stands on this: a layer that reads one structure may make
        another, and loses channels of both."""
        self.changes |= cut.nodes
        self._layers |= cut.layers

    def layer(self, node: Node) -> Layer:
        """What a layer is after all that was accepted."""
        if node in self._layers:
            return self._layers[node]
        x, weight, *rest = (self._value(a) if i else a for i, a in enumerate(node.args))
        scale, shift = rest[:2] if node.op.name == "conv_act" else (None, rest[0])
        return Layer(x, weight, scale, shift)

    def cut(self, found: Coupled, kept: torch.Tensor, mean: torch.Tensor | None) -> Cut:
        """A structure with the units kept, int64 [n], in order; what its readers add takes up the
        mean f64 [K] of what is gone, where it is known."""
        x = self._image(found.value, found, kept, {})
        places = found.places(found.value, kept)
        nodes, layers = {}, {}
        for node in found.readers:
            layer = self.layer(node)
            if mean is not None:
                gone = mean.clone()
                gone[places] = 0
                layer = self._moved(node, layer, gone)
            layers[node] = replace(layer, x=x, weight=layer.weight[:, places].contiguous())
            nodes[node] = self._built(node, layers[node])
        return Cut(nodes, layers)

    def _moved(self, node: Node, layer: Layer, mean: torch.Tensor) -> Layer:
        """The layer that adds what it makes of the mean of its channels.

        Where windows reach into zeros, that differs from place to place: it is what the same window
        makes of a channel of ones, exact at borders and of as few numbers as a channel has.
        """
        window = torch.tensordot(layer.factors, mean, ([1], [0]))
        if is_convolution(node) and sees_a_border(node):
            if not window.any():
                return layer
            return replace(layer, border=window.to(layer.weight.dtype)[:, None].contiguous())
        added = window.flatten(1).sum(1) if window.dim() > 1 else window
        old = layer.shift
        dtype = layer.weight.dtype if old is None else old.dtype
        return replace(layer, shift=((0 if old is None else old.double()) + added).to(dtype))

    def _built(self, node: Node, layer: Layer) -> Node:
        o, (_, weight, *rest) = self.o, node.args
        parts = [layer.scale, layer.shift] if node.op.name == "conv_act" else [layer.shift]
        args: list[Node | None] = [self._const(weight, layer.weight)]
        for old, tensor in zip(rest, parts, strict=False):
            args.append(None if tensor is None else self._const(old or weight, tensor))
        args += rest[len(parts) :]
        made = self._like(node, (layer.x, *args), layer.weight.shape[0])
        if layer.border is None:
            return made
        t = layer.x.tensor_type
        ones = o.full([1, 1, *t.shape[2:]], 1.0, dtype=t.dtype, device=t.device)
        border = self._const(weight, layer.border, "_border")
        return o.add(
            made, self._like(node, (ones, border, *[None] * len(rest)), len(layer.border), 1)
        )

    def _like(
        self,
        node: Node,
        args: Sequence[Any],
        features: int,
        batch: Size | None = None,
        **attrs: Any,
    ) -> Node:
        """A layer on other arguments. Where the reference of a convolution asks about an open size,
        the type of the sizes seen holds if it is the node's but for these sizes."""
        try:
            return self.o.call(node.op, *args, **(dict(node.attrs) | attrs))
        except DependsOnSize as error:
            t = node.tensor_type
            sizes = (t.shape[0] if batch is None else batch, features, *t.shape[2:])
            wanted = TensorType(sizes, t.dtype, contiguous_strides(sizes), t.device)
            if t.strides != contiguous_strides(t.shape) or error.seen != wanted:
                raise
            tensors, attributes = node.op.bind(tuple(args), dict(node.attrs) | attrs)
            return self.o.node(node.op, tensors, attributes, wanted)

    def _image(
        self, node: Node, found: Coupled, kept: torch.Tensor, image: dict[Node, Node]
    ) -> Node:
        """A value with the units kept only."""
        if node in image:
            return image[node]
        dim, o = found.axes[node], self.o
        places = found.places(node, kept)
        if node.op is CONST:
            made = self._const(node, self._value(node).index_select(dim, places))
        elif node in found.makers:
            made = self._built(node, self.layer(node).rows(places))
        else:

            def arg_of(arg: Any) -> Any:
                if isinstance(arg, tuple):
                    return tuple(map(arg_of, arg))
                return self._image(arg, found, kept, image) if arg in found.axes else arg

            args = tuple(map(arg_of, node.args))
            if node.op.name == "aten.reshape.default":
                shape = [*node.shape]
                shape[dim] = len(places)
                made = o.reshape(args[0], shape)
            elif node.args[0] in found.spans:  # a slice of what makes several things at once
                source = found.places(node.args[0], kept)
                start, end = node.attr("start") or 0, (node.attr("start") or 0) + node.shape[dim]
                first, last = (int((source < n).sum()) for n in (start, end))
                made = o.call("aten.slice.Tensor", args[0], dim, first, last, 1)
            elif is_convolution(node):
                made = self._like(node, args, len(places), groups=args[0].shape[1])
            else:
                made = o.rebuild(node, args)
        image[node] = made
        return made

    def _value(self, node: Any) -> Any:
        """The tensor of a constant, the same at every call; None of None."""
        if node is not None and node not in self._values:
            self._values[node] = value_of(self.graph, node).detach()
        return None if node is None else self._values[node]

    def _const(self, of: Node, tensor: torch.Tensor, ending: str = CUT) -> Node:
        """A constant that stands for another, or that itself where nothing changed."""
        if tensor is self._values.get(of):
            return of
        source = source_of(of)
        assert source is not None
        name = f"{source.attr('name')}{ending}"
        return new_constant(self.o, name, tensor, self.graph, self.tensors)


def between(roots: Iterable[Node], ends: set[Node]) -> list[Node]:
    """All nodes above the roots, these included, up to the ends, these excluded."""
    found: dict[Node, None] = {}
    stack = [*roots]
    while stack:
        node = stack.pop()
        if node not in found and node not in ends:
            found[node] = None
            stack += node.inputs
    return list(found)
