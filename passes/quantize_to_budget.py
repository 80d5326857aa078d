"""Formats for the weights of layers, chosen one by one under one error budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from infopt.codegen.kernels.narrow_linear import narrow_gated_linear, narrow_linear
from infopt.codegen.timing import measured_seconds
from infopt.compiler.accuracy import Accuracy, Bounded
from infopt.compiler.allocation import Choice, allocate
from infopt.compiler.budget import Budget
from infopt.compiler.cost import node_seconds
from infopt.compiler.errors import UnreachableBudget
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.pipeline import Pass, PassContext, results_of
from infopt.compiler.report import FrontierPoint
from infopt.compiler.sensitivity import relative_errors
from infopt.compiler.target import Target
from infopt.passes.layers import is_table, label_of
from infopt.passes.quantizing import Quantizing

_PROBES = 16
_ATTEMPTS = 8  # end-to-end checks of an allocation
_FRONTIER = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)  # multiples of the budget that the report shows


@dataclass(frozen=True)
class QuantizeToBudget(Pass):
    """linear(x, w) -> quantized_linear(x, ...) in the formats that pay most for a given error

    Every layer's error in every format is predicted by a few backward runs on the samples
    (compiler/sensitivity.py), its time measured on this machine, or estimated for another one; an
    integer program picks; the pick is checked end to end and picked again with less where
    needed. Where nothing pays, nothing is changed.

    then: passes that run later and also move results; the check includes them
    """

    name: ClassVar[str] = "quantize-to-budget"
    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[str, ...]] = ("fuse-linear-epilogue",)

    budget: Budget = field(default_factory=lambda: Budget(0.01))
    then: tuple[Pass, ...] = ()

    @property
    def accuracy(self) -> Accuracy:  # type: ignore[override]
        return Bounded("rms_rel", self.budget.max_error if self.budget.metric is None else 1.0)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        if not ctx.samples:
            ctx.site("graph", False, "there are no example inputs to measure errors on")
            return graph
        search = _Search(self, graph, ctx)
        if not search.layers:
            return graph
        return search.best()


@dataclass(frozen=True)
class _Form:
    """One way to compute a layer: the node, in what format (None: as it is), at what price."""

    node: Node
    format: str | None
    activations: str
    choice: Choice

    def __str__(self) -> str:
        if self.format is None:
            return "as it is"
        return self.format + (" and int8 activations" if self.activations == "int8" else "")


class _Search:
    """layers: linear layer -> its forms, the first of them as it is."""

    def __init__(self, options: QuantizeToBudget, graph: Graph, ctx: PassContext) -> None:
        self.options, self.budget, self.graph, self.ctx = options, options.budget, graph, ctx
        self.quantizing = Quantizing(graph, ctx)
        self.expected = results_of(graph, ctx.samples)
        found = {node: self.variants(node) for node in self.quantizing.layers()}
        found = {node: forms for node, forms in found.items() if forms}
        errors = self.errors({node: [f[0] for f in forms] for node, forms in found.items()})
        costs = self.costs(
            [self.baseline(n) for n in found] + [f[0] for v in found.values() for f in v]
        )
        self.layers: dict[Node, list[_Form]] = {}
        for node, forms in found.items():
            size, base = self.quantizing.bytes(node, None), self.baseline(node)
            if base is not node:  # it will be rounded to bf16
                size = size * torch.bfloat16.itemsize // node.dtype.itemsize
            self.layers[node] = [
                _Form(node, None, "none", Choice(costs[base] if costs else size, 0.0, size))
            ]
            for (made, format, activations), error in zip(forms, errors[node], strict=True):
                size = self.quantizing.bytes(node, format)
                choice = Choice(costs[made] if costs else size, error, size)
                self.layers[node].append(_Form(made, format, activations, choice))

    def variants(self, node: Node) -> list[tuple[Node, str, str]]:
        """A layer in every format that has a kernel; where there is none, why."""
        label, reason = label_of(node), self.quantizing.refusal(node)
        found = []
        if not reason:
            for format in self.budget.formats:
                for activations in ("none",) if is_table(node) else self.budget.activations:
                    made = self.quantizing.replacement(node, format, activations)
                    if isinstance(made, Node):
                        found.append((made, format, activations))
                    else:
                        reason = made
        if not found:
            self.ctx.site(label, False, reason)
        return found

    def errors(self, variants: Mapping[Node, Sequence[Node]]) -> dict[Node, list[float]]:
        """The relative error of the results that each variant alone causes, over all samples."""
        runs = [
            relative_errors(self.graph, sample, variants, self.quantizing.tensors, _PROBES, seed)
            for seed, sample in enumerate(self.ctx.samples)
        ]
        return {
            node: [
                (sum(run[node][i] ** 2 for run in runs) / len(runs)) ** 0.5
                for i in range(len(found))
            ]
            for node, found in variants.items()
        }

    def baseline(self, node: Node) -> Node:
        """What a layer becomes where no format is chosen."""
        narrows = any(p.name == "narrow-compute" for p in self.options.then)
        if not narrows or is_table(node):
            return node
        gated = node.op.name == "gated_linear"
        attrs = {k: v for k, v in node.attrs if k == "activation"}
        op = narrow_gated_linear if gated else narrow_linear
        return self.ctx.builder.call(op, *node.args, out=node.dtype, **attrs)

    def costs(self, nodes: Sequence[Node]) -> dict[Node, float]:
        """Seconds of each node; {} where the objective is not time."""
        if self.budget.objective != "latency":
            return {}
        dims = self.graph.dims
        if self.ctx.target.name != Target.parse("native").name:
            return {n: node_seconds(n, self.ctx.target, dims) for n in nodes}
        return measured_seconds(nodes, self.ctx.target, dims)

    def best(self) -> Graph:
        """The graph with the formats that keep the budget, found by trying smaller or larger
        allowances for the predicted error."""
        limit, own_metric = self.budget.max_error, self.budget.metric is not None
        # a prediction is a relative error: in another metric only the order of choices is known
        low, high = 0.0, self.point(self.pick(float("inf")), None).predicted_error
        allowance = high / 8 if own_metric else limit
        good: tuple[list[int], float] | None = None
        for _ in range(_ATTEMPTS):
            picked = self.pick(allowance)
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
                good = ([0] * len(self.layers), 0.0)
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
        return {node: forms[i].node for (node, forms), i in pairs if i}

    def check(self, picked: Sequence[int]) -> float:
        """The error of the whole model, in the budget's metric, with everything that follows."""
        ctx = replace(self.ctx, entry=None, limit=None, derived={})
        graph = ctx.exchange(self.graph, self.changed(picked))
        graph = graph.with_consts(self.quantizing.tensors)
        for later in self.options.then:
            graph = later.run(graph, ctx)
        pairs = zip(self.expected, results_of(graph, self.ctx.samples), strict=True)
        return max(self.budget.error(a, b) for a, b in pairs)

    def applied(self, picked: Sequence[int], error: float) -> Graph:
        for (node, forms), index in zip(self.layers.items(), picked, strict=True):
            chosen, plain = forms[index], forms[0]
            gain = plain.choice.cost - chosen.choice.cost
            timed = self.budget.objective == "latency"
            if index:
                reason = f"{chosen}, error {chosen.choice.error:.1e} of the results'"
            else:
                reason = _why_not(forms, timed)
            self.ctx.site(label_of(node), bool(index), reason, gain if index and timed else None)
        self.ctx.report.frontier = self.frontier(picked, error)
        changes = self.changed(picked)
        if not changes:
            return self.graph
        return self.ctx.exchange(self.graph, changes).with_consts(self.quantizing.tensors)

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


def _why_not(forms: Sequence[_Form], timed: bool) -> str:
    """Why a layer stays as it is."""
    plain, others = forms[0], forms[1:]
    cheapest = min(others, key=lambda f: f.choice.cost)
    if cheapest.choice.cost >= plain.choice.cost:
        unit = " us" if timed else " bytes"
        scale = 1e6 if timed else 1
        return (
            f"does not pay: {cheapest} takes {cheapest.choice.cost * scale:.4g}{unit}, "
            f"as it is {plain.choice.cost * scale:.4g}{unit}"
        )
    least = min(others, key=lambda f: f.choice.error)
    return f"the budget is spent elsewhere: {least} would add {least.choice.error:.1e}"
