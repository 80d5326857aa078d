"""Formats chosen layer by layer under one error budget."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import infopt
from infopt.codegen.kernels.packed_layer_norm import packed_layer_norm
from infopt.compiler.graph import Graph, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.testing import run_pass
from infopt.compiler.types import TensorType
from infopt.passes.quantize_to_budget import QuantizeToBudget

WIDTH = 96


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


class Net(nn.Module):
    """Six layers of which the third one's outliers make it the most sensitive."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(6))
        with torch.no_grad():
            self.layers[2].weight[::7, ::5] *= 40

    def forward(self, x):
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x


@pytest.fixture
def net():
    return Net().eval()


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(24, WIDTH)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@torch.no_grad()
@pytest.mark.parametrize("limit", [slow(3e-4), 1e-3, slow(5e-3), 0.05])
def test_the_error_stays_within_the_budget(net, x, limit):
    compiled = infopt.compile(net, (x,), max_error=limit, objective="size")
    assert relative(compiled(x), net(x)) <= limit * 1.02
    [chosen] = [p for p in compiled.report.frontier if p.measured_error is not None]
    assert chosen.measured_error <= limit
    assert sum(chosen.formats.values()) == 6


@pytest.mark.slow
@torch.no_grad()
def test_a_larger_budget_buys_more(net, x):
    sizes = []
    for limit in (1e-4, 2e-3, 0.05):
        report = infopt.compile(net, (x,), max_error=limit, objective="size").report
        sizes.append(next(p.bytes for p in report.frontier if p.measured_error is not None))
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]


@torch.no_grad()
def test_what_hurts_most_stays(net, x):
    only = {"formats": ("int8",), "activations": ("int8",)}
    compiled = infopt.compile(net, (x,), budget=infopt.Budget(9e-3, "memory", **only))
    sites = {s.where: s for s in compiled.report.find("quantize-to-budget").sites}
    assert not sites["p_layers_2_weight"].applied
    assert sites["p_layers_2_weight"].reason.startswith("the budget is spent elsewhere: int8")
    assert any(s.applied for s in sites.values())


@torch.no_grad()
def test_latency_is_measured_and_reported(net, x):
    compiled = infopt.compile(net, (x,), max_error=0.05, objective="latency")
    points = compiled.report.frontier
    assert all(p.seconds is not None and p.seconds > 0 for p in points)
    text = str(compiled.report)
    assert "> error" in text and "(measured" in text and " ms " in text
    for site in compiled.report.find("quantize-to-budget").declined:
        assert site.reason.startswith(("does not pay", "the budget is spent elsewhere"))


@torch.no_grad()
def test_for_another_machine_times_are_estimated(net, x):
    compiled = infopt.compile(net, (x,), max_error=0.05, objective="latency", target="cpu:scalar")
    assert compiled.report.frontier


@pytest.mark.slow
@torch.no_grad()
def test_with_bf16_the_whole_error_counts(net, x):
    compiled = infopt.compile(net, (x,), max_error=0.02, objective="size", compute="bf16")
    assert relative(compiled(x), net(x)) <= 0.021


@pytest.mark.slow
@torch.no_grad()
def test_own_metric_and_samples(net, x):
    def cosine(expected, found):
        return 1 - nn.functional.cosine_similarity(expected[0], found[0]).min().item()

    budget = infopt.Budget(2e-4, "size", samples=((2 * x,), (x / 2,)), metric=cosine)
    compiled = infopt.compile(net, (x,), budget=budget)
    for given in (x, 2 * x, x / 2):
        assert cosine([net(given)], [compiled(given)]) <= 2.1e-4
    assert compiled.report.find("quantize-to-budget").applied


