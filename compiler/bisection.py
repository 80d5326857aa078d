"""Which pass, and which of its sites, makes a program wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from infopt.compiler.accuracy import Accuracy
from infopt.compiler.dump import diff
from infopt.compiler.graph import Graph, Node
from infopt.compiler.pipeline import Pass, PassContext, Pipeline, SiteLimit, results_of
from infopt.compiler.report import Report
from infopt.compiler.rewrite import place
from infopt.compiler.settings import Settings
from infopt.compiler.target import Target

_ALL = 1 << 30


@dataclass(frozen=True)
class Culprit:
    """The first pass whose result leaves its contract, and the first of its sites that does.

    pass_name, position  the pass, and its place in the pipeline from 0
    contract, error      what it promises, and how far off it is; for one that raises, the exception
    site, number, sites  the site's node in the graph before the pass, which of how many; None and 0
                         where the pass is one piece, as an fx function is
    change               what that site (or the whole pass) did to the graph, as a diff
    evaluations          how many times a graph was run in torch to find it
    """

    pass_name: str
    position: int
    contract: str
    error: str
    site: str | None
    number: int
    sites: int
    change: str
    evaluations: int

    def __str__(self) -> str:
        lines = [
            f"pass {self.pass_name} (number {self.position + 1}) promises {self.contract}, but"
        ]
        lines.append(f"  {self.error}")
        if self.site is None:
            lines.append("its sites cannot be told apart; what the pass did:")
        else:
            lines.append(f"site {self.number} of {self.sites}: {self.site}; what it did:")
        lines += [f"  {line}" for line in self.change.splitlines()]
        return "\n".join([*lines, f"found in {self.evaluations} evaluations"])


def bisect_graph(
    passes: Sequence[Pass],
    graph: Graph,
    samples: Sequence[tuple[Any, ...]],
    target: Target | None = None,
) -> Culprit | None:
    """The first pass and site that break a contract on the samples, None where all keep theirs.

    Every pass is judged by its own contract, on the results of the whole program. Binary search
    finds a prefix of passes that no contract in it explains; where that finds nothing, because the
    pipeline as a whole stays within its loosest contract, every pass is compared with the one
    before. The same search over the number of applied sites names the site.
    Raises ContractBroken where the passes are not in a legal order.
    """
    return _Search(passes, graph, samples, target or Target.detect()).run()


class _Search:
    def __init__(
        self, passes: Sequence[Pass], graph: Graph, samples: Sequence[tuple], target: Target
    ) -> None:
        self.passes = Pipeline(passes).passes
        self.samples, self.target = tuple(samples), target
        self.graphs = [graph]  # graphs[i]: after i passes
        self.results = cache(self._evaluate)
        self.evaluations = 0

    def run(self) -> Culprit | None:
        raised = ""
        for p in self.passes:
            try:
                self.graphs.append(self.after(p, self.graphs[-1]))
            except Exception as error:
                raised = f"{type(error).__name__}: {error}"
                break
        position = len(self.graphs) - 1
        found = self._first_wrong(position)
        return found if found or not raised else self._culprit(position, lambda _: raised)

    def _evaluate(self, graph: Graph) -> list[list[Any]]:
        self.evaluations += len(self.samples)
        return results_of(graph, self.samples)

    def after(self, p: Pass, graph: Graph, limit: SiteLimit | None = None) -> Graph:
        ctx = PassContext(self.target, (), Report(), Settings(), limit=limit)
        return Pipeline([p], alone=True).run(graph, ctx)

    def _first_wrong(self, length: int) -> Culprit | None:
        """Binary search for a wrong prefix; then pass by pass, where that named nobody."""

        def wrong(count: int) -> bool:
            return bool(self.judge(self.graphs[0], self.graphs[count], self.passes[:count]))

        order = list(range(length))
        if length and wrong(length):
            first = _first(wrong, length) - 1
            order = [first, *(i for i in order if i != first)]
        for position in order:
            reason = self._reason(position)
            if reason(self.graphs[position + 1]):
                return self._culprit(position, reason)
        return None

    def _reason(self, position: int) -> Callable[[Graph], str | None]:
        """Judges what a pass made by its own contract."""
        before, p = self.graphs[position], self.passes[position]
        return lambda graph: self.judge(before, graph, [p])

    def judge(self, before: Graph, after: Graph, passes: Sequence[Pass]) -> str | None:
        """None where a contract of these passes explains the difference, else how far it is."""
        if before is after or not passes:
            return None
        contracts: list[Accuracy] = list(dict.fromkeys(p.accuracy for p in passes))
        for expected, found in zip(self.results(before), self.results(after), strict=True):
            for position, (a, b) in enumerate(zip(expected, found, strict=True)):
                if not isinstance(a, torch.Tensor):
                    continue
                reasons = [c.accepts(a, b) for c in contracts]
                if all(reasons):
                    return f"result {position} {reasons[-1]}"
        return None

    def _culprit(self, position: int, reason: Callable[[Graph], str | None]) -> Culprit:
        p, before = self.passes[position], self.graphs[position]
        found = self._site(p, before, reason)
        if found is None:
            after = self.graphs[position + 1] if len(self.graphs) > position + 1 else before
            error, change = str(reason(after)), diff(before, after)
            return Culprit(
                p.name, position, str(p.accuracy), error, None, 0, 0, change, self.evaluations
            )
        number, sites, node, change, error = found
        where = place(before, node) if node in before.nodes() else repr(node)
        return Culprit(
            p.name, position, str(p.accuracy), error, where, number, sites, change, self.evaluations
        )

    def _site(
        self, p: Pass, before: Graph, reason: Callable[[Graph], str | None]
    ) -> tuple[int, int, Node, str, str] | None:
        """(number, sites, node, diff, error) of the first wrong site."""
        raised: dict[int, str] = {}

        def partial(count: int) -> tuple[Graph | None, list[Node]]:
            limit = SiteLimit(count)
            try:
                return self.after(p, before, limit), limit.applied
            except Exception as error:
                raised[count] = f"{type(error).__name__}: {error}"
                return None, limit.applied

        whole, sites = partial(_ALL)
        if not sites:
            return None
        breaks = whole is None

        def wrong(count: int) -> bool:
            graph, _ = partial(count)
            return graph is None if breaks else graph is not None and bool(reason(graph))

        if not wrong(len(sites)):
            return None
        number = _first(wrong, len(sites))
        good, _ = partial(number - 1)
        bad, nodes = partial(number)
        error = raised[number] if bad is None else str(reason(bad))
        if good is None or (bad is None and not breaks):
            return None  # half of this pass is no legal program
        change = "the graph it makes is not legal" if bad is None else diff(good, bad)
        return number, len(sites), nodes[-1], change, error


def _first(wrong: Callable[[int], bool], length: int) -> int:
    """The smallest n in 1..length for which wrong(n), given wrong(length) and not wrong(0)."""
    low, high = 0, length
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if wrong(middle) else (middle, high)
    return high
