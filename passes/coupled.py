"""What of a layer's inputs can be left out, and what else goes with it: coupled structures.

A linear layer reads channels [.., K], a convolution [N, K, ..]. Followed upwards, the ops that
treat channels apart end in the layers that make them: the hidden channels of a feed-forward part go
with rows of one product or two, the channels of one attention head with rows of three and with the
head itself, the inner channels of a residual block with features of a convolution. What ends
elsewhere (in a norm over channels, a residual sum, an input, a cache) cannot be cut there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import sympy
import torch

from infopt.codegen.pointwise import find as pointwise_form
from infopt.compiler.graph import Graph, Node
from infopt.compiler.ops import CONST, INPUT
from infopt.passes.coupled_channels import carried, layer_axis, reason_against
from infopt.passes.layers import source_of

ATTENTION = "attention"
_CACHED = ("kv_attention", "kv_attention_int8")  # keys and values have places in a cache
_RESHAPE, _PERMUTE = "aten.reshape.default", "aten.permute.default"
_ALONG = {"aten.slice.Tensor", "aten.cat.default"}
_CASTS = {"aten.to.dtype", "aten.clone.default", "aten.contiguous.default"}
CUT = "_pruned"  # ends the name of what has lost units
_LAST = {"aten.layer_norm.default", "rms_norm"}  # what looks along the last dimension


@dataclass
class Coupled:
    """One structure: `count` units that stay or go as a whole.

    value    what the consumers read, with K channels; a unit is K / count of them
    axis     the dimension of its channels
    groups   how many stretches every unit has a part in: where keys and values cannot be cut, one
             query goes of each group that shares them
    readers  the layers that read it
    axes     every value from the makers to `value` -> the dimension its units lie along
    makers   the layers at the upper end, whose rows belong to units
    spans    of makers that make several things at once (queries, keys and values): (first place,
             length) of every stretch that all units lie in, one after the other
    """

    value: Node
    axis: int
    readers: tuple[Node, ...]
    count: int
    kind: str
    groups: int = 1
    axes: dict[Node, int] = field(default_factory=dict)
    makers: list[Node] = field(default_factory=list)
    spans: dict[Node, list[tuple[int, int]]] = field(default_factory=dict)

    def stretches(self, node: Node) -> list[tuple[int, int]]:
        """(first place, length) of all that has the units, along the dimension they lie along."""
        if node in self.spans:
            return self.spans[node]
        length = int(node.shape[self.axes[node]]) // self.groups
        return [(i * length, length) for i in range(self.groups)]

    def by_unit(self, node: Node, rows: torch.Tensor) -> torch.Tensor:
        """[count, n] of a number for every place of a value."""
        parts = [rows[first : first + n].view(self.count, -1) for first, n in self.stretches(node)]
        return torch.cat(parts, 1)

    def places(self, node: Node, kept: torch.Tensor) -> torch.Tensor:
        """int64 [n], in order: what stays of a value along its dimension with the units kept."""
        stays = torch.ones(int(node.shape[self.axes[node]]), dtype=torch.bool)
        for first, length in self.stretches(node):
            stays[first : first + length] = False
            stays[first + _places(kept, length // self.count)] = True
        return stays.nonzero().flatten()

    @property
    def width(self) -> int:
        """Channels of a unit."""
        return int(self.value.shape[self.axis]) // self.count

    @property
    def numbers(self) -> int:
        """How many weights belong to one unit."""
        makers = sum(
            prod(n.args[1].shape[1:]) * sum(length for _, length in self.stretches(n))  # type: ignore[union-attr]
            for n in self.makers
        )
        readers = sum(int(n.args[1].tensor_type.numel) for n in self.readers)  # type: ignore[union-attr]
        return (makers + readers) // self.count


def candidates(graph: Graph) -> dict[tuple[Node, int], tuple[Node, ...]]:
    """What layers read: (value, dimension of its channels) -> these layers."""
    found: dict[tuple[Node, int], tuple[Node, ...]] = {}
    for node in graph.nodes():
        if (axis := layer_axis(node)) is not None:
            key = (node.args[0], axis)
            found[key] = (*found.get(key, ()), node)  # type: ignore[index, arg-type]
    return found  # type: ignore[return-value]


def coupled(graph: Graph, value: Node, axis: int, readers: tuple[Node, ...]) -> Coupled | str:
    """The structure of what layers read, or why it has none."""
    if not isinstance(value.shape[axis], int):
        return f"how wide {value!r} is is open"
    if reason := next(filter(None, map(reason_against, readers)), ""):
        return reason
    found = Coupled(value, axis, readers, *_units(value, axis))
    if found.count < 2:
        return "it is one unit"
    reason = _follow(graph, value, axis, found)
    if reason:
        return reason
    if any(_is_cut(n.args[1]) for n in (*readers, *found.makers)):
        return "it has lost units already"
    for node in found.axes:
        for user in graph.users(node):
            mixes = user not in found.axes or user in found.makers
            if mixes and not (node is value and user in readers):
                return f"{node!r} is also read by {user.op.name}"
        if graph.is_output(node):
            return f"{node!r} is a result"
    return found


def _units(value: Node, axis: int) -> tuple[int, str, int]:
    """How many units a value has, what they are, and in how many groups: heads, or channels. What
    was flattened has a channel's places side by side."""
    if (heads := _heads(value)) is not None:
        return heads
    size, node = value.shape[axis], value
    while node.op.name in _CASTS or (pointwise_form(node) and len(tuple(node.inputs)) == 1):
        node = next(node.inputs)
    if node.op.name == _RESHAPE and axis == value.tensor_type.rank - 1:
        shape = next(node.inputs).shape
        for place, channels in enumerate(shape[:-1]):
            if prod(shape[:place]) == prod(node.shape[:axis]) and isinstance(channels, int):
                size = channels
    return size, "channels", 1  # type: ignore[return-value]