class Thin(nn.Module):
    """One layer of low rank, gate and up that share theirs, and one layer of full rank."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)

        def thin(*shape):
            n, k = shape
            return nn.Parameter(torch.randn(n, 8) @ torch.randn(8, k) / (8 * k) ** 0.5)

        self.thin, self.full = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.thin.weight = thin(WIDTH, WIDTH)
        self.both = thin(2 * WIDTH, WIDTH)

    def forward(self, x):
        gate, up = self.both[:WIDTH], self.both[WIDTH:]
        y = nn.functional.silu(nn.functional.linear(x, gate)) * nn.functional.linear(x, up)
        return self.full(x + torch.tanh(self.thin(y)))


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("objective", ["size", "latency"])
def test_factors_compete_with_formats(x, objective):
    net, seen = Thin().eval(), [(torch.randn(24, WIDTH),) for _ in range(9)]
    given = {"max_error": 0.02, "objective": objective, "calibration": seen}
    compiled = infopt.compile(net, (x,), **given)
    assert relative(compiled(x), net(x)) <= 0.021
    sites = {s.where: s for s in compiled.report.find("quantize-to-budget").sites}
    for site in sites.values():
        assert "rank" in site.reason, site
    if objective == "size":
        chosen = sites["p_thin_weight"]
        assert chosen.applied and chosen.reason.startswith("rank 16, int8"), chosen.reason
        # 16 (96 + 96) bytes, and 4 for every factor and sum of a row: 16 + 96 of them
        [point] = [p for p in compiled.report.frontier if p.measured_error is not None]
        only = infopt.Budget(0.02, "size", ranks=())
        others = infopt.compile(net, (x,), budget=only, calibration=seen).report
        [without] = [p for p in others.frontier if p.measured_error is not None]
        assert point.bytes < 0.6 * without.bytes
        assert not any("rank" in s.reason for s in others.find("quantize-to-budget").sites)


@pytest.mark.slow
@torch.no_grad()
def test_why_no_factors(x):
    """Both numbers: of weights where no rank saves any, of errors where none is near enough."""
    net, seen = Net().eval(), [(torch.randn(24, WIDTH),) for _ in range(9)]
    told = {}
    for ranks in (("energy-0.9999",), (0.25,)):
        budget = infopt.Budget(0.02, "size", ranks=ranks)
        report = infopt.compile(net, (x,), budget=budget, calibration=seen).report
        sites = report.find("quantize-to-budget").sites
        told[ranks] = next(s.reason for s in sites if s.where == "p_layers_0_weight")
    assert "; as factors: rank 96 does not pay: 18432 numbers for 9216" in told["energy-0.9999",]
    assert "; as factors: rank 32 alone would add " in told[0.25,]
    assert told[0.25,].endswith(", the budget is 2.0e-02")


class Normed(nn.Module):
    """A layer behind a norm of which one column is large."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.layer = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        with torch.no_grad():
            self.norm.weight[3] *= 40
            self.layer.weight[:, 3] /= 40

    def forward(self, x):
        return self.layer(self.norm(x))


@torch.no_grad()
def test_calibration_smooths_what_becomes_bytes(x):
    """The norm writes the bytes, and a form in bytes costs less of the budget."""
    net, seen = Normed().eval(), [(torch.randn(24, WIDTH),) for _ in range(9)]
    only = {"formats": ("int8",), "activations": ("int8",), "ranks": ()}
    budget = infopt.Budget(0.5, "size", **only)
    options = ({}, {"calibration": seen})
    plain, smoothed = (infopt.compile(net, (x,), budget=budget, **o) for o in options)
    errors = [relative(found(x), net(x)) for found in (plain, smoothed)]
    assert 0 < errors[1] < errors[0] / 3
    for found in (plain, smoothed):
        made = [n for n in found.graph.nodes() if n.op is packed_layer_norm]
        assert len(made) == 1 and (made[0].args[4] is not None) is (found is smoothed)
        assert found.report.find("pack-activations").applied


def test_through_torch_compile(net, x):
    torch._dynamo.reset()
    options = {"max_error": 0.02, "objective": "size"}
    with torch.no_grad():
        compiled = torch.compile(net, backend="infopt", options=options)
        assert relative(compiled(x), net(x)) <= 0.021
    assert "applied: int8" in infopt.explain(compiled, "quantize-to-budget")


def test_declines_without_samples(x):
    o = Builder()
    w = torch.randn(WIDTH, WIDTH)
    node = o.input("x", TensorType.of(x))
    out = o.linear(node, o.const("w", TensorType.of(w)))
    graph = Graph((node,), (out,), {"w": w}, stage=Stage.FUSE)
    found, report = run_pass(QuantizeToBudget(), graph)
    assert found is graph
    assert report.declined[0].reason == "there are no example inputs to measure errors on"


