"""f(x) of padded tokens -> unpack(f(pack(x))): no work on tokens that nothing reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import sympy
import torch

from infopt.codegen.kernels.ragged import ragged_attention, row_index, row_starts, unpack_rows
from infopt.codegen.pointwise import find as pointwise_form
from infopt.compiler.cost import graph_seconds
from infopt.compiler.errors import CannotInfer
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.infer import Builder, builder_for
from infopt.compiler.ops import INPUT
from infopt.compiler.pipeline import Pass, PassContext
from infopt.compiler.types import Dim
from infopt.compiler.types import hint as hint_of

# Ops that treat every row apart, and which of their arguments are rows.
_ROWWISE: dict[str, tuple[int, ...]] = {
    "aten.linear.default": (0,),
    "aten.layer_norm.default": (0,),
    "rms_norm": (0,),
    "linear_act": (0, 3),
    "adapter_linear": (0, 1),
    "aten.embedding.default": (1,),
}
# Which argument has a number for each sequence.
_BY_SEQUENCE = {"adapter_linear": 5}
_MASK_STEPS = ("aten.reshape.default", "aten.expand.default", "aten.to.dtype")
# Views that leave batch and tokens in front.
_INNER_VIEWS = ("aten.reshape.default", "aten.slice.Tensor", "aten.select.int")
_SWAP = (0, 2, 1, 3)  # [B, T, H, D] <-> [B, H, T, D]
# How a value of the padded program lies in the packed one: [B, T, ...] or [B, H, T, D] -> [N, ...]
TOKENS, HEADS = "tokens", "heads"


@dataclass(frozen=True)
class DropPadding(Pass):
    """f(x)[mask] -> f(x[mask]) for x [B, T, ...] whose padded tokens no result depends on

    The proof is read off the graph: attention hides the padded keys by a mask that is an input
    [B, T], every op between treats tokens apart, and what leaves is zeroed by that same mask. Then
    all of it runs on the real tokens only, [N, ...], where N is counted at each call. Declined
    where the example inputs have too little padding to pay for the packing. (A NaN or infinity
    that only a padded token holds is dropped with it.)
    """

    name: ClassVar[str] = "drop-padding"
    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[str, ...]] = ("fuse-attention",)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        masked = {n: _padding_mask(n) for n in graph.nodes() if n.op.name == "attention"}
        masks = set(masked.values())
        for node, mask in masked.items():
            if mask is None:
                ctx.site(node, False, "its mask is no [batch, tokens] input over the keys")
        mask = masks.pop() if len(masks) == 1 else None
        if mask is None:
            return graph
        hint = _tokens_seen(graph, mask, ctx.samples)
        if hint is None:
            ctx.site(mask, False, "there are no example inputs that show how much is padding")
            return graph
        return _packed_graph(graph, mask, hint, ctx)


def _padding_mask(attention: Node) -> Node | None:
    """The input [B, T] whose nonzero elements are the keys that attention sees, if that is all."""
    q, _, _, mask = attention.args
    if mask is None or mask.dtype is not torch.bool or attention.attr("causal"):
        return None
    batch, _, tokens, _ = q.shape
    node = mask
    while node.op is not INPUT:
        source = node.args[0] if node.args else None
        if node.op.name == "aten.expand.default" and node.tensor_type.rank == 4:
            kept = source.tensor_type.rank == 4 and source.shape[::3] == (batch, tokens)
            if not (kept and source.shape[2] == 1):
                return None
        elif node.op.name == "aten.reshape.default":
            if node.shape not in ((batch, 1, 1, tokens), (batch, tokens)):
                return None
        elif not _is_nonzero(node):
            return None
        node = source
    return node if node.shape == (batch, tokens) and not node.attr("weight") else None


def _is_nonzero(node: Node) -> bool:
    """True for x.bool() and x != 0."""
    if node.op.name == "aten.to.dtype":
        return node.dtype is torch.bool
    return node.op.name == "aten.ne.Scalar" and node.attr("other") == 0


def _tokens_seen(graph: Graph, mask: Node, samples: tuple) -> int | None:
    position = graph.inputs.index(mask)
    counts = [int(torch.count_nonzero(sample[position])) for sample in samples]
    return max(counts, default=None)


def _packed_graph(graph: Graph, mask: Node, hint: int, ctx: PassContext) -> Graph:
    region = _Region(graph, mask)
    if region.reason:
        ctx.site(mask, False, region.reason)
        return graph
    taken = {d.name for d in graph.dims}
    name = next(n for n in ("tokens", "real_tokens", "unpadded_tokens") if n not in taken)
    rows = sympy.Symbol(name, positive=True, integer=True)
    dim = Dim(rows, 2, None, max(2, hint), counts=mask.attr("name"))
    o = builder_for((*graph.dims, dim))
    try:
        result = _Packing(graph, region, rows, o).run()
    except CannotInfer as error:
        ctx.site(mask, False, str(error))
        return graph
    before, after = (graph_seconds(g, ctx.target) for g in (graph, result))
    if before <= after:
        of = hint_of(mask.tensor_type.numel, graph.dims)
        ctx.site(mask, False, f"{hint} of {of} tokens of the example are real: packing costs more")
        return graph
    if not ctx.admits(mask):
        return graph
    ctx.site(mask, True, gain=before - after)
    return result


class _Region:
    """What runs on packed tokens.

    forms    node -> how it lies, for every node of the region
    touched  every node of the graph that depends on what attention gives
    exits    touched nodes of the region that are read outside: zero wherever the mask is
    reason   why it cannot be, or ""
    """

    def __init__(self, graph: Graph, mask: Node) -> None:
        self.graph, self.mask, self.lead = graph, mask, mask.shape
        self.forms: dict[Node, str] = {}
        for node in graph.nodes():
            form = self.form_of(node)
            if form is not None:
                self.forms[node] = form
        inside = self.connected()
        self.forms = {n: f for n, f in self.forms.items() if n in inside}
        self.touched: set[Node] = set()
        self.exits: set[Node] = set()
        self.reason = ""
        self.find_exits()

    def form_of(self, node: Node) -> str | None:
        """How the node lies packed; None where it does not treat tokens apart."""
        if isinstance(node.type, tuple) or not node.args or node.serial:
            return None
        name, source = node.op.name, node.args[0]
        form = self.forms.get(source) if isinstance(source, Node) else None
        if name == "attention":
            heads = all(self.forms.get(a) is HEADS for a in node.args[:3])
            return HEADS if heads else None
        if name == "aten.permute.default":
            swaps = node.tensor_type.rank == 4 and tuple(node.attr("dims")) == _SWAP
            return {TOKENS: HEADS, HEADS: TOKENS}.get(form or "") if swaps else None
        if node.shape[:2] != self.lead:
            return None
        if name in _INNER_VIEWS:
            inner = name == "aten.reshape.default" or node.attr("dim") % source.tensor_type.rank > 1
            given = source.shape[:2] == self.lead and self.is_by_token(source)
            return TOKENS if inner and given else None
        if name in _ROWWISE:
            rows = [node.args[i] for i in _ROWWISE[name] if i < len(node.args)]
            fits = all(a is None or a.shape[:2] == self.lead for a in rows)
            return TOKENS if fits and all(map(self.is_by_token, rows)) else None
        if pointwise_form(node) is None or any(isinstance(a, tuple) for a in node.args):
            return None
        return TOKENS if all(self.reading(a, node) for a in node.inputs) else None

    def is_by_token(self, node: Node | None) -> bool:
        return self.forms.get(node, TOKENS) is TOKENS

    def reading(self, arg: Node, node: Node) -> str | None:
        """Along what an operand of a pointwise node [B, T, ...] varies; None: in another way."""
        extra = node.tensor_type.rank - arg.tensor_type.rank
        if arg in self.forms and (extra or self.forms[arg] is not TOKENS):
            return None
        if extra >= 2:
            return "nothing"
        front = ((1,) * extra + arg.shape)[:2]
        if front == self.lead:
            return "token"
        batch, tokens = self.lead
        return {(1, 1): "nothing", (1, tokens): "position", (batch, 1): "sequence"}.get(front)

    def connected(self) -> set[Node]:
        """The nodes around attention: what it reads, and what is made of what it gives."""
        stack = [n for n in self.forms if n.op.name == "attention"]
        inside = set(stack)
        while stack:
            node = stack.pop()
            near = list(node.args[:3]) if node.op.name == "attention" else list(node.inputs)
            if not self.is_zeroed(node):
                near += self.graph.users(node)
            for other in near:
                if other in self.forms and other not in inside:
                    inside.add(other)
                    stack.append(other)
        return inside

    def find_exits(self) -> None:
        """What attention touched may leave only where the mask has made its padding zero."""
        attention = [n for n in self.graph.nodes() if n.op.name == "attention"]
        if not all(n in self.forms for n in attention):
            self.reason = "the operands of an attention are not made token by token"
            return
        self.touched.update(attention)
        for node in self.graph.nodes():
            if not self.touched.isdisjoint(node.inputs):
                self.touched.add(node)
        for node in self.graph.nodes():
            if node not in self.touched or node not in self.forms:
                continue
            readers = [repr(u) for u in self.graph.users(node) if u not in self.forms]
            readers += ["the caller"] * self.graph.is_output(node)
            if not readers:
                continue
            self.exits.add(node)
            if not self.is_zeroed(node):
                self.reason = f"{readers[0]} reads padded tokens of {node!r}"
                return

    def is_zeroed(self, node: Node) -> bool:
        """True for x * mask, where(mask, x, 0) and masked_fill(x, not mask, 0)."""
        if node.op.name == "aten.mul.Tensor":
            return any(self.is_mask(a, node) for a in node.inputs)
        if node.op.name == "aten.where.ScalarOther" and node.attr("other") == 0:
            return self.is_mask(node.args[0], node)
        if node.op.name == "aten.masked_fill.Scalar" and node.attr("value") == 0:
            hidden = node.args[1]
            negated = hidden.op.name in ("aten.logical_not.default", "aten.bitwise_not.default")
            if negated or (hidden.op.name == "aten.eq.Scalar" and hidden.attr("other") == 0):
                return hidden.dtype is torch.bool and self.is_mask(hidden.args[0], node)
        return False

    def is_mask(self, node: Node, like: Node) -> bool:
        """True for views and casts of the mask over the first two axes of `like`."""
        if node.tensor_type.rank != like.tensor_type.rank:
            return False
        while node is not self.mask:
            if node.op.name not in _MASK_STEPS or node.shape[:2] != self.lead:
                return False
            node = node.args[0]
        return True


class _Packing:
    """One run: the packed image of every node of the region, and the padded image of the rest."""

    def __init__(self, graph: Graph, region: _Region, rows: sympy.Symbol, o: Builder) -> None:
        self.graph, self.region, self.rows, self.o = graph, region, rows, o
        self.packed: dict[Node, Node] = {}
        self.padded: dict[Node, Node] = {}
        mask = region.mask
        cast = torch.ops.aten.to.dtype
        self.mask = mask if mask.dtype is torch.bool else o.call(cast, mask, torch.bool)
        self.starts = o.call(row_starts, self.mask)
        self.index = o.call(row_index, self.mask, rows=rows)

    def run(self) -> Graph:
        region = self.region
        for node in self.graph.nodes():
            if node in region.forms:
                self.packed[node] = self.image(node)
            if node not in region.touched:
                self.padded[node] = node
            elif node in region.exits:
                self.padded[node] = self.o.call(
                    unpack_rows, self.packed[node], self.mask, self.starts
                )
            elif node not in region.forms:
                self.padded[node] = self.o.rebuild(node, self.outside(node.args))
        return replace(self.graph.with_roots(self.padded), dims=self.o.dims)

    def outside(self, args: Any) -> Any:
        """Arguments in their padded form."""
        if isinstance(args, tuple):
            return tuple(self.outside(a) for a in args)
        return None if args is None else self.padded[args]

    def image(self, node: Node) -> Node:
        name, o = node.op.name, self.o
        if name == "attention":
            q, k, v = (self.packed[a] for a in node.args[:3])
            longest, scale = self.region.lead[1], node.attr("scale")
            return o.call(ragged_attention, q, k, v, self.starts, longest=longest, scale=scale)
        if name == "aten.permute.default":
            return self.packed[node.args[0]]
        if name in _INNER_VIEWS:
            source = node.args[0]
            rank = source.tensor_type.rank
            value = self.pick(source, "token", rank)
            if name == "aten.reshape.default":
                return o.reshape(value, [self.rows, *node.shape[2:]])
            return o.call(
                node.op, value, **{**dict(node.attrs), "dim": node.attr("dim") % rank - 1}
            )
        args: list[Node | None] = []
        for i, arg in enumerate(node.args):
            if arg is not None and i == _BY_SEQUENCE.get(name):
                args.append(self.pick(arg, "sequence", arg.tensor_type.rank))
            elif arg is None or (name in _ROWWISE and i not in _ROWWISE[name]):
                args.append(self.outside(arg))
            elif name in _ROWWISE:
                args.append(self.pick(arg, "token", arg.tensor_type.rank))
            else:
                along = self.region.reading(arg, node)
                assert along is not None
                args.append(self.pick(arg, along, node.tensor_type.rank))
        return o.rebuild(node, tuple(args))

    def pick(self, arg: Node, along: str, rank: int) -> Node:
        """The rows of an operand that belong to the packed tokens; rank: of who reads it."""
        if arg in self.packed:
            return self.packed[arg]
        o, value = self.o, self.padded[arg]
        batch, tokens = self.region.lead
        rest = value.shape[2 - rank :] if rank > 2 else ()
        if along == "nothing":
            short = value.tensor_type.rank < rank
            return value if short else o.reshape(value, [1, *rest])
        if along == "token":
            return o.index_select(o.reshape(value, [batch * tokens, *rest]), 0, self.index)
        if along == "position":
            rows, index = tokens, o.remainder(self.index, tokens)
        else:
            rows, index = batch, o.floor_divide(self.index, tokens)
        return o.index_select(o.reshape(value, [rows, *rest]), 0, index)
