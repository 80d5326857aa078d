"""Where the tokens of a model are: read off the graph, whatever the model.

A transformer's tokens run through one stream of values [B, T, W]. Attention mixes them; all else
treats each apart. A value that everything after it reads the tokens through is a *cut*: there, and
only there, they can be exchanged for fewer. The residual stream is such a value twice in a layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

from infopt.codegen.pointwise import find as pointwise_form
from infopt.compiler.graph import Graph, Node
from infopt.compiler.ops import CONST, GETITEM, INPUT
from infopt.compiler.types import Size
from infopt.passes.simplify_masks import all_true

# Ops that treat rows apart: which of their arguments are rows.
_ROWWISE: dict[str, tuple[int, ...]] = {
    "aten.linear.default": (0,),
    "aten.layer_norm.default": (0,),
    "rms_norm": (0,),
    "linear_act": (0, 3),
    "gated_linear": (0,),
}
ATTENTION = "attention"


@dataclass(frozen=True)
class Axes:
    """Which dimension of a value is the batch, and which the tokens."""

    batch: int
    tokens: int


STREAM = Axes(0, 1)
_HEADS = Axes(0, 2)


@dataclass(frozen=True)
class Layer:
    """attention: where the layer mixes tokens; cut: the residual stream behind it."""

    attention: Node
    cut: Node


class TokenStream:
    """The tokens of a graph.

    lead    (B, T): the size of the batch, the number of tokens
    axes    where tokens lie, of every value that has one row for each
    layers  in order; empty where `reason` says why
    end     the cut behind the last layer
    needed  how many leading tokens the results need; None: all
    mask    None, or what every layer's attention adds or hides by key, [B or 1, 1, 1, T]
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.axes: dict[Node, Axes] = {}
        self.layers: tuple[Layer, ...] = ()
        self.end: Node | None = None
        self.needed: int | None = None
        self.mask: Node | None = None
        self.reason = self._find()

    def _find(self) -> str:
        mixing = [n for n in self.graph.nodes() if n.op.name == ATTENTION]
        if not mixing:
            return "it has no attention"
        q = mixing[0].args[0]
        self.lead: tuple[Size, Size] = (q.shape[0], q.shape[2])
        for node in mixing:
            q, k, _, _ = node.args
            if (q.shape[0], q.shape[2]) != self.lead or k.shape[2] != self.lead[1]:
                return f"{node!r} does not mix all tokens of {list(self.lead)} with themselves"
        self._makes = _made_of(a for n in mixing for a in n.args[:3])
        for node in self.graph.nodes():
            found = self._axes_of(node)
            if found is not None:
                self.axes[node] = found
        lost = [n for n in mixing if n not in self.axes]
        if lost:
            return f"the operands of {lost[0]!r} are not made token by token"
        return self._find_mask(mixing) or self._find_layers(mixing)

    # -- which dimension ---------------------------------------------------------------------

    def _axes_of(self, node: Node) -> Axes | None:
        if isinstance(node.type, tuple) or node.serial or node.op is GETITEM:
            return None
        given = [self.axes.get(a) for a in node.inputs]
        if not any(given):
            leaf = node.op is CONST or (node.op is INPUT and node.attr("weight"))
            by_token = node.tensor_type.rank == 3 and node.shape[:2] == self.lead
            stream = by_token and node.tensor_type.is_float and not leaf and node in self._makes
            return STREAM if stream else None
        name, own = node.op.name, given[0]
        if name == ATTENTION:
            return _HEADS if given[:3] == [_HEADS] * 3 else None
        if name in _ROWWISE:
            rows = [given[i] for i in _ROWWISE[name] if i < len(node.args) and node.args[i]]
            inner = len(dict(node.attrs).get("normalized_shape", (1,)))
            fits = own is not None and own.tokens < node.tensor_type.rank - inner
            return own if fits and rows == [own] * len(rows) else None
        if name in _MOVES:
            return None if own is None else _MOVES[name](node, own)
        if name == "aten.cat.default":
            along = node.attr("dim") % node.tensor_type.rank
            same = own is not None and given == [own] * len(given)
            return own if same and along not in (own.batch, own.tokens) else None
        if pointwise_form(node) is None or any(isinstance(a, tuple) for a in node.args):
            return None
        return self._pointwise(node)

    def _pointwise(self, node: Node) -> Axes | None:
        rank, found = node.tensor_type.rank, set()
        for arg in node.inputs:
            own = self.axes.get(arg)
            if own is not None:
                extra = rank - arg.tensor_type.rank
                found.add(Axes(own.batch + extra, own.tokens + extra))
        if len(found) > 1:
            return None
        (axes,) = found
        beside = [a for a in node.inputs if a not in self.axes]
        return None if any(varies(a, node, axes) == "token" for a in beside) else axes

    def read_beside(self, node: Node) -> list[Node]:
        """What a pointwise node reads beside tokens."""
        if pointwise_form(node) is None or node.op.name in _MOVES:
            return []
        return [a for a in node.inputs if a not in self.axes]

    # -- what attention hides ----------------------------------------------------------------

    def _find_mask(self, mixing: list[Node]) -> str:
        masks = {self._hidden(n.args[3]) for n in mixing}
        if len(masks) > 1:
            return "its layers have different masks"
        (mask,) = masks
        if mask is None:
            return ""
        batch, tokens = self.lead
        shape = mask.shape
        if len(shape) != 4 or shape[1:3] != (1, 1) or shape[3] != tokens:
            return f"a mask {mask!r} is not over the keys alone"
        if shape[0] not in (1, batch) or mask in self.axes:
            return f"a mask {mask!r} is not one of its tokens"
        self.mask = mask
        return ""

    def _hidden(self, mask: Node | None) -> Node | None:
        """What hides something: an expanded mask's source, None for one that hides nothing."""
        mask = _by_key(mask)
        return None if mask is not None and all_true(mask, self.graph) else mask

    # -- where tokens can be exchanged -------------------------------------------------------

    def after(self, node: Node) -> set[Node]:
        """Everything that depends on a node."""
        found: set[Node] = set()
        stack = [node]
        while stack:
            for user in self.graph.users(stack.pop()):
                if user not in found:
                    found.add(user)
                    stack.append(user)
        return found

    def is_cut(self, node: Node) -> bool:
        """True where everything behind reads tokens through this value only."""
        if self.axes.get(node) != STREAM or node.tensor_type.rank != 3:
            return False
        behind = self.after(node)
        reads = [n for n in behind if n in self.axes]
        if not reads:  # the last value by token, if it is the only one
            return all(n is node or not self._ends(n) for n in self.axes)
        return all(
            arg is node or arg in behind or arg not in self.axes for n in reads for arg in n.inputs
        )

    def _ends(self, node: Node) -> bool:
        """True where nothing that is made of a value has a row for each token."""
        return self.axes.keys().isdisjoint(self.graph.users(node))

    def within(self) -> set[Node]:
        """What can be computed on fewer tokens: from the first layer's cut to the end, and all
        behind it that treats tokens apart where only the leading ones are needed."""
        first, end = self.layers[0].cut, self.end
        assert end is not None
        found = {first, *(n for n in self.after(first) if n in self.axes)}
        return found if self.needed is not None else found - self.after(end)

    def is_leading(self, user: Node, node: Node) -> bool:
        """True where a node takes nothing but leading tokens of another."""
        axes = self.axes.get(node)
        taken = None if axes is None or user.args[:1] != (node,) else _leading(user, axes)
        return taken is not None and taken <= (self.needed or 0)

    def _find_layers(self, mixing: list[Node]) -> str:
        order = {n: i for i, n in enumerate(self.graph.nodes())}
        places = sorted(order[n] for n in mixing)
        behind = self.after(self.graph.nodes()[places[0]])
        cuts = [n for n in order if n in behind and self.is_cut(n)]
        layers = []
        for place, following in zip(places, [*places[1:], len(order)], strict=True):
            attention = self.graph.nodes()[place]
            behind = self.after(attention)
            here = [n for n in cuts if place < order[n] < following and n in behind]
            runs = _runs(here, self.graph)
            if not runs:
                return f"tokens pass by {attention!r}: no value behind it holds all of them"
            layers.append(Layer(attention, _branching(runs[0], self.graph)))
        self.layers = tuple(layers)
        # behind the feed-forward part, where it is a part of its own
        self.end = runs[1][0] if len(runs) > 1 else layers[-1].cut
        self.needed = self._needed(self.end)
        return ""

    def _needed(self, end: Node) -> int | None:
        """How many leading tokens are read behind `end`, None for all."""
        inside = {end, *(n for n in self.after(end) if n in self.axes)}
        most = 0
        for node in inside:
            if self.graph.is_output(node):
                return None
            for user in self.graph.users(node):
                if user in inside:
                    continue
                taken = _leading(user, self.axes[node])
                if taken is None or node not in user.args[:1]:
                    return None
                most = max(most, taken)
        return most


