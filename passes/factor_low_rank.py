"""linear(x, constant weight) -> linear(linear(x, a), b), and convolutions: two thin products for a
wide one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from infopt.compiler.accuracy import Accuracy, Bounded
from infopt.compiler.errors import BadOption
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.pipeline import Pass, PassContext
from infopt.passes.layers import label_of, name_matches, names_of
from infopt.passes.low_rank_layers import ENERGY, LowRankLayers, can_be_factored

Ranks: TypeAlias = "tuple[tuple[str, float | str], ...]"


@dataclass(frozen=True)
class FactorLowRank(Pass):
    """linear(x, w) -> linear(linear(x, a), b) where w ~ b a, of a rank that pays

    A convolution's weight is a matrix [N, C k k]: the first factor keeps the window, the second is
    1 x 1.

    The factors are those of least error for the calibration inputs, without such inputs, and for
    convolutions, those of the SVD (codegen/factoring.py). Two products of one x that are multiplied
    (gate and up) share a.

    ranks  (pattern, rank) pairs, the first whose pattern matches the weight's name counts; a rank
           is a share of the full rank, "energy-0.99" for the least that keeps such a share of the
           outputs' power, or "none"
    limit  how far results may move
    """

    name: ClassVar[str] = "factor-low-rank"
    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[str, ...]] = ("fuse-linear-epilogue",)

    ranks: Ranks = (("*", 0.25),)
    limit: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "ranks", layer_ranks(self.ranks))

    @property
    def accuracy(self) -> Accuracy:  # type: ignore[override]
        return Bounded("rms_rel", self.limit)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        layers = LowRankLayers(graph, ctx)
        changes: dict[Node, Node] = {}
        for node in graph.nodes():
            if not can_be_factored(node):
                continue
            reason, gain = layers.refusal(node), None
            wanted = {self.rank_of(name) for name in names_of(node)}
            if not reason and len(wanted) > 1:
                reason = f"one product of two ranks, {', '.join(sorted(map(str, wanted)))}"
            if not reason and wanted == {"none"}:
                reason = "to stay as it is"
            if not reason:
                rank = layers.rank(node, *wanted)
                reason, gain = layers.profit(node, rank)
            if reason:
                ctx.site(label_of(node), False, reason, gain)
                continue
            changes[node] = layers.replacement(node, rank)
            ctx.site(label_of(node), True, layers.description(node, rank), gain)
        if not changes:
            return graph
        return ctx.exchange(graph, changes).with_consts(layers.tensors)

    def rank_of(self, name: str) -> float | str:
        """The rank asked for the weight of that name."""
        for pattern, rank in self.ranks:
            if name_matches(name, pattern):
                return rank
        return "none"


def layer_ranks(
    value: Ranks | float | str | Mapping[str, float | str], option: str = "low_rank"
) -> Ranks:
    """The `ranks` of the option low_rank=0.25 or low_rank={"*up*": "energy-0.99", "*": "none"}.

    Raises BadOption where it is neither, or where a rank is no rank.
    """
    pairs = tuple(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, tuple):
        pairs = (("*", pairs),)
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise BadOption(
                f"{option}: expected a rank or a dict of patterns to ranks, found {value!r}"
            )
        if not _is_rank(pair[1]):
            raise BadOption(
                f"{option}: expected a share of the full rank between 0 and 1, 'energy-0.99' or "
                f"'none', found {pair[1]!r} (for {pair[0]!r})"
            )
    return pairs


def _is_rank(value: object) -> bool:
    if value == "none":
        return True
    if isinstance(value, str) and value.startswith(ENERGY):
        try:
            value = float(value.removeprefix(ENERGY))
        except ValueError:
            return False
    return isinstance(value, float) and 0 < value < 1
