"""W2 f(W1 x) -> W2' f(W1' x) + mean: channels and heads that hardly vary become a bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from infopt.compiler.accuracy import Accuracy, Bounded
from infopt.compiler.cost import node_seconds
from infopt.compiler.errors import BadOption, CannotInfer
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.interpret import interpret
from infopt.compiler.pipeline import Pass, PassContext
from infopt.compiler.sensitivity import relative_errors
from infopt.compiler.target import Target
from infopt.compiler.types import Dim
from infopt.passes.coupled import Coupled, candidates, coupled
from infopt.passes.cutting import Cut, Cutting, between
from infopt.passes.layers import label_of

SCORES = ("sensitivity", "fluctuation", "magnitude")
_PROBES, _PROBED = 8, 8  # backward runs, and the calibration inputs they are made for
_STEP = 16  # channels are kept in whole vectors
_NOTHING = 1e-10  # of the largest worth in a structure: the rounding of constants
_LEAST_GAIN = 0.02  # of a structure's time: what is less may be a loss, estimates are not finer


@dataclass(frozen=True)
class PruneStructures(Pass):
    """W2 f(W1 x) -> W2' f(W1' x) + b, with fewer hidden channels and heads

    A channel that a layer reads is worth its variance over the calibration inputs times the squared
    length of the weights that meet it: what replacing it by its mean would do (FLAP, An et al.,
    2024). The units of the least worth go, whatever layer they are of, with the rows that make
    them, and their mean goes into a bias.

    share  of the weights of all structures that goes
    score  how layers compare. "sensitivity": by how far such a change of a layer moves the results
           (compiler/sensitivity.py), for each weight that goes. "fluctuation", as FLAP has it: in
           standard deviations from the mean of the layer, a head for the mean of its channels.
           "magnitude", a baseline: squared lengths of all weights of a unit alone, the same share
           of every layer, no bias, no calibration
    limit  how far results may move
    """

    name: ClassVar[str] = "prune-structures"
    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[str, ...]] = ("fuse-attention",)

    share: float = 0.2
    score: str = "sensitivity"
    limit: float = 0.5

    def __post_init__(self) -> None:
        wrong = isinstance(self.share, bool) or not isinstance(self.share, int | float)
        if wrong or not 0 < self.share < 1:
            raise BadOption(f"prune: expected a share between 0 and 1, found {self.share!r}")
        if self.score not in SCORES:
            raise BadOption(f"score: expected {', '.join(SCORES)}, found {self.score!r}")

    @property
    def accuracy(self) -> Accuracy:  # type: ignore[override]
        return Bounded("rms_rel", self.limit)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        by_weights = self.score == "magnitude"
        if not by_weights and not ctx.calibration:
            ctx.site("graph", False, "there are no calibration inputs to tell what hardly varies")
            return graph
        structures = []
        for (value, axis), readers in candidates(graph).items():
            found = coupled(graph, value, axis, readers)
            if isinstance(found, Coupled) and not (reason := _refusal(graph, ctx, found)):
                structures.append(found)
            else:
                ctx.site(_label(readers), False, found if isinstance(found, str) else reason)
        if not structures:
            return graph
        seen = {} if by_weights else _seen(graph, ctx, structures)
        cutting = Cutting(graph, ctx.builder)
        scores = [self._worth(cutting, s, seen) for s in structures]
        if self.score == "sensitivity":
            scores = _weighted(graph, ctx, structures, scores, seen)
        for structure, kept in zip(structures, self._kept(structures, scores), strict=True):
            label = _label(structure.readers)
            told = f"{len(kept)} of {structure.count} {structure.kind}"
            if len(kept) == structure.count:
                ctx.site(label, False, f"all {structure.count} {structure.kind} are worth more")
                continue
            mean = seen[structure.value].mean if seen else None
            cut = cutting.cut(structure, kept, mean)
            before, after = _seconds(structure, cut, cutting, ctx.target, graph.dims)
            if after > before * (1 - _LEAST_GAIN):
                reason = f"does not pay: {after * 1e6:.4g} us with {told}, {before * 1e6:.4g} us"
                ctx.site(label, False, f"{reason} with all", before - after)
                continue
            ctx.site(label, True, f"{told} kept", before - after)
            cutting.accept(cut)
        if not cutting.changes:
            return graph
        return ctx.exchange(graph, cutting.changes).with_consts(cutting.tensors)

    def _worth(self, cutting: Cutting, found: Coupled, seen: dict[Node, _Moments]) -> torch.Tensor:
        """f64 [count]"""
        worth = torch.stack([_squares(cutting, n, 1) for n in found.readers]).sum(0)
        if self.score == "magnitude":
            for node in found.makers:
                each = found.by_unit(node, _squares(cutting, node, 0)).mean(1)
                for first, length in found.stretches(found.value):
                    units = each.repeat_interleave(length // found.count)
                    worth[first : first + length] += units
            return found.by_unit(found.value, worth).mean(1)
        worth = worth * seen[found.value].variance
        if self.score == "fluctuation":
            worth = (worth - worth.mean()) / worth.std().clamp_min(1e-300)
            return found.by_unit(found.value, worth).mean(1)
        return found.by_unit(found.value, worth).sum(1)

    def _kept(self, structures: list[Coupled], scores: list[torch.Tensor]) -> list[torch.Tensor]:
        """The units of each structure that stay, int64 [n], in order."""
        if self.score == "magnitude":
            counts = [round((1 - self.share) * s.count) for s in structures]
        else:
            counts = _counts(structures, scores, self.share)
        kept = []
        for structure, score, count in zip(structures, scores, counts, strict=True):
            step = _STEP if structure.kind == "channels" else 1
            count = min(max(-(-count // step) * step, step), structure.count)
            kept.append(score.argsort(descending=True, stable=True)[:count].sort().values)
        return kept


def _refusal(graph: Graph, ctx: PassContext, found: Coupled) -> str:
    """Why the types of what is cut are not known: with open sizes, torch may ask about them."""
    if graph.dims:
        try:
            mean = torch.ones(int(found.value.shape[found.axis]), dtype=torch.float64)
            Cutting(graph, ctx.builder).cut(found, torch.arange(found.count // 2), mean)
        except CannotInfer as error:
            return str(error)
    return ""


class _Moments:
    """Mean and variance f64 [K] of a value's channels, which lie along `axis`, over all else."""

    def __init__(self, axis: int) -> None:
        self.axis, self.rows = axis, 0
        self.mean = self._squares = torch.zeros((), dtype=torch.float64)

    def add(self, x: torch.Tensor) -> None:
        """Rows with NaN or infinities say nothing. Sums are of what differs from the mean so far
        (Chan et al., 1979), so that a large mean hides no variance."""
        rows = x.movedim(self.axis, -1).reshape(-1, x.shape[self.axis]).double()
        rows = rows[rows.isfinite().all(-1)]
        if not len(rows):
            return
        mean, total = rows.mean(0), self.rows + len(rows)
        apart = (mean - self.mean).square() * (self.rows * len(rows) / total)
        self._squares = self._squares + (rows - mean).square().sum(0) + apart
        self.mean = self.mean + (mean - self.mean) * (len(rows) / total)
        self.rows = total

    @property
    def variance(self) -> torch.Tensor:
        return self._squares / max(self.rows - 1, 1)


