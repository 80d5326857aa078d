"""Formats and ranks for the weights of layers, chosen one by one under one error budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from infopt.codegen.timing import measured_seconds
from infopt.compiler.accuracy import Accuracy, Bounded
from infopt.compiler.allocation import allocate
from infopt.compiler.budget import NOTICED, Budget
from infopt.compiler.cost import node_seconds
from infopt.compiler.errors import UnreachableBudget
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.pipeline import Pass, PassContext
from infopt.compiler.report import FrontierPoint
from infopt.compiler.sensitivity import relative_errors
from infopt.compiler.target import Target
from infopt.passes.factor_low_rank import layer_ranks
from infopt.passes.layer_forms import Form, LayerForms, surely_better
from infopt.passes.layers import label_of
from infopt.passes.priced import Priced, against, amount, priced, why_not, why_not_less
from infopt.passes.quantize_weights import checked_format

_PROBES = 16
_ATTEMPTS = 8  # end-to-end checks of an allocation
_FRONTIER = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)  # multiples of the budget that the report shows


@dataclass(frozen=True)
class QuantizeToBudget(Pass):
    """linear(x, w) -> quantized_linear(x, ...), or two thin ones: what pays most for a given error

    Every layer's error in every format, as thin factors of a few ranks, and as such factors in
    formats of 8 bits, is predicted by a few backward runs on the samples
    (compiler/sensitivity.py), its time measured on this machine, or estimated for another one; an
    integer program picks; the pick is checked end to end and picked again with less where
    needed. Where nothing pays, nothing is changed.

    then: passes that run later and also move results; the check includes them
    """

    name: ClassVar[str] = "quantize-to-budget"
    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[str, ...]] = ("fuse-linear-epilogue",)
    searches: ClassVar[bool] = True

    budget: Budget = field(default_factory=lambda: Budget(0.01))
    then: tuple[Pass, ...] = ()

    def __post_init__(self) -> None:
        for name in self.budget.formats:
            checked_format(name, f"budget: there is no format {name!r}")
        if self.budget.ranks != "auto":
            layer_ranks(tuple(("*", rank) for rank in self.budget.ranks), "ranks of a budget")

    @property
    def accuracy(self) -> Accuracy:  # type: ignore[override]
        return Bounded("rms_rel", self.budget.max_error if self.budget.metric is None else 1.0)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        if not ctx.samples:
            ctx.site("graph", False, "there are no example inputs to measure errors on")
            return graph
        expected = ctx.expected(graph)
        spent = self.budget.worst(expected, ctx.results(graph)) if ctx.reference else 0.0
        return self.choose(graph, ctx, expected, spent)

    def choose(
        self, graph: Graph, ctx: PassContext, expected: Sequence[Sequence[Any]], spent: float = 0.0
    ) -> Graph:
        """run, for a graph that lost something before.

        expected: the results that errors are measured against; spent: the graph's error already
        """
        search = _Search(self, graph, ctx, expected, spent)
        return search.best() if search.layers else graph


class _Search:
    """layers: layer -> its forms, the first of them as it is."""

    def __init__(
        self,
        options: QuantizeToBudget,
        graph: Graph,
        ctx: PassContext,
        expected: Sequence[Sequence[Any]],
        spent: float,
    ) -> None:
        self.options, self.budget, self.graph, self.ctx = options, options.budget, graph, ctx
        self.expected, self.spent = expected, spent
        narrows = any(p.name == "narrow-compute" for p in options.then)
        self.forms = LayerForms(graph, ctx, self.budget, narrows)
        self.ranks: dict[Node, str] = {}  # why a layer has no factors to choose from
        self.untried: dict[Node, str] = {}  # why a format was not looked for
        self.seconds: dict[Form, float] = {}
        found = self.found()
        costs = self.costs([form for forms in found.values() for form, _ in forms])
        self.layers = {
            node: [priced(f, costs, e) for f, e in forms] for node, forms in found.items()
        }

    def found(self) -> dict[Node, list[tuple[Form, float]]]:
        """The forms of every layer that has any, with the errors they cause."""
        made: dict[Node, list[Form]] = {}
        for node in self.forms.quantizing.layers():
            formats, factors = self.forms.formats(node), self.forms.factors(node)
            if isinstance(factors, str):
                self.ranks[node], factors = factors, []
            if isinstance(formats, str) and not factors:
                self.ctx.site(label_of(node), False, formats)
            else:
                made[node] = factors + ([] if isinstance(formats, str) else formats)
        made = self.tried(made)
        errors = self.errors(made)
        further = {}
        for node, forms in made.items():
            thin = [(f, e) for f, e in zip(forms, errors[node], strict=True) if f.inner]
            kept = [f for f, e in thin if e <= self.most]
            if thin and not kept:
                form, error = min(thin, key=lambda pair: pair[1])
                limit = self.budget.max_error
                self.ranks[node] = f"{form} alone would add {error:.1e}, the budget is {limit:.1e}"
            further[node] = [f for form in kept for f in self.forms.factors_in_formats(form)]
        more = self.errors({node: forms for node, forms in further.items() if forms})
        found = {}
        for node, forms in made.items():
            pairs = [*zip(forms, errors[node], strict=True)]
            pairs += zip(further[node], more.get(node, []), strict=True)
            pairs = [(f, e) for f, e in pairs if not f.inner or e <= self.most]
            if pairs or node in self.untried:
                found[node] = [(self.forms.plain(node), 0.0), *pairs]
            else:
                self.ctx.site(label_of(node), False, self.ranks[node])
        return found

    def tried(self, made: Mapping[Node, list[Form]]) -> dict[Node, list[Form]]:
        """The same forms, all encoded. What takes long to find is left out where more bits of the
        same kind, or the layer as it is, cost no more."""
        waiting = {n: [self.forms.plain(n), *f] for n, f in made.items() if any(g.held for g in f)}
        costs = self.costs([form for forms in waiting.values() for form in forms])
        found = dict(made)
        for node, (plain, *forms) in waiting.items():
            found[node] = []
            for form in forms:
                if form.held:
                    others = [plain, *surely_better(form, forms)]
                    better = min(others, key=lambda f: costs.get(f, f.bytes))
                    mine, least = (priced(f, costs) for f in (form, better))
                    if least.choice.cost * NOTICED < mine.choice.cost:
                        said = f"; not tried: {against(mine, least, bool(costs))}"
                        self.untried[node] = self.untried.get(node, "") + said
                        continue
                    form = self.forms.encoded(node, form)
                    self.seconds[form] = mine.choice.cost
                found[node].append(form)
        return found

    @property
    def most(self) -> float:
        """The error beyond which factors are not looked at."""
        return 2 * self.budget.max_error if self.budget.metric is None else 1.0

    def errors(self, forms: Mapping[Node, Sequence[Form]]) -> dict[Node, list[float]]:
        """The relative error of the results that each form alone causes, over all samples."""
        if not forms:
            return {}
        variants = {node: [f.node for f in found] for node, found in forms.items()}
        tensors = self.forms.tensors
        runs = [
            relative_errors(self.graph, sample, variants, tensors, _PROBES, seed)
            for seed, sample in enumerate(self.ctx.samples)
        ]
        return {
            node: [
                (sum(run[node][i] ** 2 for run in runs) / len(runs)) ** 0.5
                for i in range(len(found))
            ]
            for node, found in variants.items()
        }

    def costs(self, forms: Sequence[Form]) -> dict[Form, float]:
        """Seconds of each form; {} where the objective is not time."""
        if self.budget.objective != "latency":
            return {}
        dims, new = self.graph.dims, [f for f in forms if f not in self.seconds]
        if self.ctx.target.name != Target.parse("native").name:
            return {
                f: sum(node_seconds(n, self.ctx.target, dims) for n in (*f.inner, f.run))
                for f in forms
            }
        inner = {n for f in new for n in f.inner}
        typical = self.forms.quantizing.typical
        runs = [f.run for f in new]
        times = measured_seconds(runs, self.ctx.target, dims, inner=inner, given=typical)
        self.seconds |= {f: times[f.run] for f in new}
        return {f: self.seconds[f] for f in forms}

    def best(self) -> Graph:
        """The graph with the formats that keep the budget, found by trying smaller or larger
        allowances for the predicted error."""
        limit, own_metric = self.budget.max_error, self.budget.metric is not None
        # a prediction is a relative error: in another metric only the order of choices is known
        low, high = 0.0, self.point(self.pick(float("inf")), None).predicted_error
        left = max(limit**2 - self.spent**2, (limit / 10) ** 2) ** 0.5
        allowance = high if own_metric else left
        good: tuple[list[int], float] | None = None
        error: float | None = None
        for _ in range(_ATTEMPTS):
            try:
                picked = self.pick(allowance)
            except UnreachableBudget:
                if error is None:  # no choice at all is small enough
                    raise
                low, allowance = allowance, (allowance * high) ** 0.5
                continue
            error = self.check(picked)
            if error <= limit:
                good, low = (picked, error), allowance
                if error > 0.8 * limit or low >= high / 1.1:
                    break
                allowance = min(allowance * (4 if own_metric else 2), (low * high) ** 0.5)
            else:
                high = allowance
                shrunk = allowance / 4 if own_metric else allowance * 0.9 * limit / error
                allowance = (low * high) ** 0.5 if low else shrunk
        if good is None:
            if self.budget.max_memory is None:
                good = ([0] * len(self.layers), self.spent)
            else:
                raise UnreachableBudget(
                    f"weights of {self.budget.max_memory} bytes with an error of at most "
                    f"{limit:.3g}: the nearest choice has an error of {error:.3g}"
                )
        return self.applied(*good)

    def pick(self, allowance: float) -> list[int]:
        items = [[f.choice for f in forms] for forms in self.layers.values()]
        return allocate(items, allowance, self.budget.max_memory)

    def changed(self, picked: Sequence[int]) -> dict[Node, Node]:
        pairs = zip(self.layers.items(), picked, strict=True)
        return {node: forms[i].form.node for (node, forms), i in pairs if i}

    def check(self, picked: Sequence[int]) -> float:
        """The error of the whole model, in the budget's metric, with everything that follows."""
        ctx = replace(self.ctx, entry=None, limit=None, derived={})
        graph = ctx.exchange(self.graph, self.changed(picked))
        graph = graph.with_consts(self.forms.tensors)
        for later in self.options.then:
            graph = later.run(graph, ctx)
        return self.budget.worst(self.expected, self.ctx.results(graph))

    def applied(self, picked: Sequence[int], error: float) -> Graph:
        for (node, forms), index in zip(self.layers.items(), picked, strict=True):
            chosen, plain = forms[index], forms[0]
            gain = plain.choice.cost - chosen.choice.cost
            timed = self.budget.objective == "latency"
            if index:
                reason = f"{chosen}, error {chosen.choice.error:.1e} of the results'"
                reason += why_not_less(forms, chosen, timed)
            else:
                reason = why_not(forms, timed)
            reason += self.untried.get(node, "") + self.of_ranks(node, chosen)
            self.ctx.site(label_of(node), bool(index), reason, gain if index and timed else None)
        self.ctx.report.frontier = self.frontier(picked, error)
        changes = self.changed(picked)
        if not changes:
            return self.graph
        return self.ctx.exchange(self.graph, changes).with_consts(self.forms.tensors)

    def of_ranks(self, node: Node, chosen: Priced) -> str:
        """Why a layer did not become two thin products, where that was asked."""
        if node in self.ranks:
            return f"; as factors: {self.ranks[node]}"
        thin = [p for p in self.layers[node] if p.form.inner]
        if not thin or chosen.form.inner:
            return ""
        timed = self.budget.objective == "latency"
        best = min(thin, key=lambda p: p.choice.cost)
        return (
            f"; as factors: {best} would take {amount(best, timed)} and add "
            f"{best.choice.error:.1e}, this takes {amount(chosen, timed)}"
        )

    def frontier(self, picked: Sequence[int], error: float) -> list[FrontierPoint]:
        """What other budgets would buy, predicted; and the chosen point, measured."""
        points, chosen = {}, self.point(picked, error)
        for factor in _FRONTIER:
            try:
                other = self.pick(factor * (chosen.predicted_error or self.budget.max_error))
            except UnreachableBudget:
                continue
            points[tuple(other)] = self.point(other, None)
        points[tuple(picked)] = chosen
        return sorted(points.values(), key=lambda p: p.predicted_error)

    def point(self, picked: Sequence[int], error: float | None) -> FrontierPoint:
        forms = [forms[i] for forms, i in zip(self.layers.values(), picked, strict=True)]
        counts: dict[str, int] = {}
        for form in forms:
            counts[str(form)] = counts.get(str(form), 0) + 1
        timed = self.budget.objective == "latency"
        return FrontierPoint(
            predicted_error=sum(f.choice.error**2 for f in forms) ** 0.5,
            measured_error=error,
            seconds=sum(f.choice.cost for f in forms) if timed else None,
            bytes=sum(f.choice.bytes for f in forms),
            formats=counts,
        )