@torch.no_grad()
def test_unreachable(net, x):
    whole = 6 * WIDTH * WIDTH
    with pytest.raises(infopt.UnreachableBudget, match="the least size"):
        infopt.compile(net, (x,), max_error=0.5, objective="size", max_memory=whole // 3)
    with pytest.raises(infopt.UnreachableBudget):
        infopt.compile(net, (x,), max_error=1e-5, objective="size", max_memory=2 * whole)


def test_ranks_are_a_tuple():
    with pytest.raises(infopt.BadOption, match="ranks: expected 'auto' or a tuple of ranks, found"):
        infopt.Budget(0.1, ranks=0.5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"objective": "speed", "max_error": 0.1}, "expected one of latency, memory, size"),
        ({"objective": "size"}, "objective needs max_error"),
        ({"max_memory": 5}, "give an objective too"),
        ({"objective": "size", "max_error": 0.1, "weights": "int8"}, "give one"),
        ({"objective": "size", "max_error": 0.1, "passes": []}, "give one of the two"),
        (
            {"objective": "size", "max_error": 0.1, "max_memory": 0},
            "max_memory: expected bytes or None, found 0",
        ),
        ({"budget": 0.01}, "expected an infopt.Budget, found 0.01"),
        (
            {"budget": infopt.Budget(0.1, ranks=(2,))},
            "ranks of a budget: expected a share of the full rank between 0 and 1, 'energy-0.99'",
        ),
        ({"objective": "size", "max_error": 0}, "a budget needs a number above 0, found 0"),
    ],
)
def test_bad_options(net, x, options, message):
    with pytest.raises(infopt.BadOption) as error:
        infopt.compile(net, (x,), **options)
    assert message in str(error.value)


@torch.no_grad()
def test_tables_are_chosen_where_they_pay_and_the_report_says_why(net, x):
    """In fewer bytes than int4-g32 they lose less; where that is too much, int8 stays."""
    compiled = infopt.compile(net, (x,), max_error=0.04, objective="size")
    sites = {s.where: s for s in compiled.report.find("quantize-to-budget").sites}
    reasons = [s.reason for s in sites.values() if s.applied]
    assert any(r.startswith("lut4-g128, error ") for r in reasons)
    assert any(
        r.startswith("int8, error ") and " bytes, int8 9600 bytes, but adds " in r for r in reasons
    )
    assert relative(compiled(x), net(x)) <= 0.041


@pytest.mark.slow
@torch.no_grad()
def test_tables_are_not_looked_for_where_wider_formats_cost_no_more(net, x, monkeypatch):
    from infopt.codegen.weight_formats.lookup import Lookup
    from infopt.passes import quantize_to_budget

    def seconds(nodes, target, dims, inner, given):
        return {n: 1e-6 if dict(n.attrs).get("format") else 2e-6 for n in nodes}

    def fitted(*args):
        raise AssertionError("a table was looked for")

    monkeypatch.setattr(quantize_to_budget, "measured_seconds", seconds)
    monkeypatch.setattr(Lookup, "fitted", fitted)
    for formats in (("int8", "lut4"), ("int8", "lut3-g64+1%")):
        budget = infopt.Budget(0.05, formats=formats, activations=("none",))
        compiled = infopt.compile(net, (x,), budget=budget)
        applied = compiled.report.find("quantize-to-budget").applied
        assert applied
        said = f"; not tried: {formats[1]} takes 1 us, int8 1 us"
        assert all(s.reason.endswith(said) for s in applied)


@torch.no_grad()
def test_remainders_are_measured_with_entries(net, x, monkeypatch):
    """Kernels take as long as there are entries to add."""
    from infopt.codegen.weight_formats.remainder import SparseEntries
    from infopt.passes import quantize_to_budget

    seen = []
    measured = quantize_to_budget.measured_seconds

    def seconds(nodes, target, dims, inner, given):
        seen.extend(given.values())
        return measured(nodes, target, dims, inner=inner, given=given)

    monkeypatch.setattr(quantize_to_budget, "measured_seconds", seconds)
    budget = infopt.Budget(0.05, formats=("int4-g32+1%",), activations=("none",))
    infopt.compile(net, (x,), budget=budget)
    assert seen
    for entries in seen:
        assert torch.equal(entries, SparseEntries(0.01).evenly(WIDTH, WIDTH))
