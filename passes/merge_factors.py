"""linear(linear(x, a), b) -> linear(x, b a), and adapters beside a layer into its weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from infopt.compiler.cost import node_seconds
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.interpret import evaluate
from infopt.compiler.ops import CONST
from infopt.compiler.pipeline import Pass, PassContext
from infopt.compiler.types import TensorType

_LINEAR, _ADD, _MUL = "aten.linear.default", "aten.add.Tensor", "aten.mul.Scalar"
_EXACT = (torch.float32, torch.float64)


@dataclass(frozen=True)
class MergeFactors(Pass):
    """linear(x, w) + s linear(linear(x, a), b) -> linear(x, w + s b a), and without the first term

    Not in the default list: who exchanges adapters asks for them to stay. Merged only where one
    product costs less than those it replaces, and where weights are in a dtype in which the sum is
    not rounded coarsely: a model that comes in two thin factors keeps them.
    """

    name: ClassVar[str] = "merge-factors"
    stage: ClassVar[Stage] = Stage.COMPRESS

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        changes: dict[Node, Node] = {}
        tensors: dict[str, torch.Tensor] = {}
        told: set[Node] = set()
        # sums first: their side branches are pairs too
        for node in sorted(graph.nodes(), key=lambda n: n.op.name != _ADD):
            found = _side_branch(node) or _pair(node)
            if found is None or found.second in told:
                continue
            told.add(found.second)
            made = found.weight(ctx)
            reason, gain = self._declines(graph, node, found, made, ctx)
            ctx.site(node, not reason, reason, gain)
            if reason:
                continue
            name = f"merged_{found.b.attr('name')}"
            while name in graph.consts or name in tensors:
                name += "_"
            tensors[name] = _value(graph, made)
            ctx.derive(name, made)
            weight = ctx.builder.const(name, TensorType.of(tensors[name]))
            changes[node] = ctx.builder.linear(found.x, weight, found.bias)
        return ctx.exchange(graph, changes).with_consts(tensors) if changes else graph

    def _declines(
        self, graph: Graph, node: Node, found: _Found, made: Node, ctx: PassContext
    ) -> tuple[str, float | None]:
        for weight in (found.a, found.b, *((found.base.args[1],) if found.base else ())):
            if weight.op is not CONST:  # type: ignore[union-attr]
                return f"weights are {weight.op.name}s, not constants", None  # type: ignore[union-attr]
        if made.dtype not in _EXACT or node.dtype != made.dtype:
            return f"the merged weight would be rounded to {made.dtype}", None
        replaced = [found.first, found.second, *((found.base,) if found.base else ())]
        for old in replaced:
            others = [u for u in graph.users(old) if u not in (*replaced, node, found.scaled)]
            if others or (graph.is_output(old) and old is not node):
                return f"the product {old!r} is read elsewhere too", None
        one = ctx.builder.linear(found.x, made, found.bias)
        before = sum(node_seconds(n, ctx.target, graph.dims) for n in replaced)
        gain = before - node_seconds(one, ctx.target, graph.dims)
        if gain <= 0:
            told = f"one takes {(before - gain) * 1e6:.4g} us, as it is {before * 1e6:.4g} us"
            return f"one product does not pay: {told}", gain
        return "", gain


@dataclass(frozen=True)
class _Found:
    """first = linear(x, a), second = linear(first, b, bias); base: the layer beside them."""

    x: Node
    a: Node
    b: Node
    bias: Node | None
    first: Node
    second: Node
    base: Node | None = None
    scaled: Node | None = None
    scale: float = 1.0

    def weight(self, ctx: PassContext) -> Node:
        """b a, times the scale, plus the weight beside it."""
        o = ctx.builder
        product = o.matmul(self.b, self.a)
        if self.base is None:
            return product
        if self.scale != 1.0:
            product = o.mul(product, self.scale)
        return o.add(self.base.args[1], product)


def _pair(node: Node) -> _Found | None:
    if node.op.name != _LINEAR:
        return None
    first, b, bias = node.args
    assert isinstance(first, Node) and isinstance(b, Node)
    if first.op.name != _LINEAR or first.args[2] is not None or b.tensor_type.rank != 2:
        return None
    x, a = first.args[:2]
    assert isinstance(x, Node) and isinstance(a, Node)
    return None if a.tensor_type.rank != 2 else _Found(x, a, b, bias, first, node)


def _side_branch(node: Node) -> _Found | None:
    """linear(x, w, bias) + scale * linear(linear(x, a), b)"""
    if node.op.name != _ADD or node.attr("alpha") != 1:
        return None
    for base, side in (node.args, node.args[::-1]):
        assert isinstance(base, Node) and isinstance(side, Node)
        scale, scaled = 1.0, None
        if side.op.name == _MUL:
            scale, scaled = float(side.attr("other")), side
            (side,) = side.inputs
        pair = _pair(side)
        if pair is None or pair.bias is not None or base.op.name != _LINEAR:
            continue
        same = base.args[0] is pair.x and base.args[1].tensor_type.rank == 2  # type: ignore[union-attr]
        if same and base.shape == side.shape:
            found = (pair.x, pair.a, pair.b, base.args[2], pair.first, side)
            return _Found(*found, base, scaled, scale)  # type: ignore[arg-type]
    return None


def _value(graph: Graph, node: Node) -> torch.Tensor:
    with torch.no_grad():
        known = {n: _value(graph, n) for n in node.inputs}
        return evaluate(graph, node, known, {})