def _seen(graph: Graph, ctx: PassContext, structures: list[Coupled]) -> dict[Node, _Moments]:
    found = {s.value: _Moments(s.axis) for s in structures}

    def watch(node: Node, value: Any) -> None:
        if node in found:
            found[node].add(value)

    for sample in ctx.calibration:
        copies = [v.clone() if isinstance(v, torch.Tensor) else v for v in sample]
        interpret(graph, copies, watch)
    return found


def _weighted(
    graph: Graph,
    ctx: PassContext,
    structures: list[Coupled],
    worth: list[torch.Tensor],
    seen: dict[Node, _Moments],
) -> list[torch.Tensor]:
    """Worth as the squared error of the results, for each weight: what the quarter of units that is
    worth least does, when it goes alone, says how much the results feel of a structure. Units that
    are worth nothing go with it and say nothing."""
    cutting, lost = Cutting(graph, ctx.builder), []
    variants: dict[Node, list[Node]] = {}
    for structure, each in zip(structures, worth, strict=True):
        order = each.argsort(stable=True)
        alive = int((each > _NOTHING * each.max()).sum())
        gone = min(structure.count - alive + max(1, alive // 4), structure.count - 1)
        cut = cutting.cut(structure, order[gone:].sort().values, seen[structure.value].mean)
        variants |= {node: [other] for node, other in cut.nodes.items()}
        lost.append(float(each[order[:gone]].sum()))
    samples = ctx.calibration[:_PROBED]
    errors = [
        relative_errors(graph, sample, variants, cutting.tensors, _PROBES, seed)
        for seed, sample in enumerate(samples)
    ]
    found = []
    for structure, each, least in zip(structures, worth, lost, strict=True):
        squares = sum(run[n][0] ** 2 for run in errors for n in structure.readers) / len(samples)
        found.append(each * (squares / max(least, 1e-300) / structure.numbers))
    return found


def _counts(structures: list[Coupled], scores: list[torch.Tensor], share: float) -> list[int]:
    """How many units stay of each: those of the least score go until their weights are enough."""
    score = torch.cat(scores)
    owner = torch.cat([torch.full((s.count,), i) for i, s in enumerate(structures)])
    numbers = torch.tensor([float(s.numbers) for s in structures], dtype=torch.float64)[owner]
    order = score.argsort(stable=True)
    gone = order[numbers[order].cumsum(0) <= share * numbers.sum()]
    lost = torch.bincount(owner[gone], minlength=len(structures))
    return [s.count - int(n) for s, n in zip(structures, lost, strict=True)]


def _seconds(
    structure: Coupled, cut: Cut, cutting: Cutting, target: Target, dims: Sequence[Dim]
) -> tuple[float, float]:
    """Estimated time of a structure from its makers to its readers, before and after."""
    old = {*structure.axes, *structure.readers}
    ends = {a for n in structure.axes for a in n.inputs if a not in structure.axes}
    ends |= {cutting.layer(n).x for n in structure.makers}
    changed = [cutting.changes[n] for n in old if n in cutting.changes]
    before = [*(n for n in old if n not in cutting.changes), *between(changed, ends)]
    after = between(cut.nodes.values(), ends)
    return (
        sum(node_seconds(n, target, dims) for n in before),
        sum(node_seconds(n, target, dims) for n in after),
    )


def _squares(cutting: Cutting, node: Node, dim: int) -> torch.Tensor:
    """f64: squared lengths of a layer's weights, all that have the same place along a dimension."""
    return cutting.layer(node).factors.square().transpose(0, dim).flatten(1).sum(1)


def _label(readers: Sequence[Node]) -> str:
    """What a report calls the place: the layers that read it."""
    return ", ".join(label_of(n) for n in readers)