def _heads(value: Node) -> tuple[int, str, int] | None:
    """How many heads of keys and values there are above; where these lie in a cache, how many
    queries share one, and of how many groups. None without attention."""
    node: Any = value
    while isinstance(node, Node) and node.op.name in (_RESHAPE, _PERMUTE, *_CASTS):
        node = node.args[0]
    if not isinstance(node, Node) or node.op.name not in (ATTENTION, *_CACHED):
        return None
    queries, heads = node.args[0].shape[1], node.args[1].shape[1]  # type: ignore[union-attr]
    if not isinstance(heads, int) or not isinstance(queries, int):
        return None
    if node.op.name == ATTENTION:
        return heads, "heads", 1
    return queries // heads, "queries of every group", heads


def _follow(graph: Graph, node: Node, dim: int, found: Coupled) -> str:
    """Adds a value whose units lie along `dim`, and all above it; why not, or ""."""
    if node in found.axes:
        return "" if found.axes[node] == dim else f"{node!r} is read along two dimensions"
    if isinstance(node.type, tuple) or node.serial:
        return f"{node.op.name} is not known to treat channels apart"
    size, name = node.shape[dim], node.op.name
    if not isinstance(size, int) or size % (found.count * found.groups):
        return f"{node!r} has {size} places for {found.count} units"
    found.axes[node] = dim
    if node.op is CONST:
        return ""
    if node.op is INPUT:
        return f"{node!r} is an input"
    if not any(node.inputs):
        return f"{name} is not known to treat channels apart"
    if dim == layer_axis(node):
        found.makers.append(node)
        return reason_against(node)
    if found.groups == 1 and (part := _part_of(node, dim)) is not None:
        maker, spans = part
        if any(length % found.count for _, length in spans):
            return f"{maker!r} has stretches of {spans} places for {found.count} units"
        known = found.spans.setdefault(maker, [])
        if any(a < c + d and c < a + b for a, b in spans for c, d in known):
            return f"{maker!r} is read twice at the same places"
        known += spans
        found.axes[maker] = layer_axis(maker)  # type: ignore[assignment]
        if maker not in found.makers:
            found.makers.append(maker)
        return reason_against(maker)
    above = _above(node, dim, found.count * found.groups)
    if above is None:
        return f"{name} is not known to treat channels apart"
    for arg, place in above:
        reason = _follow(graph, arg, place, found)
        if reason:
            return reason
    return ""


