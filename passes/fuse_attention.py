"""softmax(scale q kᵀ + mask) v -> attention(q, k, v, mask): the scores never reach memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import sympy
import torch

from infopt.codegen.kernels.attention import attention
from infopt.codegen.kernels.attention_sinks import attention_sinks
from infopt.compiler.errors import CannotInfer
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.pipeline import Pass, PassContext
from infopt.compiler.types import Size
from infopt.passes.bands import Band, added_band, band_of
from infopt.passes.sink_scores import sink_scores

_PRODUCTS = ("aten.matmul.default", "aten.bmm.default")
_SDPA = "aten.scaled_dot_product_attention.default"
# A fill this low leaves nothing of a score in the sum: the row stays uniform where all is masked.
_LOWEST = -1e30


class _Declined(Exception):
    """The reason why a product is not attention."""


@dataclass
class _Scores:
    """What is done to q kᵀ before the softmax."""

    scale: float = 1.0
    scaled: bool = False
    masks: list[Node] = field(default_factory=list)
    q: Node | None = None
    k: Node | None = None
    groups: tuple[Size, Size] | None = None  # batch and heads, where the product has them merged


@dataclass(frozen=True)
class FuseAttention(Pass):
    """softmax(scale q kᵀ + mask) v -> attention(q, k, v, mask)

    Finds SDPA calls (GQA and is_causal included) and the written-out form: scale by mul or div on
    q, k or the scores; masks added, filled with a very low number, or chosen by where; softmax in
    another dtype and cast back; key and value heads repeated for grouped queries; sinks, which are
    one more column of the scores. Of a mask that is a band, causality and the window are kept as
    numbers, so that keys outside are not read.
    """

    name: ClassVar[str] = "fuse-attention"
    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        changes: dict[Node, Node] = {}
        reader = _Reader(graph, ctx.builder)
        for node in graph.nodes():
            if node.op.name != _SDPA and not _weighs_values(node):
                continue
            try:
                changes[node] = reader.read(node)
            except (_Declined, CannotInfer) as reason:
                ctx.site(node, False, str(reason))
            else:
                ctx.site(node, True)
        return ctx.exchange(graph, changes) if changes else graph


def _weighs_values(node: Node) -> bool:
    """A product whose left side is a softmax: what looks like attention, and deserves a reason."""
    if node.op.name not in _PRODUCTS:
        return False
    return _softmax(node.args[0])[0].op.name == "aten.softmax.int"


def _softmax(weights: Node) -> tuple[Node, Node | None]:
    """What weights come from, and the step that drops columns of it, if there is one."""
    node = _through(weights)
    if node.op.name != "aten.slice.Tensor":
        return node, None
    return _through(next(node.inputs)), node


def _through(node: Node) -> Node:
    """The value behind casts, copies and heads that are merged with the batch."""
    while node.op.name in ("aten.to.dtype", "aten.contiguous.default", "aten.clone.default") or (
        _regrouped(node) is not None
    ):
        node = next(node.inputs)
    return node


def _regrouped(node: Node) -> tuple[Size, Size] | None:
    """(batch, heads) where a reshape only merges or splits them: [B, H, T, S] and [B * H, T, S]."""
    if node.op.name != "aten.reshape.default":
        return None
    shapes = sorted((node.shape, next(node.inputs).shape), key=len)
    if [len(s) for s in shapes] != [3, 4] or shapes[0][1:] != shapes[1][2:]:
        return None
    batch, heads = shapes[1][:2]
    return (batch, heads) if _equal(shapes[0][:1], (batch * heads,)) else None


class _Reader:
    """Reads products and SDPA calls, and makes the attention calls that they are."""

    def __init__(self, graph: Graph, o: Builder) -> None:
        self.graph, self.o = graph, o
        self.masks: dict[Node, Band | None] = {}  # all layers share one

    def read(self, node: Node) -> Node:
        made = self.sdpa(node) if node.op.name == _SDPA else self.written_out(node)
        return made if made.shape == node.shape else self.o.reshape(made, list(node.shape))

    def sdpa(self, node: Node) -> Node:
        q, k, v, mask = node.args
        if node.attr("dropout_p") != 0:
            raise _Declined(f"dropout_p is {node.attr('dropout_p')}")
        one_head = k.shape[:-3] == q.shape[:-3] and k.shape[-3:-2] == v.shape[-3:-2] == (1,)
        if not node.attr("enable_gqa") and q.shape[:-2] != k.shape[:-2] and not one_head:
            raise _Declined(f"q {q.type} and k {k.type} broadcast against each other")
        scale = node.attr("scale")
        if scale is None:
            if not isinstance(q.shape[-1], int):
                raise _Declined(f"the default scale depends on the size {q.shape[-1]}")
            scale = 1 / math.sqrt(q.shape[-1])
        return self.call(q, k, v, mask, float(scale), bool(node.attr("is_causal")))

    def written_out(self, node: Node) -> Node:
        weights, v = node.args
        softmax, cut = _softmax(weights)
        self.only_reader(weights, softmax, node)
        if softmax.attr("dim") != -1:
            raise _Declined(f"softmax over dim {softmax.attr('dim')}, expected -1")
        scores = _Scores()
        scored, sinks = self.without_sinks(next(softmax.inputs), cut)
        self.scores(scored, scores)
        assert scores.q is not None and scores.k is not None
        q, k = self.unscaled(scores.q, scores), self.unscaled(scores.k, scores)
        k = self.transposed(k)
        if scores.groups is not None:
            q, k, v = (self.split(t, scores.groups) for t in (q, k, v))
            scores.masks[:] = [self.split(m, scores.groups) for m in scores.masks]
        if len({q.dtype, k.dtype, v.dtype, node.dtype}) != 1:
            raise _Declined(
                f"q, k, v and the result are {q.dtype}, {k.dtype}, {v.dtype}, {node.dtype}"
            )
        mask = self.one_mask(scores.masks, q.dtype)
        return self.call(q, k, v, mask, scores.scale, causal=False, sinks=sinks)

    def without_sinks(self, scored: Node, cut: Node | None) -> tuple[Node, Node | None]:
        """What a softmax reads as (scores, sinks), where a column is cut off after it."""
        if cut is None:
            return scored, None
        found, rank = sink_scores(scored), cut.tensor_type.rank
        whole = cut.attr("dim") in (-1, rank - 1) and (cut.attr("start"), cut.attr("step")) == (
            0,
            1,
        )
        if found is None or not whole or cut.shape != found[0].shape:
            raise _Declined("columns of the attention weights are dropped that are no sinks")
        return found

    def only_reader(self, top: Node, bottom: Node, reader: Node) -> None:
        """Weights that are also returned must be computed anyway."""
        node = top
        while True:
            if self.graph.is_output(node):
                raise _Declined("the attention weights are a result of the graph")
            others = [u for u in self.graph.users(node) if u is not reader]
            if others:
                raise _Declined(f"the attention weights are also read by {others[0]!r}")
            if node is bottom:
                return
            node, reader = next(node.inputs), node

    def scores(self, node: Node, found: _Scores) -> None:
        """Walk down from the softmax to q kᵀ, collecting masks, then scales."""
        while node.op.name not in _PRODUCTS:
            name = node.op.name
            if name == "aten.baddbmm.default":
                mask, *product = node.args
                assert isinstance(mask, Node)
                found.scale *= node.attr("alpha")
                if node.attr("beta") != 1:
                    raise _Declined(f"the mask is scaled by {node.attr('beta')}")
                self.mask(mask, found)
                found.q, found.k = product
                return
            if name == "aten.to.dtype" and node.tensor_type.is_float:
                node = next(node.inputs)
            elif (groups := _regrouped(node)) is not None:
                found.groups = groups
                node = next(node.inputs)
            elif name == "aten.add.Tensor" and node.attr("alpha") == 1:
                node, mask = self.score_side(node)
                self.mask(mask, found)
            elif name == "aten.masked_fill.Scalar":
                node, hidden = node.args[0], (node.args[1], node.attr("value"))
                self.mask(self.fill(*hidden, shown=False, dtype=node.dtype), found)
            elif name in ("aten.where.self", "aten.where.ScalarOther"):
                node = self.where(node, found)
            elif name in (
                "aten.mul.Scalar",
                "aten.div.Scalar",
                "aten.mul.Tensor",
                "aten.div.Tensor",
            ):
                node = self.scaled(node, found)
                found.scaled = True
            else:
                raise _Declined(f"{name} between q kᵀ and the softmax")
        found.q, found.k = node.args
        if not isinstance(found.q, Node) or found.q.tensor_type.rank not in (3, 4):
            raise _Declined(f"q is {found.q.type}, expected [batch, heads, tokens, depth]")

    def split(self, node: Node, groups: tuple[Size, Size]) -> Node:
        """[B * H, T, S] as [B, H, T, S]; what is one for all stays one for all."""
        if node.tensor_type.rank != 3:
            return node
        first = (1, 1) if node.shape[0] == 1 else groups
        return self.o.reshape(node, [*first, *node.shape[1:]])

    def score_side(self, node: Node) -> tuple[Node, Node]:
        """(scores, mask) of a sum: the side with a product below it is the scores."""
        a, b = node.args
        for side, other in ((a, b), (b, a)):
            if _reaches_product(side):
                if side.shape != node.shape:
                    raise _Declined(f"the mask {other.type} is larger than the scores")
                return side, other
        raise _Declined("neither side of a sum below the softmax is a product")

    def mask(self, mask: Node, found: _Scores) -> None:
        if found.scaled:
            raise _Declined("the mask is scaled together with the scores")
        found.masks.append(mask)

    def where(self, node: Node, found: _Scores) -> Node:
        condition, kept = node.args[0], node.args[1]
        if node.op.name == "aten.where.self":
            value = self.constant(node.args[2])
        else:
            value = node.attr("other")
        if kept.shape != node.shape or kept.dtype != node.dtype:
            raise _Declined("the condition is larger than the scores")
        self.mask(self.fill(condition, value, shown=True, dtype=node.dtype), found)
        return kept

    def fill(self, condition: Node, value: object, shown: bool, dtype: torch.dtype) -> Node:
        """The additive mask of `condition` where scores are replaced by a very low value."""
        if not isinstance(value, int | float) or math.isnan(value):
            raise _Declined(f"scores are replaced by {value!r}, expected a number")
        if torch.tensor(value, dtype=torch.float64).to(dtype) == -math.inf:  # as f32's in bf16
            raise _Declined("scores are replaced by -inf: a row masked everywhere would be NaN")
        lowest = max(_LOWEST, -torch.finfo(dtype).max / 2)
        if value > lowest:
            raise _Declined(f"scores are replaced by {value}, which a sum may still tell apart")
        zeros = self.o.call("aten.scalar_tensor.default", 0.0, dtype=dtype)
        low = self.o.call("aten.scalar_tensor.default", float(value), dtype=dtype)
        chosen = (zeros, low) if shown else (low, zeros)
        return self.o.call("aten.where.self", condition, *chosen)

    def constant(self, node: Node) -> float:
        """The number a 0-d value holds, where the graph says it."""
        if node.op.name == "const" and node.tensor_type.numel == 1:
            return self.graph.consts[node.attr("name")].item()
        if node.op.name in ("aten.full.default", "aten.scalar_tensor.default"):
            return node.attr("fill_value" if "full" in node.op.name else "s")
        if node.op.name == "aten.full_like.default":
            return node.attr("fill_value")
        raise _Declined(f"{node.op.name} in the place of a constant")

    def scaled(self, node: Node, found: _Scores) -> Node:
        if node.op.name.endswith("Scalar"):
            value, factor = node.args[0], node.attr("other")
            if not isinstance(factor, int | float):
                raise _Declined(f"the scale {factor} is a size")
        else:
            value, factor = node.args[0], self.constant(node.args[1])
        if factor == 0 or value.dtype != node.dtype or value.shape != node.shape:
            raise _Declined(f"scale {factor} with a change of type")
        found.scale *= 1 / factor if ".div." in f".{node.op.name}" else factor
        return value

    def unscaled(self, node: Node, found: _Scores) -> Node:
        """q or k without its scale; scales below a transposition or reshape count too."""
        while node.op.name in ("aten.mul.Scalar", "aten.div.Scalar"):
            node = self.scaled(node, found)
        if node.op.name in ("aten.permute.default", "aten.reshape.default"):
            inner = next(node.inputs)
            if inner.op.name in ("aten.mul.Scalar", "aten.div.Scalar"):
                return self.o.rebuild(node, (self.unscaled(inner, found),))
        return node

    def transposed(self, node: Node) -> Node:
        """The last two dims exchanged; two transpositions in a row are none."""
        rank = node.tensor_type.rank
        order = [*range(rank - 2), rank - 1, rank - 2]
        if node.op.name == "aten.permute.default":
            inner = node.attr("dims")
            order = [inner[d] for d in order]
            node = next(node.inputs)
        return node if order == list(range(rank)) else self.o.permute(node, order)

    def one_mask(self, masks: list[Node], dtype: torch.dtype) -> Node | None:
        total: Node | None = None
        for mask in masks:
            if mask.dtype != dtype:
                raise _Declined(f"the mask is {mask.dtype}, q is {dtype}")
            total = mask if total is None else self.o.add(total, mask)
        return total

    def call(
        self,
        q: Node,
        k: Node,
        v: Node,
        mask: Node | None,
        scale: float,
        causal: bool,
        sinks: Node | None = None,
    ) -> Node:
        rank = q.tensor_type.rank
        if rank not in (3, 4) or k.tensor_type.rank != rank or v.tensor_type.rank != rank:
            raise _Declined(f"q, k, v are {q.type}, {k.type}, {v.type}, expected 3 or 4 dims")
        if not q.tensor_type.is_float:
            raise _Declined(f"q is {q.type}")
        if rank == 3:
            q, k, v = (self.o.reshape(t, [t.shape[0], 1, *t.shape[1:]]) for t in (q, k, v))
            if mask is not None and mask.tensor_type.rank == 3:
                mask = self.o.reshape(mask, [mask.shape[0], 1, *mask.shape[1:]])
        k, v = self.grouped(k), self.grouped(v)
        if k.shape[1] != v.shape[1]:
            raise _Declined(f"{k.shape[1]} key heads and {v.shape[1]} value heads")
        if not _equal(k.shape[2:3], v.shape[2:3]):  # torch reads past the end of the shorter one
            raise _Declined(f"{k.shape[2]} keys and {v.shape[2]} values")
        if mask is not None and mask.tensor_type.rank > 4:
            raise _Declined(f"the mask is {mask.type}")
        mask, causal, window = self.band(mask, causal)
        attrs = {"scale": scale, "causal": causal, "window": window}
        if sinks is None:
            return self.o.call(attention, q, k, v, mask, **attrs)
        if sinks.dtype != q.dtype or rank != 4:
            raise _Declined(f"sinks are {sinks.type}, q is {q.type}")
        return self.o.call(attention_sinks, q, k, v, sinks, mask, **attrs)

    def band(self, mask: Node | None, causal: bool) -> tuple[Node | None, bool, int]:
        """(what is left of a mask, causal, window): what is never seen is then never computed."""
        if mask is None:
            return None, causal, 0
        if mask not in self.masks:
            lowest = (
                max(_LOWEST, -torch.finfo(mask.dtype).max / 2) if mask.tensor_type.is_float else 0
            )
            self.masks[mask] = (
                band_of(mask, self.graph)
                if mask.dtype == torch.bool
                else added_band(mask, self.graph, lowest)
            )
        band = self.masks[mask]
        if band is None or not band.causal:
            return mask, causal, 0
        left: Node | None = None
        for part in band.rest:
            left = part if left is None else self.o.call("aten.bitwise_and.Tensor", left, part)
        return left, True, band.window

    def grouped(self, node: Node) -> Node:
        """[B, KV, S, D] behind a [B, KV * G, S, D] whose heads are repeated G times in a row."""
        if node.op.name == "aten.repeat_interleave.self_int" and node.attr("dim") in (1, -3):
            return next(node.inputs)
        if node.op.name != "aten.reshape.default":
            return node
        wide = next(node.inputs)
        if wide.op.name != "aten.expand.default" or wide.tensor_type.rank != 5:
            return node
        narrow = next(wide.inputs)
        batch, heads, _, tokens, depth = wide.shape
        repeated = (batch, heads * wide.shape[2], tokens, depth)
        if narrow.shape != (batch, heads, 1, tokens, depth) or not _equal(node.shape, repeated):
            return node
        shape = [batch, heads, tokens, depth]
        if narrow.op.name == "aten.reshape.default":
            source = next(narrow.inputs)
            if source.shape == tuple(shape):
                return source
        return self.o.reshape(narrow, shape)


def _equal(a: tuple[Size, ...], b: tuple[Size, ...]) -> bool:
    return len(a) == len(b) and all(sympy.simplify(x - y) == 0 for x, y in zip(a, b, strict=True))


def _reaches_product(node: Node) -> bool:
    """A product of two values, behind the steps that scores go through."""
    steps = ("aten.mul", "aten.div", "aten.add", "aten.to.", "aten.masked_fill", "aten.where")
    while node.op.name.startswith(steps) or _regrouped(node) is not None:
        if node.op.name in ("aten.add.Tensor",):
            return any(_reaches_product(a) for a in node.args if isinstance(a, Node))
        position = 1 if node.op.name.startswith("aten.where") else 0
        node = node.args[position]  # type: ignore[assignment]
    products = (*_PRODUCTS, "aten.baddbmm.default")
    return node.op.name in products and node.tensor_type.rank in (3, 4)
