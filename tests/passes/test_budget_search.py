"""What the search of quantize-to-budget makes of errors and times that are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import infopt
from infopt.codegen.weight_formats.weight_format import weight_format
from infopt.compiler.budget import Budget
from infopt.compiler.cost import node_seconds
from infopt.compiler.errors import UnreachableBudget
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.pipeline import PassContext, Pipeline
from infopt.compiler.report import PassReport, Report
from infopt.compiler.settings import Settings
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType
from infopt.passes import quantize_to_budget
from infopt.passes.narrow_compute import NarrowCompute
from infopt.passes.quantize_to_budget import QuantizeToBudget

WIDTH = 96
BYTES = {f: weight_format(f).bytes(WIDTH, WIDTH) for f in ("int8", "int4-g32")}
BYTES["as it is"] = 4 * WIDTH * WIDTH
NO_RANKS = {"formats": ("int8",), "activations": ("none",)}
INT8 = {**NO_RANKS, "ranks": ()}


def chain(count: int, width: int = WIDTH, rank: int = WIDTH) -> Graph:
    """count linear layers w0, w1, ... one after another, whose weights have a rank."""
    o, generator = Builder(), torch.Generator().manual_seed(0)
    x = node = o.input("x", TensorType.dense((8, width), torch.float32))
    consts = {}
    for i in range(count):
        parts = (
            torch.randn(*shape, generator=generator) for shape in ((width, rank), (rank, width))
        )
        consts[f"w{i}"] = next(parts) @ next(parts) / (rank * width) ** 0.5
        node = o.linear(node, o.const(f"w{i}", TensorType.of(consts[f"w{i}"])))
    return Graph((x,), (node,), consts, stage=Stage.FUSE)


def name_of(node: Node) -> str:
    """What a form is called, from its node."""
    format = dict(node.attrs).get("format")
    if format is None and "rank" in node.args[1].attr("name"):
        return f"rank {node.args[0].shape[-1]}"
    return format or "as it is"


def search(
    graph: Graph, budget: Budget, samples: int = 1, target: str = "native"
) -> tuple[Graph, PassReport, Report]:
    given = tuple((torch.randn(8, WIDTH),) for _ in range(samples))
    report = Report()
    ctx = PassContext(Target.parse(target), given, report, Settings(check=0))
    return (
        Pipeline([QuantizeToBudget(budget)], alone=True).run(graph, ctx),
        report.passes[0],
        report,
    )


def right(expected: object, found: object) -> float:
    """A metric to which everything is the same."""
    return 0.0


@pytest.fixture
def errors(monkeypatch) -> Callable:
    """errors(f): a form alone moves the results by f(layer, form, sample)."""

    def use(error: Callable[[str, Node, int], float]) -> None:
        def relative_errors(graph, sample, variants, tensors, probes, seed):
            return {
                node: [error(str(node.args[1].attr("name")), v, seed) for v in found]
                for node, found in variants.items()
            }

        monkeypatch.setattr(quantize_to_budget, "relative_errors", relative_errors)

    return use


@pytest.fixture
def seconds(monkeypatch) -> Callable:
    """seconds(f): a kernel takes f(node)."""

    def use(cost: Callable[[Node], float]) -> None:
        def measured(nodes, target, dims, inner, given):
            return {n: cost(n) for n in nodes}

        monkeypatch.setattr(quantize_to_budget, "measured_seconds", measured)

    return use


def chosen(report: Report):
    [point] = [p for p in report.frontier if p.measured_error is not None]
    return point


def reason(report: PassReport, layer: str = "w0") -> str:
    [site] = [s for s in report.sites if s.where == layer]
    return site.reason


def test_errors_of_samples_and_layers_add_in_squares(errors):
    errors(lambda layer, form, sample: (3e-3, 4e-3)[sample])
    _, _, report = search(chain(2), Budget(0.5, "size", **INT8), samples=2)
    # of a layer the root of the mean square, (12.5)^0.5 1e-3; of the two the root of their sum
    assert chosen(report).predicted_error == pytest.approx(5e-3)


def test_a_point_counts_layers_and_bytes(errors):
    errors(lambda layer, form, sample: 1.0 if layer.startswith("w1") else 1e-3)
    found, passed, report = search(chain(3), Budget(0.5, "size", **INT8))
    assert [s.applied for s in passed.sites] == [True, False, True]
    point = chosen(report)
    assert point.formats == {"int8": 2, "as it is": 1} and point.seconds is None
    assert point.bytes == 2 * BYTES["int8"] + BYTES["as it is"]
    assert sorted(found.consts) == sorted(
        ["w1", *(f"w{i}_int8_{part}" for i in (0, 2) for part in ("values", "scales", "sums"))]
    )
    assert reason(passed, "w1") == "the budget is spent elsewhere: int8 would add 1.0e+00"


def test_points_are_sorted_and_go_both_ways(errors):
    """What an eighth and what eight times of the budget would buy."""
    errors(lambda layer, form, sample: {"w0": 1e-3, "w1": 4e-3, "w2": 5e-2}[layer[:2]])
    _, _, report = search(chain(3), Budget(0.02, "size", **INT8))
    counts = [p.formats.get("int8", 0) for p in report.frontier]
    assert counts == [0, 1, 2] and chosen(report) is report.frontier[2]
    errors(lambda layer, form, sample: {"w0": 1e-3, "w1": 4e-3, "w2": 3e-2}[layer[:2]])
    _, _, report = search(chain(3), Budget(0.02, "size", **INT8))
    counts = [p.formats.get("int8", 0) for p in report.frontier]
    assert counts == [0, 1, 2, 3] and chosen(report) is report.frontier[2]


def test_points_keep_to_the_memory(errors):
    """Less error than the memory allows is no point."""
    errors(lambda layer, form, sample: 4e-3 if layer.startswith("w1") else 1e-3)
    most = BYTES["as it is"] + BYTES["int8"]
    for memory, least in ((None, [{"as it is": 2}]), (most, [])):
        _, _, report = search(chain(2), Budget(0.5, "size", max_memory=memory, **INT8))
        found = [p.formats for p in report.frontier]
        assert found == [*least, {"as it is": 1, "int8": 1}, {"int8": 2}]


def test_the_gain_is_seconds_where_time_is_asked_for(errors, seconds):
    errors(lambda layer, form, sample: 1e-3)
    seconds(lambda node: 3e-6 if name_of(node) == "as it is" else 1e-6)
    _, passed, report = search(chain(2), Budget(0.5, **INT8))
    assert [s.gain for s in passed.applied] == pytest.approx([2e-6] * 2)
    assert chosen(report).seconds == pytest.approx(2e-6)
    _, passed, _ = search(chain(2), Budget(0.5, "size", **INT8))
    assert [s.gain for s in passed.applied] == [None, None]


@pytest.mark.parametrize("cost", [2e-6, 3e-6])
def test_what_is_no_faster_does_not_pay(errors, seconds, cost):
    errors(lambda layer, form, sample: 1e-3)
    seconds(lambda node: 2e-6 if name_of(node) == "as it is" else cost)
    start = chain(1)
    found, passed, _ = search(start, Budget(0.5, **INT8))
    assert found is start and passed.declined[0].gain is None
    assert reason(passed) == f"does not pay: int8 takes {cost * 1e6:g} us, as it is 2 us"


@pytest.mark.parametrize(("cost", "tried"), [(0.94e-6, True), (0.96e-6, False)])
def test_a_table_is_looked_for_where_it_gains_a_twentieth(errors, seconds, cost, tried):
    errors(lambda layer, form, sample: 1e-3)
    seconds(lambda n: {"as it is": 2e-6, "int8": 1e-6, "lut4": cost}[name_of(n)])
    budget = Budget(0.5, formats=("int8", "lut4"), activations=("none",), ranks=())
    _, passed, _ = search(chain(1), budget)
    assert reason(passed).startswith("lut4, error" if tried else "int8, error")
    assert ("not tried: lut4 takes 0.96 us, int8 1 us" in reason(passed)) is not tried


def test_another_machine_is_not_measured(errors, seconds):
    def never(node):
        raise AssertionError("measured")

    errors(lambda layer, form, sample: 1e-3)
    seconds(never)
    budget = Budget(0.5, formats=(), ranks=(0.1,))
    found, _, report = search(chain(1, rank=8), budget, target="cpu:scalar")
    products = [n for n in found.nodes() if n.op.name == "aten.linear.default"]
    target = Target.parse("cpu:scalar")
    assert len(products) == 2  # both count
    taken = sum(node_seconds(n, target, ()) for n in products)
    assert chosen(report).seconds == pytest.approx(taken)


def test_why_factors_are_not_taken(errors, seconds):
    """What they would take and add, where they do not pay as much as a format."""
    errors(lambda layer, form, sample: 2e-3 if name_of(form).startswith("rank") else 1e-3)
    times = {"as it is": 9e-6, "int8": 2e-6, "rank 32": 5e-6}
    seconds(lambda n: times[name_of(n)] * (4 if n.args[0].op.name == "quantized_linear" else 1))
    _, passed, _ = search(chain(1), Budget(0.5, ranks=(0.25,), **NO_RANKS))
    assert reason(passed).startswith("int8, error 1.0e-03")
    told = "; as factors: rank 32 would take 5 us and add 2.0e-03, this takes 2 us"
    assert reason(passed).endswith(told)


def test_factors_that_are_taken_need_no_reason(errors):
    errors(lambda layer, form, sample: 1e-3)
    given = Budget(0.5, "size", formats=(), ranks=(0.25,))
    _, passed, report = search(chain(1, rank=32), given)
    assert reason(passed) == "rank 32, error 1.0e-03 of the results'"
    assert chosen(report).bytes == 32 * (WIDTH + WIDTH) * 4


@pytest.mark.parametrize(("error", "near"), [(0.19, True), (0.21, False)])
def test_factors_that_alone_take_twice_the_budget_are_none(errors, error, near):
    errors(lambda layer, form, sample: error)
    budget = Budget(0.1, "size", formats=(), ranks=(0.25,))
    start = chain(1)
    found, passed, report = search(start, budget)
    assert found is start
    if near:
        assert reason(passed).startswith("the budget is spent elsewhere: rank 32 would add 1.9e-01")
    else:
        told = "rank 32 alone would add 2.1e-01, the budget is 1.0e-01"
        assert [(s.applied, s.reason) for s in passed.sites] == [(False, told)]
        assert report.frontier == []


@pytest.mark.parametrize(("share", "rank"), [(0.1, 16), (0.17, 16), (0.18, 32), (0.4, None)])
def test_ranks_are_whole_vectors_that_save_numbers(errors, share, rank):
    errors(lambda layer, form, sample: 1e-3)
    _, passed, _ = search(chain(1, rank=8), Budget(0.5, "size", ranks=(share,), **NO_RANKS))
    if rank is None:  # as many numbers as there were
        assert reason(passed).endswith("; as factors: rank 48 does not pay: 9216 numbers for 9216")
    else:
        assert reason(passed).startswith(f"rank {rank}, int8, error")


def test_factors_come_in_formats_of_8_bits(errors):
    seen = set()

    def error(layer, form, sample):
        inner = form.args[0]
        seen.add((name_of(form), inner.op.name.startswith("quantized")))
        return 1e-3

    errors(error)
    formats = ("int8", "int4-g32")
    budget = Budget(0.5, "size", formats=formats, activations=("none",), ranks=(0.25,))
    search(chain(1), budget)
    plain = {("int8", False), ("int4-g32", False), ("rank 32", False)}
    assert seen == plain | {("int8", True)}


def test_factors_without_a_kernel_for_their_format(errors):
    errors(lambda layer, form, sample: 1e-3)
    only = {"formats": ("fp8-e4m3",), "activations": ("int8",), "ranks": (0.25,)}
    _, passed, _ = search(chain(1, rank=8), Budget(0.5, "size", **only))
    assert reason(passed) == "rank 32, error 1.0e-03 of the results'"


def test_why_a_layer_has_no_factors(errors):
    o, start = Builder(), chain(1)
    (y,) = start.outputs
    start = Graph(start.inputs, (o.add(y, o.sum(y.args[1])),), start.consts, stage=Stage.FUSE)
    errors(lambda layer, form, sample: 1e-3)
    _, passed, _ = search(start, Budget(0.5, "size", ranks=(0.25,), **NO_RANKS))
    assert "; as factors: its weight is also read by aten.sum" in reason(passed)


def test_layers_that_are_too_small():
    start = chain(2, 16)
    report = Report()
    ctx = PassContext(Target.detect(), ((torch.randn(8, 16),),), report, Settings(check=0))
    found = Pipeline([QuantizeToBudget(Budget(0.5, "size"))], alone=True).run(start, ctx)
    assert found is start and report.frontier == []
    told = [(s.where, s.applied, s.reason) for s in report.passes[0].sites]
    small = "16 x 16 is too small to pay"
    assert told == [("w0", False, small), ("w1", False, small)]


def test_what_stays_is_counted_as_it_will_be(errors):
    """In bf16, where a later pass makes it so."""
    errors(lambda layer, form, sample: 1.0)
    report = Report()
    ctx = PassContext(Target.detect(), ((torch.randn(8, WIDTH),),), report, Settings(check=0))
    options = QuantizeToBudget(Budget(0.1, "size", **INT8), (NarrowCompute(),))
    Pipeline([options], alone=True).run(chain(1), ctx)
    assert chosen(report).bytes == BYTES["as it is"] // 2


def test_the_worst_sample_counts(errors):
    """A metric that only the second sample displeases."""
    errors(lambda layer, form, sample: 1e-3)
    asked = []

    def metric(expected, found):
        asked.append(expected[0])
        second = not torch.equal(expected[0], asked[0])
        return 1.0 if second and not torch.equal(expected[0], found[0]) else 0.0

    _, passed, _ = search(chain(3), Budget(0.1, "size", metric=metric, **INT8), samples=2)
    assert not passed.applied


def test_a_metric_that_nothing_pleases(errors):
    """Some tries, then the layers stay."""
    asked = []

    def never(expected, found):
        asked.append(1)
        return 1.0

    errors(lambda layer, form, sample: 1e-3)
    start = chain(2)
    found, passed, report = search(start, Budget(1e-3, "size", metric=never, **INT8))
    assert found is start and not passed.applied and len(asked) == 8
    assert chosen(report).formats == {"as it is": 2} and chosen(report).measured_error == 0


def test_a_memory_that_needs_more_error(errors):
    """Where predictions were too good, the error that was found is told."""
    errors(lambda layer, form, sample: 1e-12)
    told = r"weights of 9600 bytes with an error of at most 0.001: the nearest .* error of 0.00\d+$"
    with pytest.raises(infopt.UnreachableBudget, match=told):
        search(chain(1), Budget(1e-3, "size", max_memory=BYTES["int8"], **INT8))


def test_a_metric_of_its_own_scale(errors):
    """Predictions only say what comes first: the tries go to what the metric allows."""
    errors(lambda layer, form, sample: 1e-3)

    def changed(expected, found):
        return float((expected[0] - found[0]).norm() / expected[0].norm())

    plain = search(chain(4), Budget(1e-9, "size", metric=changed, **INT8))
    assert not plain[1].applied
    some = search(chain(4), Budget(0.5, "size", metric=changed, **INT8))
    assert len(some[1].applied) >= 3


@pytest.mark.parametrize("layers", [1, 3])
def test_a_metric_that_everything_pleases_gets_the_smallest(layers):
    _, passed, _ = search(chain(layers), Budget(0.5, "size", metric=right, **INT8))
    assert len(passed.applied) == layers


def test_a_limit_of_bytes_beside_a_metric():
    both = Budget(0.5, "size", metric=right, max_memory=2 * BYTES["int8"], **INT8)
    assert len(search(chain(2), both)[1].applied) == 2
    with pytest.raises(UnreachableBudget, match=f"{2 * BYTES['int8'] - 1} bytes"):
        search(chain(2), replace(both, max_memory=2 * BYTES["int8"] - 1))


def test_a_limit_of_bytes_that_a_metric_forbids():
    """The number told is that of the metric."""

    def changed(expected, found):
        return 0.0 if torch.equal(expected[0], found[0]) else 0.75

    budget = Budget(0.5, "size", metric=changed, max_memory=2 * BYTES["int8"], **INT8)
    with pytest.raises(UnreachableBudget, match=r"the nearest choice has an error of 0\.75"):
        search(chain(2), budget)