def _made_of(nodes: Iterable[Node]) -> set[Node]:
    """These nodes and all they are made of."""
    stack = list(nodes)
    found = set(stack)
    while stack:
        new = set(stack.pop().inputs) - found
        found |= new
        stack.extend(new)
    return found


def varies(arg: Node, node: Node, axes: Axes) -> str:
    """Along what an operand of a pointwise node varies: "token", "position" or "nothing"."""
    shape = (1,) * (node.tensor_type.rank - arg.tensor_type.rank) + arg.shape
    if shape[axes.tokens] == 1:
        return "nothing"
    return "position" if shape[axes.batch] == 1 else "token"


def _by_key(mask: Node | None) -> Node | None:
    """What an expanded mask is made of."""
    while mask is not None and mask.op.name == "aten.expand.default":
        source = mask.args[0]
        if source.tensor_type.rank != 4:
            break
        mask = source
    return mask


def _reshaped(node: Node, own: Axes) -> Axes | None:
    """Where both axes are found again: as many elements before and after."""
    before = node.args[0].shape

    def place(i: int) -> int | None:
        for j, size in enumerate(node.shape):
            if size == before[i] and prod(node.shape[:j]) == prod(before[:i]):
                return j
        return None

    batch, tokens = place(own.batch), place(own.tokens)
    return None if batch is None or tokens is None else Axes(batch, tokens)


