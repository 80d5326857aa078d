"""layer(layer(x, a), b) -> layer(x, b a), and adapters beside a layer into its weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from infopt.compiler.cost import node_seconds
from infopt.compiler.errors import CannotInfer
from infopt.compiler.exchange import exchange
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.interpret import evaluate
from infopt.compiler.ops import CONST
from infopt.compiler.pipeline import Pass, PassContext
from infopt.passes.conv_pairs import conv_pair
from infopt.passes.factor_pairs import Pair, linear_pair
from infopt.passes.new_constants import new_constant

_ADD, _MUL = "aten.add.Tensor", "aten.mul.Scalar"
_EXACT = (torch.float32, torch.float64)


@dataclass(frozen=True)
class MergeFactors(Pass):
    """linear(x, w) + s linear(linear(x, a), b) -> linear(x, w + s b a), and without the first term

    Convolutions as linear layers, where one window sees the same. Not in the default list: who
    exchanges adapters asks for them to stay. Merged only where one product costs less than those it
    replaces, and where weights are in a dtype in which the sum is not rounded coarsely: a model
    that comes in two thin factors keeps them.
    """

    name: ClassVar[str] = "merge-factors"
    stage: ClassVar[Stage] = Stage.COMPRESS

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        while True:  # of three factors in a row, what two became and the third
            merged = _Merging(graph, ctx)
            changes = {n: one for n, one in merged.changes.items() if ctx.admits(n)}
            if not changes:
                for site in merged.declined:
                    ctx.site(*site)
                return graph
            for node in changes:
                ctx.site(node, True, gain=merged.gains[node])
            graph = exchange(graph, changes, ctx.builder).with_consts(merged.tensors)


class _Merging:
    """What can be merged at once: pairs that have no layer in common."""

    def __init__(self, graph: Graph, ctx: PassContext) -> None:
        self.graph, self.ctx = graph, ctx
        self.changes: dict[Node, Node] = {}
        self.gains: dict[Node, float] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        self.declined: list[tuple[Node, bool, str, float | None]] = []
        taken: set[Node] = set()
        # sums first: their side branches are pairs too
        for node in sorted(graph.nodes(), key=lambda n: n.op.name != _ADD):
            found = _found(node)
            if found is None or taken & set(found.replaced):
                continue
            reason, gain = self._judge(node, found)
            if reason:
                self.declined.append((node, False, reason, gain))
            if not reason or found.base is not None:
                taken.update(found.replaced)

    def _judge(self, node: Node, found: _Found) -> tuple[str, float | None]:
        """Merge, or say why not; and what one product would save."""
        graph, ctx = self.graph, self.ctx
        reason = found.pair.refusal()
        if reason:
            return reason, None
        for weight in found.read:
            if weight.op is not CONST:
                return f"weights are {weight.op.name}s, not constants", None
        made, shift = found.weight(ctx.builder), found.shift(ctx.builder)
        if made.dtype not in _EXACT or node.dtype != made.dtype:
            return f"the merged weight would be rounded to {made.dtype}", None
        inside = {*found.replaced, found.scaled}
        for old in (n for n in (*found.replaced, found.scaled) if n not in (node, None)):
            others = set(graph.users(old)) - inside - {node}
            if others or graph.is_output(old):
                return f"the product {old!r} is read elsewhere too", None
        try:
            one = found.pair.one(ctx.builder, made, shift)
        except CannotInfer as error:
            return str(error), None
        if one.shape != node.shape:
            return f"one product is {one.type}, expected {node.type}", None
        before = sum(node_seconds(n, ctx.target, graph.dims) for n in found.replaced)
        gain = before - node_seconds(one, ctx.target, graph.dims)
        if gain <= 0:
            told = f"one takes {(before - gain) * 1e6:.4g} us, as it is {before * 1e6:.4g} us"
            return f"one product does not pay: {told}", gain
        stem = f"merged_{found.pair.b.attr('name')}"
        weight = self._constant(stem, made)
        if found.pair.inner is not None:
            assert shift is not None
            shift = self._constant(f"{stem}_bias", shift)
        self.changes[node], self.gains[node] = found.pair.one(ctx.builder, weight, shift), gain
        return "", gain

    def _constant(self, name: str, made: Node) -> Node:
        value = _value(self.graph, made)
        const = new_constant(self.ctx.builder, name, value, self.graph, self.tensors)
        self.ctx.derive(str(const.attr("name")), made)
        return const


@dataclass(frozen=True)
class _Found:
    """Two layers, and where their sum is taken the layer beside them."""

    pair: Pair
    base: Node | None = None
    scaled: Node | None = None
    scale: float = 1.0

    @property
    def replaced(self) -> tuple[Node, ...]:
        base = (self.base,) if self.base else ()
        return (self.pair.first, self.pair.second, *base)

    @property
    def read(self) -> list[Node]:
        beside = (self.base.args[1],) if self.base else ()
        return [n for n in (*self.pair.read, *beside) if isinstance(n, Node)]

    def weight(self, o: Builder) -> Node:
        """b a, times the scale, plus the weight beside it."""
        product = self.pair.weight(o)
        if self.base is None:
            return product
        if self.scale != 1.0:
            product = o.mul(product, self.scale)
        return o.add(self.base.args[1], product)

    def shift(self, o: Builder) -> Node | None:
        return self.base.args[2] if self.base else self.pair.shift(o)  # type: ignore[return-value]


def _found(node: Node) -> _Found | None:
    """layer(x, w, bias) + scale * layer(layer(x, a), b), or the pair that ends with this node"""
    if node.op.name != _ADD:
        pair = _pair(node)
        return None if pair is None else _Found(pair)
    if node.attr("alpha") != 1:
        return None
    for base, side in (node.args, node.args[::-1]):
        assert isinstance(base, Node) and isinstance(side, Node)
        scale, scaled = 1.0, None
        if side.op.name == _MUL:
            scale, scaled = float(side.attr("other")), side
            (side,) = side.inputs
        pair = _pair(side)
        if pair is None or pair.bias is not None or pair.inner is not None:
            continue
        if pair.is_beside(base) and base.shape == side.shape:
            return _Found(pair, base, scaled, scale)
    return None


def _pair(node: Node) -> Pair | None:
    return linear_pair(node) or conv_pair(node)


def _value(graph: Graph, node: Node) -> torch.Tensor:
    with torch.no_grad():
        known = {n: _value(graph, n) for n in node.inputs}
        return evaluate(graph, node, known, {})
