"""linear(x, constant weight) -> sparse_linear(keep_largest(x), turned weight): less is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from infopt.codegen.kernel import find_emitter
from infopt.codegen.kernels.linear import FEW
from infopt.codegen.kernels.sparse_linear import (
    keep_largest,
    sparse_gated_linear,
    sparse_linear,
)
from infopt.compiler.accuracy import Accuracy, Bounded
from infopt.compiler.errors import BadOption
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.pipeline import Pass, PassContext
from infopt.passes.layers import (
    LINEARS,
    foreign_reader,
    label_of,
    names_of,
    value_of,
    weights_of,
)
from infopt.passes.new_constants import new_constant

SCORES = ("weighted", "magnitude")
# As measured on 1,024 x 1,024 and 1,024 x 2,816 in bf16:
_GATHERED = 0.75  # of the bandwidth is left where rows are read here and there
_SELECTING = 2e-6  # seconds for 1,000 places of one row, on one core
_FINDING = 8e-6  # seconds to find places and start on them


@dataclass(frozen=True)
class SparseActivations(Pass):
    """linear(x, w) -> sparse_linear(keep_largest(x, norms), w turned), for a decoder's steps

    Of every row of x the share of places stays that says most, the others count as 0, and a step
    of few tokens reads no weights for them. Places are judged by |x| times the length of the
    columns of the weights that read x (WINA, Chen et al., 2025), or by |x| alone.

    share  of the places of a row that stay
    score  "weighted" or "magnitude"
    limit  how far results may move
    """

    name: ClassVar[str] = "sparse-activations"
    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[str, ...]] = ("fuse-linear-epilogue",)

    share: float = 0.5
    score: str = "weighted"
    limit: float = 0.5

    def __post_init__(self) -> None:
        wrong = isinstance(self.share, bool) or not isinstance(self.share, int | float)
        if wrong or not 0 < self.share < 1:
            raise BadOption(
                f"sparse_activations: expected a share between 0 and 1, found {self.share!r}"
            )
        if self.score not in SCORES:
            raise BadOption(f"score: expected {' or '.join(SCORES)}, found {self.score!r}")

    @property
    def accuracy(self) -> Accuracy:  # type: ignore[override]
        return Bounded("rms_rel", self.limit)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        layers = [n for n in graph.nodes() if n.op.name in LINEARS]
        refused = {n: _refusal(graph, n) for n in layers}
        size = sum(_bytes(n) for n in layers if not refused[n])
        sharing = _Layers(graph, ctx, self)
        for node in layers:
            reason, gain = refused[node], None
            if not reason:
                reason, gain = self._profit(node, size, ctx)
            if reason:
                ctx.site(label_of(node), False, reason, gain)
            else:
                sharing.add(node, gain)
        changes = sharing.changes()
        return ctx.exchange(graph, changes).with_consts(sharing.tensors) if changes else graph

    def _profit(self, node: Node, size: int, ctx: PassContext) -> tuple[str, float | None]:
        """Why a step gains nothing, "" where it does, and the seconds that it saves."""
        target, width = ctx.target, int(node.args[0].shape[-1])  # type: ignore[union-attr]
        room = target.caches[-1]
        if size <= room:
            return f"does not pay: all weights, {size} bytes, fit a cache of {room} bytes", None
        dense = _bytes(node) / (target.bandwidth * 1e9)
        sparse = self.share * dense / _GATHERED + _SELECTING * width / 1000 + _FINDING
        if sparse >= dense:
            return f"does not pay: {sparse * 1e6:.4g} us, {dense * 1e6:.4g} us as it is", None
        return "", dense - sparse


class _Layers:
    """The layers of one graph that change: those that read the same x share its places.

    tensors  the constants made so far, by name
    """

    def __init__(self, graph: Graph, ctx: PassContext, asked: SparseActivations) -> None:
        self.graph, self.ctx, self.o, self.asked = graph, ctx, ctx.builder, asked
        self.tensors: dict[str, torch.Tensor] = {}
        self._readers: dict[Node, list[tuple[Node, float | None]]] = {}

    def add(self, node: Node, gain: float | None) -> None:
        x = node.args[0]
        assert isinstance(x, Node)
        self._readers.setdefault(x, []).append((node, gain))

    def changes(self) -> dict[Node, Node]:
        found = {}
        for x, readers in self._readers.items():
            kept = self._kept(x, [node for node, _ in readers])
            for node, gain in readers:
                made = self._replacement(node, kept)
                missing = [find_emitter(n, self.ctx.target) for n in (kept, made)]
                reason = "; ".join(why for emitter, why in missing if emitter is None)
                told = reason or f"{kept.attr('keep')} of {x.shape[-1]} places are read"
                self.ctx.site(label_of(node), not reason, told, None if reason else gain)
                if not reason:
                    found[node] = made
        return found

    def _kept(self, x: Node, readers: list[Node]) -> Node:
        """What stays of x."""
        width = int(x.shape[-1])
        keep = max(1, round(self.asked.share * width))
        if self.asked.score == "magnitude":
            return self.o.call(keep_largest, x, keep=keep)
        squares = torch.zeros(width, dtype=torch.float64)
        for weight in (w for node in readers for w in weights_of(node)):
            squares += value_of(self.graph, weight).detach().double().square().sum(0)
        norms = self._const(f"{names_of(readers[0])[0]}_norms", squares.sqrt().float())
        return self.o.call(keep_largest, x, norms, keep=keep)

    def _replacement(self, node: Node, kept: Node) -> Node:
        count = LINEARS[node.op.name]
        turned = []
        for name, weight in zip(names_of(node), weights_of(node), strict=True):
            value = value_of(self.graph, weight).detach()
            turned.append(self._const(f"{name}_turned", value.t().contiguous()))
        if count == 2:
            activation = node.attr("activation")
            return self.o.call(sparse_gated_linear, kept, *turned, activation=activation)
        rest = node.args[2:]
        activation = "none" if node.op.name != "linear_act" else node.attr("activation")
        return self.o.call(sparse_linear, kept, *turned, *rest, activation=activation)

    def _const(self, name: str, tensor: torch.Tensor) -> Node:
        return new_constant(self.o, name, tensor, self.graph, self.tensors)


def _refusal(graph: Graph, node: Node) -> str:
    """Why a layer cannot skip weights at all, "" where it can."""
    if not names_of(node):
        return "its weight is not a constant"
    x, weights = node.args[0], weights_of(node)
    if any(w.dtype != x.dtype for w in weights):  # type: ignore[union-attr]
        return f"its weight is {weights[0].dtype} and what it reads {x.dtype}"  # type: ignore[union-attr]
    rows = 1
    for n in x.shape[:-1]:  # type: ignore[union-attr]
        rows = rows * n
    if isinstance(rows, int) and rows > FEW:
        return f"it has {rows} rows at once, which together read all weights"
    if reason := foreign_reader(graph, node):
        return reason
    if len(weights) == 2 and any(b is not None for b in node.args[3:]):
        return "its gate has a bias"
    return ""


def _bytes(node: Node) -> int:
    return sum(int(w.tensor_type.nbytes) for w in weights_of(node))