def _part_of(node: Node, dim: int) -> tuple[Node, list[tuple[int, int]]] | None:
    """The layer that a value is a stretch of, cut out of its channels or split off as one of
    several equal parts, and the stretches that have the value's units."""
    maker = next(node.inputs)
    last = layer_axis(maker)
    if last is None or not isinstance(size := maker.shape[last], int):
        return None
    if node.op.name == "aten.slice.Tensor":
        if node.attr("dim") % node.tensor_type.rank != last or dim != last:
            return None
        first, length = node.attr("start") or 0, node.shape[last]
        known = isinstance(first, int) and first >= 0 and isinstance(length, int)
        return (maker, [(first, length)]) if known and node.attr("step") == 1 else None
    if node.op.name != _RESHAPE or last != maker.tensor_type.rank - 1:
        return None
    several = sympy.sympify(prod(node.shape[:dim])) / prod(maker.shape[:last])
    if several == 1 or not several.is_Integer or size % int(several):
        return None
    length = size // int(several)
    return maker, [(i * length, length) for i in range(int(several))]


def _above(node: Node, dim: int, count: int) -> list[tuple[Node, int]] | None:
    """The operands that have the units, each with its dimension; None where the op mixes them."""
    name, rank, first = node.op.name, node.tensor_type.rank, next(node.inputs)
    if name == ATTENTION:
        q, k, v, mask = node.args
        if dim != 1:
            return None
        parts = [(q, 1), (k, 1), (v, 1)]
        if isinstance(mask, Node) and mask.tensor_type.rank == 4 and mask.shape[1] != 1:
            parts.append((mask, 1))
        return parts  # type: ignore[return-value]
    if name in _CACHED:
        return [(first, 1)] if dim == 1 else None
    if name == _PERMUTE:
        return [(first, node.attr("dims")[dim] % first.tensor_type.rank)]
    if name == _RESHAPE:
        for place, size in enumerate(first.shape):
            same = prod(first.shape[:place]) == prod(node.shape[:dim])
            if same and isinstance(size, int) and size % count == 0:
                return [(first, place)]
        return None
    if (over_planes := carried(node, dim)) is not None:
        return over_planes
    if name in _CASTS or (name in _LAST and dim < rank - len(_normalized(node))):
        return [(first, dim)]
    if name == "aten.select.int":
        picked = node.attr("dim") % first.tensor_type.rank
        return [(first, dim + (picked <= dim))]
    if name in _ALONG:
        along = node.attr("dim") % rank
        return [(a, dim) for a in node.inputs] if along != dim else None
    if pointwise_form(node) is None or any(isinstance(a, tuple) for a in node.args):
        return None
    parts = []
    for arg in node.inputs:
        place = dim - (rank - arg.tensor_type.rank)
        if place >= 0 and arg.shape[place] != 1:
            if arg.shape[place] != node.shape[dim]:
                return None
            parts.append((arg, place))
    return parts or None


def _is_cut(weight: Any) -> bool:
    source = source_of(weight)
    return source is not None and str(source.attr("name")).rstrip("_").endswith(CUT)


def _normalized(node: Node) -> Sequence[Any]:
    return dict(node.attrs).get("normalized_shape", (0,))


def _places(kept: torch.Tensor, width: int) -> torch.Tensor:
    """The places of units that have `width` each."""
    return (kept[:, None] * width + torch.arange(width)).flatten()
