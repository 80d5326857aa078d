"""Which format a budget gives a decoder's cache, together with all that it chooses for weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Protocol

from torch import Tensor

from infopt.compiler.budget import NOTICED, Budget
from infopt.compiler.compiled import Built
from infopt.compiler.cost import graph_seconds
from infopt.compiler.decoding.contiguous import Contiguous
from infopt.compiler.decoding.policy import Policy
from infopt.compiler.decoding.step_program import StepProgram
from infopt.compiler.errors import UnreachableBudget
from infopt.compiler.graph import Graph
from infopt.compiler.options import Options
from infopt.compiler.pipeline import Reference, results_of
from infopt.compiler.report import PassReport, Report, Site
from infopt.compiler.target import Target
from infopt.passes.quantize_to_budget import QuantizeToBudget
from infopt.runtime.decoding.layout import FORMATS, GROUP, KV
from infopt.runtime.measure import measure

NAME = "cache-to-budget"
TOKENS = 3 * GROUP  # of a random text to judge by, where none is given


class Build(Protocol):
    """The program made for the machine."""

    def __call__(
        self,
        program: StepProgram,
        options: Options,
        report: Report,
        reference: Reference | None = None,
    ) -> Built: ...


@dataclass
class _Tried:
    """One format of the cache. alone: its error in the model as it is; error: with what was chosen
    beside; reason: why it is out, "" while it is not"""

    policy: Policy
    trace: Callable[[Policy], StepProgram]
    reason: str = ""
    alone: float = 0.0
    error: float = 0.0

    def __str__(self) -> str:
        kind = self.policy
        return f"kv={kind.kv.format if isinstance(kind, Contiguous) else type(kind).__name__}"

    @cached_property
    def program(self) -> StepProgram:
        return self.trace(self.policy)

    @property
    def bytes(self) -> int:
        return self.program.spec.cache_bytes


@dataclass
class CacheSearch:
    """The formats of infopt.KV, each with weights chosen for what it leaves of the error.

    The cache is an input, so each format is a program of its own. Texts are read at once, from the
    cache that they were just written to, so errors are those of rounded keys and values. They are
    measured against what a search for weights begins with over the cache as it is.

    texts    ids that errors are measured on
    begun    tokens in the cache of the step whose time counts
    policy   the cache as it is kept where no format pays
    asked    whether somebody gave it, so that no other is tried
    report   what all programs' reports begin with
    """

    options: Options
    permitted: Budget
    machine: Target
    texts: Sequence[Tensor]
    begun: int
    policy: Policy
    asked: bool
    trace: Callable[[Policy], StepProgram]
    build: Build
    report: Report
    reference: Reference = field(default_factory=Reference)
    fallbacks: Mapping[str, str] = field(default_factory=dict)  # of the cache as it is

    @cached_property
    def budget(self) -> Budget:
        """What is left to choose behind a cache."""
        techniques = tuple(name for name in self.permitted.techniques if name != "kv")
        return replace(self.permitted, techniques=techniques)

    @property
    def timed(self) -> bool:
        return self.budget.objective == "latency"

    @property
    def counted(self) -> bool:
        """Whether the cache's bytes count: an artifact holds none."""
        return self.budget.objective != "size"

    def best(self) -> tuple[StepProgram, Built]:
        """What is chosen. Raises UnreachableBudget where no cache keeps the budget."""
        tried = self.candidates()
        first = tried[0]
        made = {str(one): built for one in tried if (built := self.searched(one))}
        found = [one for one in tried if str(one) in made]
        if not found:
            raise UnreachableBudget("; ".join(f"{one}: {one.reason}" for one in tried))
        costs = self.costs([(one, made[str(one)]) for one in found])
        best = min(found, key=lambda one: costs[str(one)])
        whole = costs.get(str(first))
        if whole is not None and costs[str(best)] >= whole * (NOTICED if self.timed else 1):
            best = first
        report = made[str(best)].report
        report.passes.append(self.entry(tried, best, costs))
        return best.program, made[str(best)]

    def candidates(self) -> list[_Tried]:
        """The cache as it is, and the other formats in the order of their bytes; a reason where one
        is out already."""
        first = _Tried(self.policy, self.trace)
        if self.asked:
            return [first]
        others = [_Tried(Contiguous(KV(name)), self.trace) for name in FORMATS[1:]]
        expected = self.results(first, first.program.exported.graph)
        longest, limit = max(ids.shape[1] for ids in self.texts), self.budget.max_error
        for one in others:
            if not self.counted:
                one.reason = "does not pay: an artifact holds no cache"
                continue
            if one.policy.group > longest:
                one.reason = f"rounds {one.policy.group} tokens together, and no sample has so many"
                continue
            found = self.results(one, one.program.exported.graph)
            one.alone = self.budget.worst(expected, found)
            if one.alone > limit:
                one.reason = f"error {one.alone:.1e} alone, the budget is {limit:.1e}"
            elif not self.timed and one.bytes >= first.bytes:
                one.reason = f"does not pay: {one.bytes} bytes of cache, {first.bytes} as is"
        left = [one for one in others if not one.reason]
        if self.timed and left:
            self.decline_slower(first, left)
        return [first, *others]

    def decline_slower(self, first: _Tried, others: Sequence[_Tried]) -> None:
        """What a cache costs is the same whatever becomes of the weights: if a step takes no less
        as they are, nobody has to choose for them."""
        plain = self.options.beside_budget()
        made = [(t, self.build(t.program, plain, Report())) for t in (first, *others)]
        costs = self.costs(made)
        whole = costs[str(first)]
        for one in others:
            if (cost := costs[str(one)]) >= whole:
                one.reason = f"does not pay: {cost * 1e3:.4g} ms a step, {whole * 1e3:.4g} ms as is"
                one.reason += f", with weights as they are; error {one.alone:.1e} alone"

    def searched(self, one: _Tried) -> Built | None:
        """The program with what is chosen for the weights behind this cache; None, with a reason,
        where it is out."""
        budget, limit = self.budget, self.budget.max_memory
        if one.reason:
            return None
        if limit is not None and self.counted:
            if one.bytes >= limit:
                one.reason = f"its cache alone has {one.bytes} bytes, {limit} are allowed"
                if self.reference.results is None:
                    self.reference.results = self.results(one, one.program.exported.graph)
                return None
            budget = replace(budget, max_memory=limit - one.bytes)
        report = Report(target=self.report.target, notes=[*self.report.notes])
        options = replace(self.options, budget=budget)
        try:
            built = self.build(one.program, options, report, self.reference)
        except UnreachableBudget as error:
            one.reason = str(error)
            return None
        found = self.results(one, built.graph)
        one.error = budget.worst(self.reference.results or found, found)
        if one.policy is self.policy:
            self.fallbacks = report.fallbacks
            return built
        known = self.fallbacks
        slow = [f"{op}: {why}" for op, why in report.fallbacks.items() if op not in known]
        if slow:
            one.reason = f"torch would run {slow[0]}"
        elif one.error > budget.max_error:
            one.reason = f"error {one.alone:.1e} alone, {one.error:.1e} with what was chosen beside"
            one.reason += f", the budget is {budget.max_error:.1e}"
        return None if one.reason else built

    def results(self, one: _Tried, graph: Graph) -> list[list[object]]:
        """Logits of all texts."""
        samples = tuple([one.program.flat(ids) for ids in self.texts])
        return results_of(graph, samples, updates=False)

    def costs(self, made: Sequence[tuple[_Tried, Built]]) -> dict[str, float]:
        """Seconds of a step, on this machine measured in turns; else bytes."""
        if not self.timed:
            return {str(one): float(self.bytes(one, built.graph)) for one, built in made}
        if self.machine.name != Target.parse("native").name:
            return {str(one): graph_seconds(built.graph, self.machine) for one, built in made}
        ids, runs = self.texts[0][:1, :1], {}
        for one, built in made:
            runs[str(one)] = partial(built.program, [*one.program.flat(ids, self.begun)])
        return {name: t.min for name, t in measure(runs, seconds=3.0, rounds=15).items()}

    def bytes(self, one: _Tried, graph: Graph) -> int:
        held = one.bytes if self.counted else 0
        return held + sum(t.nbytes for t in graph.consts.values())

    def entry(
        self, tried: Sequence[_Tried], best: _Tried, costs: Mapping[str, float]
    ) -> PassReport:
        """What the report says of every format."""
        entry = PassReport(NAME, "COMPRESS", str(QuantizeToBudget(self.budget).accuracy))
        first, *_ = tried
        whole = costs.get(str(first))
        for one in tried:
            taken = one is best and one is not first
            told, gain = one.reason, None
            if not told:
                cost = costs[str(one)]
                alone = "" if one is first else f"{one.alone:.1e} alone, "
                told = f"error {alone}{one.error:.1e} with what was chosen beside"
                told += f", takes {self.amount(cost)}"
                if one is not first and whole is not None:
                    told += f", where {first} takes {self.amount(whole)}"
                    told += f" and {1 - NOTICED:.0%} less is asked for" if self.timed else ""
                    gain = whole - cost if taken and self.timed else None
                told += "; a cache was given, no other is tried" if self.asked else ""
                told += "" if one is best else f"; chosen: {best}"
            entry.sites.append(Site(str(one), taken, told, gain))
        return entry

    def amount(self, cost: float) -> str:
        if self.timed:
            return f"{cost * 1e3:.4g} ms a step behind {self.begun} tokens"
        return f"{cost:.0f} bytes" + (" with its cache" if self.counted else "")