def _permuted(node: Node, own: Axes) -> Axes:
    rank = node.tensor_type.rank
    dims = [d % rank for d in node.attr("dims")]
    return Axes(dims.index(own.batch), dims.index(own.tokens))


def _selected(node: Node, own: Axes) -> Axes | None:
    d = node.attr("dim") % (node.tensor_type.rank + 1)
    if d in (own.batch, own.tokens):
        return None
    return Axes(own.batch - (d < own.batch), own.tokens - (d < own.tokens))


def _sliced(node: Node, own: Axes) -> Axes | None:
    d = node.attr("dim") % node.tensor_type.rank
    return None if d in (own.batch, own.tokens) else own


_MOVES: dict[str, Any] = {
    "aten.reshape.default": _reshaped,
    "aten.permute.default": _permuted,
    "aten.select.int": _selected,
    "aten.slice.Tensor": _sliced,
}


def _leading(user: Node, axes: Axes) -> int | None:
    """How many leading tokens a select or slice takes, None for any other."""
    if user.op.name not in ("aten.select.int", "aten.slice.Tensor"):
        return None
    rank = user.args[0].tensor_type.rank
    if user.attr("dim") % rank != axes.tokens:
        return None
    last = user.attr("index") if user.op.name == "aten.select.int" else user.attr("end")
    if not isinstance(last, int) or last < 0 or last > 2**31:
        return None
    return last + 1 if user.op.name == "aten.select.int" else last


def _runs(cuts: list[Node], graph: Graph) -> list[list[Node]]:
    """Cuts in order, those together of which each is made of the one before alone."""
    runs: list[list[Node]] = []
    for cut in cuts:
        if runs and runs[-1][-1] in cut.inputs and _only_cut_between(runs[-1][-1], cut, graph):
            runs[-1].append(cut)
        else:
            runs.append([cut])
    return runs


def _only_cut_between(first: Node, then: Node, graph: Graph) -> bool:
    return graph.users(first) == (then,)


def _branching(run: list[Node], graph: Graph) -> Node:
    """The value of a run that both the next branch and the path around it read, else the first."""
    return next((n for n in run if len(graph.users(n)) > 1), run[0])
