"""f(x) -> unmerge(f(merge(x))): later layers work on fewer tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from infopt.codegen.kernels.attention_received import attention_received
from infopt.codegen.kernels.token_maps import match_tokens, rank_tokens
from infopt.codegen.kernels.token_rows import merge_rows, merge_sizes, unmerge_rows
from infopt.compiler.accuracy import Accuracy, Bounded
from infopt.compiler.cost import graph_seconds
from infopt.compiler.errors import CannotInfer
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.pipeline import Pass, PassContext
from infopt.compiler.tokens import Tokens
from infopt.compiler.types import Size
from infopt.passes.token_stream import ATTENTION, STREAM, Layer, TokenStream, varies

_LEAST_GAIN = 0.02  # of the whole time: what is less may be a loss, estimates are not finer


@dataclass(frozen=True)
class MergeTokens(Pass):
    """f(x) -> unmerge(f(merge(x))) for x [B, T, W], behind the attention of every layer

    Merging is that of ToMe (Bolya et al., 2022): tokens at even positions go to the most similar
    one at an odd position, and attention counts a token as often as it stands for others, by the
    logarithm of that number beside the scores. Padding counts 0, so it is merged first and changes
    nothing. Pruning drops tokens of the lowest score instead (EViT, Liang et al., 2022, for
    attention received). How many stay depends on the number of tokens alone, never on data.
    """

    name: ClassVar[str] = "merge-tokens"
    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[str, ...]] = ("fuse-attention",)

    tokens: Tokens = field(default_factory=Tokens)

    @property
    def accuracy(self) -> Accuracy:  # type: ignore[override]
        return Bounded("rms_rel", self.tokens.limit)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        if any(n.op.name in ("match_tokens", "rank_tokens") for n in graph.nodes()):
            ctx.site("graph", False, "its tokens are merged already")
            return graph
        stream = TokenStream(graph)
        reason = stream.reason or _refusal(stream, self.tokens.method)
        layers = stream.layers
        if layers and (stream.needed is not None or stream.end is layers[-1].cut):
            layers = layers[:-1]  # nothing is behind it, or nothing that all tokens go through
        if not reason and not layers:
            reason = "behind its only layer, nothing works on all tokens"
        whole = 0 if reason else stream.lead[1]
        if not isinstance(whole, int):
            reason = f"how many tokens there are is open, {whole}, and how many stay must be fixed"
        left = "" if reason else self.tokens.left(whole, len(layers))  # type: ignore[arg-type]
        if isinstance(left, str):
            ctx.site("graph", False, reason or left)
            return graph
        counts = {
            layer.cut: (layer, count)
            for layer, count in zip(layers, left, strict=True)
            if ctx.admits(layer.cut)
        }
        if not counts:
            return graph
        try:
            result = _Merging(stream, counts, self.tokens, ctx).run()
        except CannotInfer as error:
            ctx.site("graph", False, str(error))
            return graph
        before, after = (graph_seconds(g, ctx.target) for g in (graph, result))
        if after > before * (1 - _LEAST_GAIN):
            ctx.site(
                *("graph", False),
                f"does not pay: {after * 1e3:.3g} ms with fewer tokens, "
                f"{before * 1e3:.3g} ms with all of them, and {_LEAST_GAIN:.0%} less is asked for",
            )
            return graph
        for cut, (_, count) in counts.items():
            told = f"{count} of {whole} tokens left"
            ctx.site(cut, True, told, (before - after) / len(counts))
        return result


def _refusal(stream: TokenStream, method: str) -> str:
    """Why the tokens of a model cannot be made fewer, "" where they can."""
    assert stream.end is not None
    inside = stream.within()
    cuts = {layer.cut for layer in stream.layers}
    for node in inside:
        if node.op.name == ATTENTION and node.attr("causal"):
            return f"{node!r} is causal: a merged token would see what comes after its parts"
        for arg in stream.read_beside(node):
            if varies(arg, node, stream.axes[node]) == "position":
                return f"{node!r} reads {arg!r} by position, and merged tokens have none"
        leaves = [u for u in stream.graph.users(node) if u not in inside]
        if node is stream.end or not (leaves or stream.graph.is_output(node)):
            continue
        if stream.needed is not None and all(stream.is_leading(u, node) for u in leaves):
            continue
        if stream.axes[node] != STREAM or (method == "prune" and node not in cuts):
            reader = repr(leaves[0]) if leaves else "the caller"
            return f"{reader} reads all tokens of {node!r} between layers"
    return ""


class _Merging:
    """One run: the image of every node behind a cut, on the tokens that are left there.

    counts  cut -> its layer, and how many tokens stay
    """

    def __init__(
        self,
        stream: TokenStream,
        counts: dict[Node, tuple[Layer, Size]],
        asked: Tokens,
        ctx: PassContext,
    ) -> None:
        self.stream, self.counts, self.asked, self.o = stream, counts, asked, ctx.builder
        self.inside = stream.within()
        self.image: dict[Node, Node] = {}
        self.steps: dict[Node, int] = {}  # behind how many cuts a node is
        self.maps: list[Node] = []
        self.tops: list[Node] = []  # what stood at each cut before it lost tokens
        self.left: list[Size] = [stream.lead[1]]
        self.sizes: list[Node | None] = [self._first_size()]

    def run(self) -> Graph:
        graph = self.stream.graph
        for node in graph.nodes():
            steps = max((self.steps.get(a, 0) for a in node.inputs), default=0)
            if node in self.inside:
                self.steps[node] = steps
                self.image[node] = self._inside(node, steps) if steps else self._outside(node)
                if node in self.counts:
                    self._lose(node)
            else:
                self.image[node] = self._outside(node)
        return graph.with_roots({n: self._whole(n) for n in (*graph.inputs, *graph.roots)})

    def _first_size(self) -> Node | None:
        """How many tokens each one stands for at first: 1, and nothing where it is hidden."""
        mask, o = self.stream.mask, self.o
        if mask is None:
            return None
        batch, tokens = self.stream.lead
        flat = o.reshape(mask, [mask.shape[0], tokens])
        size = o.call("aten.to.dtype", flat, torch.float32)
        if mask.dtype is not torch.bool:
            size = o.exp(size)
        return size if mask.shape[0] == batch else o.expand(size, [batch, tokens])

    def _inside(self, node: Node, steps: int) -> Node:
        o = self.o
        if node.op.name == ATTENTION:
            q, k, v, _ = node.args
            return o.rebuild(node, (*(self.image[a] for a in (q, k, v)), self._bias(node, steps)))
        if node.op.name == "aten.reshape.default":
            shape = list(node.shape)
            shape[self.stream.axes[node].tokens] = self.left[steps]
            return o.reshape(self.image[node.args[0]], shape)
        return o.rebuild(node, self._args(node.args, self.image.__getitem__))

    def _outside(self, node: Node) -> Node:
        """A node that knows nothing of fewer tokens."""
        if not node.args:
            return node

        def given(arg: Node) -> Node:
            leading = self.stream.needed is not None and self.stream.is_leading(node, arg)
            return self.image[arg] if leading else self._whole(arg)

        return self.o.rebuild(node, self._args(node.args, given))

    def _args(self, arg: Any, image: Any) -> Any:
        if isinstance(arg, tuple):
            return tuple(self._args(a, image) for a in arg)
        return None if arg is None else image(arg)

    def _bias(self, node: Node, steps: int) -> Node | None:
        """What attention adds by key: a token counts as often as it stands for others."""
        size, dtype = self.sizes[steps], node.args[0].dtype
        if size is None:  # nothing is hidden, and every token stands for itself
            return None
        bias = self.o.reshape(self.o.log(size), [size.shape[0], 1, 1, size.shape[1]])
        return bias if dtype is torch.float32 else self.o.call("aten.to.dtype", bias, dtype)

    def _lose(self, cut: Node) -> None:
        o, steps, x = self.o, self.steps[cut], self.image[cut]
        layer, keep = self.counts[cut]
        size, first = self.sizes[steps], self.stream.needed or 0
        if self.asked.method == "merge":
            metric = x
            if self.asked.judged_by == "keys":
                metric = o.call("aten.mean.dim", self.image[layer.attention.args[1]], [1])
            place = o.call(match_tokens, metric, size, keep=keep, first=first)
        else:
            score = self._score(layer, x, size)
            place = o.call(rank_tokens, score, size, keep=keep, first=first)
        self.tops.append(x)
        self.maps.append(place)
        self.left.append(keep)
        dropping = self.asked.method == "prune" and size is None
        self.sizes.append(None if dropping else o.call(merge_sizes, place, size, keep=keep))
        self.image[cut] = o.call(merge_rows, x, place, size, keep=keep)
        self.steps[cut] = steps + 1

    def _score(self, layer: Layer, x: Node, size: Node | None) -> Node:
        """What a token is worth, [B, T]."""
        o = self.o
        if self.asked.judged_by == "norm":
            return o.sum(o.mul(x, x), [2])
        q, k, _, _ = self.image[layer.attention].args
        bias = None if size is None else o.log(size)
        received = o.call(attention_received, q, k, bias, scale=layer.attention.attr("scale"))
        return o.call("aten.mean.dim", received, [1])

    def _whole(self, node: Node) -> Node:
        """A value with a row for every token again."""
        steps, value = self.steps.get(node, 0), self.image[node]
        if steps == 0:
            return value
        if self.asked.method == "merge":
            place = self.maps[0]
            for later in self.maps[1:steps]:
                place = self.o.gather(later, 1, place)
            return self.o.call(unmerge_rows, value, place)
        for i in reversed(range(steps)):
            value = self.o.call(unmerge_rows, value, self.maps[i], self.tops[i])
        return value
