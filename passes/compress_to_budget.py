"""Fewer channels, fewer tokens, fewer weights read, and then formats and ranks: what of it pays
most for one error of the whole model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from infopt.codegen.timing import whole_seconds
from infopt.compiler.accuracy import Accuracy
from infopt.compiler.budget import NOTICED, Budget
from infopt.compiler.cost import graph_seconds
from infopt.compiler.errors import UnreachableBudget
from infopt.compiler.graph import Graph, Stage
from infopt.compiler.infer import builder_for
from infopt.compiler.pipeline import Pass, PassContext, Pipeline
from infopt.compiler.report import PassReport, Report
from infopt.compiler.target import Target
from infopt.passes.quantize_to_budget import QuantizeToBudget
from infopt.passes.techniques import LADDERS, Rung, sparse_bytes, with_rungs

_LEAVES_HALF = 0.5**0.5  # of the error: errors add in squares, so half of the budget is left
_REASONS = 2  # of a pass are told where it did nothing
_ALONE = "formats and ranks"


@dataclass(frozen=True)
class CompressToBudget(Pass):
    """f(x) -> g(x) with fewer channels, tokens or weights read, and formats and ranks behind it

    A technique is one choice for the whole model, tried in a few steps. A step is left out where
    its pass says that it does not pay, and where it alone loses more than the budget, as do all
    that lose more. Of the others two are tried, the one that loses most and the most that leaves
    half of the budget: behind them formats and ranks are searched with what is left. The errors of
    both are measured together, end to end, and the objective of all results in turns. The best
    technique stays where it beats formats and ranks alone; then another is tried on top of it.

    formats  the search for formats and ranks, with the budget
    between  passes between the techniques and that search
    then     passes that follow: errors and times are those behind them
    """

    name: ClassVar[str] = "compress-to-budget"
    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[str, ...]] = ("fuse-attention",)
    searches: ClassVar[bool] = True

    formats: QuantizeToBudget = field(
        default_factory=lambda: QuantizeToBudget(Budget(0.01, techniques="all"))
    )
    between: tuple[Pass, ...] = ()
    then: tuple[Pass, ...] = ()

    @property
    def parts(self) -> tuple[Pass, ...]:
        return (*self.between, self.formats)

    @property
    def accuracy(self) -> Accuracy:  # type: ignore[override]
        return self.formats.accuracy

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        if not ctx.samples:
            ctx.site("graph", False, "there are no example inputs to measure errors on")
            return Pipeline(self.between, alone=True).run(graph, ctx) if self.between else graph
        return _Search(self, graph, ctx).best()


@dataclass(frozen=True)
class _Trial:
    """A graph that some techniques were applied to, with what was recorded on the way.

    error: of its results behind all later passes; finished: the graph behind them
    """

    rungs: tuple[Rung, ...]
    graph: Graph
    ctx: PassContext
    finished: Graph
    error: float

    def __str__(self) -> str:
        return ", ".join(map(str, self.rungs)) or f"{_ALONE} alone"


@dataclass
class _Told:
    """What the report will say of one step."""

    label: str
    reason: str
    trial: _Trial | None = None


class _Search:
    def __init__(self, options: CompressToBudget, graph: Graph, ctx: PassContext) -> None:
        self.options, self.graph, self.ctx = options, graph, ctx
        self.budget = options.formats.budget
        self.timed = self.budget.objective == "latency"
        self.expected = ctx.expected(graph)
        self.told: list[_Told] = []
        self.amounts: dict[int, str] = {}

    def best(self) -> Graph:
        start = self.prepared(())
        plain = _Told(_ALONE, "")
        self.told.append(plain)
        best = self.with_formats(start, plain)
        prepared, left, gain = start, [t for t in LADDERS if t in self.budget.techniques], None
        while left:
            found = [t for technique in left for t in self.tried(prepared, technique)]
            if not found:
                break
            # what does not pay or loses too much by itself will not do better on top of others
            left = [t for t in left if any(f.rungs[-1].technique == t for f in found)]
            compared = [*([best] if best else []), *found]
            costs = self.costs(compared)
            least = min(range(len(compared)), key=costs.__getitem__)
            self.tell(best, compared, costs)
            if compared[least] is best:
                break
            if best is not None:
                if not costs[least] < costs[0] * (NOTICED if self.timed else 1):
                    break
                gain = (gain or 0.0) + costs[0] - costs[least]
            best = compared[least]
            prepared = self.prepared(best.rungs)
            left = [t for t in left if t != best.rungs[-1].technique]
        if best is None:
            reasons = "; ".join(f"{t.label}: {t.reason}" for t in self.told)
            raise UnreachableBudget(reasons)
        self.record(best, gain if self.timed else None)
        return self.adopted(best)

    def prepared(self, rungs: tuple[Rung, ...]) -> _Trial:
        """The graph with these techniques, before formats are chosen."""
        ctx = self.aside(self.ctx)
        passes = with_rungs(rungs, self.options.between)
        return self.trial(rungs, _run(passes, self.graph, ctx), ctx)

    def trial(self, rungs: tuple[Rung, ...], graph: Graph, ctx: PassContext) -> _Trial:
        finished = _run(self.options.then, graph, self.aside(ctx))
        error = self.budget.worst(self.expected, self.ctx.results(finished))
        return _Trial(rungs, graph, ctx, finished, error)

    def aside(self, ctx: PassContext) -> PassContext:
        """A context whose records are its own."""
        return replace(
            *(ctx,),
            report=Report(),
            settings=replace(ctx.settings, dump=None),
            entry=None,
            limit=None,
            derived=dict(ctx.derived),
            held=set(ctx.held),
        )

    def with_formats(self, trial: _Trial, told: _Told) -> _Trial | None:
        """Formats and ranks behind the techniques, None where nothing keeps the budget."""
        formats, limit = self.options.formats, self.budget.max_memory
        kept = sparse_bytes(trial.graph)
        if limit is not None and kept:
            if kept >= limit:
                told.reason = f"its sparse layers alone have {kept} bytes, {limit} are allowed"
                return None
            formats = replace(formats, budget=replace(self.budget, max_memory=limit - kept))
        graph = trial.graph
        entry = PassReport(
            *(formats.name, formats.stage.name, str(formats.accuracy), len(graph.nodes())),
            key=formats.key,
        )
        report = replace(trial.ctx.report, passes=[*trial.ctx.report.passes, entry])
        ctx = replace(self.aside(trial.ctx), report=report)
        inner = replace(ctx, entry=entry, builder=builder_for(graph.dims))
        start = time.perf_counter()
        try:
            graph = formats.choose(graph, inner, self.expected, trial.error)
        except UnreachableBudget as error:
            told.reason = str(error)
            return None
        if graph is not trial.graph:
            graph = graph.with_consts({})
        entry.nodes_after = len(graph.nodes())
        entry.milliseconds = (time.perf_counter() - start) * 1e3
        found = self.trial(trial.rungs, graph, ctx)
        told.trial = found
        return found

    def tried(self, base: _Trial, technique: str) -> list[_Trial]:
        """The steps of a technique that stay within the budget, with formats and ranks."""
        limit, within = self.budget.max_error, list[tuple[_Trial, _Told]]()
        beyond = ""
        for share in LADDERS[technique]:
            rung = Rung(technique, share)
            told = _Told(f"{rung} after {base}" if base.rungs else str(rung), beyond)
            self.told.append(told)
            if beyond:
                continue
            trial = self.prepared((*base.rungs, rung))
            told.reason = self.declined(base, trial, rung)
            if told.reason:
                continue
            if trial.error > limit:
                told.reason = f"error {trial.error:.1e} before formats, the budget is {limit:.1e}"
                beyond = f"not tried: {rung} has an {told.reason}"
                continue
            within.append((trial, told))
        if not within:
            return []
        half = [pair for pair in within if pair[0].error <= limit * _LEAVES_HALF]
        chosen = [*half[-1:], within[-1]] if half and half[-1] is not within[-1] else within[-1:]
        found = []
        for trial, told in within:
            lost = f"error {trial.error:.1e} before formats"
            if all(trial is not other for other, _ in chosen):
                searched = " and ".join(str(other.rungs[-1]) for other, _ in chosen)
                told.reason = f"{lost}; of the steps within the budget, {searched} are searched"
                continue
            made = self.with_formats(trial, told)
            told.reason = f"{lost}, {told.reason}" if made is None else lost
            if made is not None:
                found.append(made)
        return found

    def declined(self, base: _Trial, trial: _Trial, rung: Rung) -> str:
        """Why a technique changes nothing or cannot pay, "" where it may."""
        entry = trial.ctx.report.find(rung.compression.name)
        if not entry.applied:
            reasons = [*dict.fromkeys(s.reason for s in entry.declined)]
            more = len(reasons) - _REASONS
            told = "; ".join(reasons[:_REASONS]) or "there is nothing that it applies to"
            return told + (f"; and {more} further reasons" if more > 0 else "")
        before, after = _bytes(base.finished), _bytes(trial.finished)
        if not self.timed and after >= before:
            return f"does not pay: {after} bytes of weights, {before} without it"
        return ""

    def costs(self, trials: Sequence[_Trial]) -> list[float]:
        """What the objective counts: bytes, or seconds of a call, on this machine measured in
        turns."""
        graphs, target = [t.finished for t in trials], self.ctx.target
        if not self.timed:
            return [float(_bytes(graph)) for graph in graphs]
        if target.name != Target.parse("native").name:
            return [graph_seconds(graph, target) for graph in graphs]
        inputs: Sequence[Any] = self.ctx.timed or self.ctx.samples[0]
        return whole_seconds(graphs, target, inputs)

    def tell(self, best: _Trial | None, trials: Sequence[_Trial], costs: Sequence[float]) -> None:
        """What the report says of what each trial costs: the one to beat in the same turns."""
        said = [f"{c * 1e3:.4g} ms" if self.timed else f"{c:.0f} bytes" for c in costs]
        asked = f" and {1 - NOTICED:.0%} less is asked for" if self.timed else ""
        against = "" if best is None else f", where {best} takes {said[0]}{asked}"
        for trial, amount in zip(trials, said, strict=True):
            other = "" if trial is best else against
            self.amounts.setdefault(id(trial), f", takes {amount}{other}")

    def record(self, best: _Trial, gain: float | None) -> None:
        for told in self.told:
            trial = told.trial
            taken = trial is not None and _leads_to(trial, best)
            if taken and trial is not None and not trial.rungs:
                taken = bool(trial.ctx.report.find(self.options.formats.name).applied)
            if trial is not None:
                behind = f"{told.reason}, " if told.reason else ""
                told.reason = f"{behind}error {trial.error:.1e}{self.amounts.get(id(trial), '')}"
                told.reason += "" if taken or trial is best else f"; chosen: {best}"
            self.ctx.site(told.label, taken, told.reason, gain if trial is best else None)
        if "kv" in self.budget.techniques:  # compile_causal_lm chooses it before
            self.ctx.site("kv", False, "there is no cache whose format could be chosen")

    def adopted(self, best: _Trial) -> Graph:
        """The graph of the trial that was chosen; its records become the compilation's."""
        report, made = self.ctx.report, best.ctx
        report.passes += made.report.passes
        report.notes += made.report.notes
        report.frontier = made.report.frontier
        self.ctx.derived.update(made.derived)
        self.ctx.held.update(made.held)
        return best.graph


def _leads_to(trial: _Trial, best: _Trial) -> bool:
    """Whether a trial is the chosen one, or a step on the way to it."""
    return trial is best or (bool(trial.rungs) and trial.rungs == best.rungs[: len(trial.rungs)])


def _run(passes: Sequence[Pass], graph: Graph, ctx: PassContext) -> Graph:
    """Not measured by the contracts of the passes: what counts is the budget."""
    return Pipeline(passes, alone=True, measured=False).run(graph, ctx)


def _bytes(graph: Graph) -> int:
    return sum(t.numel() * t.itemsize for t in graph.consts.values())
