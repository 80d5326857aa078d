"""compress-to-budget: which technique is chosen for what model, why the others are not, and where
that stands in the report. Times are estimated for another machine, or given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

import infopt
from infopt.compiler.budget import TECHNIQUES, Budget
from infopt.compiler.errors import BadOption, UnreachableBudget
from infopt.compiler.graph import Graph, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.interpret import interpret
from infopt.compiler.pipeline import PassContext, Pipeline, SiteLimit
from infopt.compiler.report import Report
from infopt.compiler.settings import Settings
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType
from infopt.models.decoder import SMALL, Decoder
from infopt.passes import compress_to_budget
from infopt.passes.compress_to_budget import CompressToBudget
from infopt.passes.fuse_linear_epilogue import FuseLinearEpilogue
from infopt.passes.narrow_compute import NarrowCompute
from infopt.passes.pipelines import default_passes
from infopt.passes.quantize_to_budget import QuantizeToBudget
from infopt.passes.techniques import LADDERS
from tests.passes.test_drop_padding import Pooled, lengths

K, N, B, T, HEADS = 64, 256, 4, 64, 2
NOTHING = {"formats": (), "ranks": ()}  # to choose from, of formats
INT8 = {"formats": ("int8",), "activations": ("none",), "ranks": ()}
ELSEWHERE = replace(Target.parse("cpu:avx2"), name="elsewhere")
# a machine that waits for its memory alone
SLOW = replace(ELSEWHERE, caches=(0, 0, 0), bandwidth=1e-3)


def graph_of(build: Callable, x: torch.Tensor, weights: dict[str, torch.Tensor]) -> Graph:
    o = Builder()
    node = o.input("x", TensorType.of(x))
    consts = {name: o.const(name, TensorType.of(w)) for name, w in weights.items()}
    out = build(o, node, **consts)
    return Graph((node,), (out,), weights, stage=Stage.FUSE).with_consts({})


def mlp_weights(alive: int = N) -> dict[str, torch.Tensor]:
    """Hidden channels from `alive` on hardly vary."""
    draw = torch.Generator().manual_seed(0)
    up = torch.randn(N, K, generator=draw) / 8
    up[alive:] *= 1e-4
    return {"up": up, "down": torch.randn(K, N, generator=draw) / 16}


def mlp(o, x, up, down):
    return o.linear(o.gelu(o.linear(x, up)), down)


def layers(o, x, up, down):
    """Three times attention without projections and a feed-forward part."""
    for _ in range(3):
        heads = o.permute(o.reshape(x, [B, T, HEADS, K // HEADS]), [0, 2, 1, 3])
        y = o.call("attention", heads, heads, heads, None, scale=0.2, causal=False)
        x = o.add(x, o.reshape(o.permute(y, [0, 2, 1, 3]), [B, T, K]))
        x = o.add(x, o.linear(o.gelu(o.linear(x, up)), down))
    return x


def rows(count: int = 32, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, K, generator=torch.Generator().manual_seed(seed))


def twins() -> torch.Tensor:
    """Sequences of which every token comes twice."""
    half = torch.randn(B, T // 2, K, generator=torch.Generator().manual_seed(2))
    return half.repeat_interleave(2, 1)


def half_zero() -> torch.Tensor:
    return rows(1) * (torch.arange(K) % 2)


def compress(graph, x, budget: Budget, target=ELSEWHERE, calibrated=True, passes=(), then=()):
    report = Report()
    seen = ([(torch.randn_like(x),) for _ in range(4)]) if calibrated else ()
    settings = Settings(check=0)
    ctx = PassContext(target, ((x,),), report, settings, calibration=tuple(seen))
    asked = CompressToBudget(QuantizeToBudget(budget, tuple(then)), tuple(passes), tuple(then))
    result = Pipeline([asked], alone=True).run(graph, ctx)
    return result, report.find("compress-to-budget"), report


def reason(entry, where: str) -> str:
    [site] = [s for s in entry.sites if s.where == where]
    return site.reason


def taken(entry) -> list[str]:
    return [s.where for s in entry.applied]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def error_of(before: Graph, after: Graph, x: torch.Tensor) -> float:
    return relative(interpret(after, [x])[0], interpret(before, [x])[0])


def weights_of(graph: Graph) -> int:
    return sum(t.numel() * t.itemsize for t in graph.consts.values())


def test_pruning_is_chosen_where_channels_hardly_vary():
    graph, x = graph_of(mlp, rows(), mlp_weights(128)), rows()
    budget = Budget(0.01, "size", techniques=("prune",), **NOTHING)
    result, entry, report = compress(graph, x, budget)
    assert taken(entry) == ["prune=0.3"] and 0 < error_of(graph, result, x) <= 0.01
    assert weights_of(result) < 0.8 * weights_of(graph)
    told = f"takes {weights_of(result)} bytes, where formats and ranks alone takes "
    assert told + f"{weights_of(graph)} bytes" in reason(entry, "prune=0.3")
    assert ", prune=0.3 are searched" in reason(entry, "prune=0.1")
    # what the technique's own pass said is in the report too, and comes before the choice
    assert report.passes[0].name == "prune-structures"
    assert report.find("prune-structures").applied


def test_formats_take_what_is_left_of_the_error():
    graph, x = graph_of(mlp, rows(), mlp_weights(128)), rows()
    result, entry, report = compress(graph, x, Budget(0.02, "size", techniques="all", **INT8))
    assert taken(entry) == ["prune=0.3"] and error_of(graph, result, x) <= 0.02
    assert len(report.find("quantize-to-budget").applied) == 2
    [point] = [p for p in report.frontier if p.measured_error is not None]
    assert point.measured_error == pytest.approx(error_of(graph, result, x), rel=1e-3)


def test_tokens_are_chosen_where_they_say_the_same():
    x = twins()
    graph = graph_of(layers, x, mlp_weights())
    budget = Budget(0.01, techniques=("tokens",), **NOTHING)
    result, entry, _ = compress(graph, x, budget)
    assert taken(entry) == ["tokens=Tokens(0.5)"] and error_of(graph, result, x) <= 0.01
    (site,) = entry.applied
    assert site.gain > 0 and "and 5% less is asked for" in site.reason
    assert any(n.op.name == "match_tokens" for n in result.nodes())


def test_sparse_activations_are_chosen_where_memory_is_slow():
    x = half_zero()
    weights = {"w": mlp_weights()["up"]}
    graph = graph_of(lambda o, x, w: o.linear(x, w), x, weights)
    budget = Budget(0.01, techniques=("sparse_activations",), **NOTHING)
    result, entry, _ = compress(graph, x, budget, SLOW)
    assert taken(entry) == ["sparse_activations=0.5"]
    assert entry.gain == pytest.approx(weights_of(graph) / 2 / 1e6, rel=0.05)
    assert error_of(graph, result, x) < 1e-6


def test_what_saves_no_bytes_does_not_pay_where_bytes_count():
    x = twins()
    budget = Budget(0.5, "size", techniques=("tokens",), **NOTHING)
    graph = graph_of(layers, x, mlp_weights())
    result, entry, _ = compress(graph, x, budget)
    assert result is graph and not entry.applied
    size = weights_of(graph)
    told = f"does not pay: {size} bytes of weights, {size} without it"
    assert reason(entry, "tokens=Tokens(0.5)") == told


def test_nothing_pays():
    """The graph stays, and every step has its reason."""
    x = rows()
    graph = graph_of(mlp, x, mlp_weights())
    result, entry, report = compress(graph, x, Budget(1e-4, "size", techniques="all", **INT8))
    assert result is graph and not entry.applied
    assert len(entry.sites) == 2 + sum(map(len, LADDERS.values()))
    assert reason(entry, "kv") == "there is no cache whose format could be chosen"
    assert "all 256 channels are worth more" in reason(entry, "prune=0.05")
    assert reason(entry, "prune=0.1").endswith(" before formats, the budget is 1.0e-04")
    assert reason(entry, "prune=0.3").startswith("not tried: prune=0.1 has an error ")
    assert reason(entry, "tokens=Tokens(0.5)") == "it has no attention"
    assert "which together read all weights" in reason(entry, "sparse_activations=0.5")
    assert [p.name for p in report.passes] == ["quantize-to-budget", "compress-to-budget"]


def test_pruning_needs_calibration():
    x = rows()
    budget = Budget(0.5, "size", techniques=("prune",), **NOTHING)
    _, entry, _ = compress(graph_of(mlp, x, mlp_weights(128)), x, budget, calibrated=False)
    assert not entry.applied
    assert "there are no calibration inputs" in reason(entry, "prune=0.2")


@pytest.mark.slow
def test_one_technique_comes_on_top_of_another():
    x = twins()
    graph = graph_of(layers, x, mlp_weights(128))
    budget = Budget(0.02, techniques=("prune", "tokens"), **NOTHING)
    result, entry, report = compress(graph, x, budget)
    first, second = taken(entry)
    assert second.endswith(f" after {first}") and error_of(graph, result, x) <= 0.02
    assert {"prune-structures", "merge-tokens"} <= {p.name for p in report.passes}
    assert second.startswith(("prune=", "tokens="))


@pytest.mark.parametrize(("times", "chosen"), [((100, 96), []), ((100, 94), ["prune=0.3"])])
def test_a_twentieth_of_the_time_is_asked_for(monkeypatch, times, chosen):
    """Of what this machine measures, on the inputs of a call whose time counts."""
    asked = []

    def whole_seconds(graphs, target, inputs):
        asked.append(inputs)
        return [t / 1e6 for t in times]

    monkeypatch.setattr(compress_to_budget, "whole_seconds", whole_seconds)
    x = rows()
    budget = Budget(0.01, techniques=("prune",), **NOTHING)
    graph = graph_of(mlp, x, mlp_weights(128))
    result, entry, _ = compress(graph, x, budget, Target.parse("native"))
    assert taken(entry) == chosen and (result is graph) is not chosen
    assert asked == [(x,)]
    told = f"takes 0.0{times[1]} ms, where formats and ranks alone takes 0.1 ms and 5% less"
    assert told in reason(entry, "prune=0.3")
    assert entry.gain == pytest.approx(6e-6 if chosen else 0)


def test_this_machine_is_measured():
    x = rows()
    graph = graph_of(mlp, x, mlp_weights(128))
    times = compress_to_budget.whole_seconds([graph, graph], Target.parse("native"), (x,))
    assert len(times) == 2 and all(t > 0 for t in times)


def test_errors_are_those_behind_all_later_passes():
    x = rows()
    graph = graph_of(mlp, x, mlp_weights())
    passes, then = (FuseLinearEpilogue(),), (NarrowCompute(),)
    budget = Budget(0.1, "size", techniques=("prune",), **NOTHING)
    _, plain, _ = compress(graph, x, budget)
    result, entry, report = compress(graph, x, budget, passes=passes, then=then)
    told = [reason(e, "formats and ranks").split(",")[0] for e in (plain, entry)]
    assert told[0] == "error 0.0e+00" and 1e-4 < float(told[1].split()[1]) < 0.02
    assert [p.name for p in report.passes][-3:-1] == ["fuse-linear-epilogue", "quantize-to-budget"]
    assert any(n.op.name == "linear_act" for n in result.nodes())
    assert not any(n.op.name.startswith("narrow") for n in result.nodes())  # that comes later


@pytest.mark.slow
def test_a_memory_that_only_pruning_reaches():
    x = rows()
    graph = graph_of(mlp, x, mlp_weights(128))
    most = weights_of(graph) * 4 // 5
    plain = Budget(0.01, "size", max_memory=most, **NOTHING | {"formats": ("fp8-e4m3",)})
    with pytest.raises(UnreachableBudget):
        compress(graph, x, plain)
    result, entry, _ = compress(graph, x, replace(plain, techniques=("prune",)))
    assert taken(entry) == ["prune=0.3"] and weights_of(result) <= most
    assert reason(entry, "formats and ranks").startswith("no choice of formats has an error of")


def test_a_memory_that_nothing_reaches():
    """What each step could do is told."""
    x = rows()
    graph = graph_of(mlp, x, mlp_weights(128))
    budget = Budget(0.01, "size", max_memory=1000, techniques=("prune", "tokens"), **INT8)
    with pytest.raises(UnreachableBudget) as error:
        compress(graph, x, budget)
    for told in ("formats and ranks: no choice", "; prune=0.3: error ", "the least size"):
        assert told in str(error.value)


def test_layers_without_a_format_count_for_the_memory():
    x = half_zero()
    graph = graph_of(lambda o, x, w: o.linear(x, w), x, {"w": mlp_weights()["up"]})
    most = weights_of(graph) - 1
    budget = Budget(0.9, max_memory=most, techniques=("sparse_activations",), **INT8)
    _, entry, _ = compress(graph, x, budget, SLOW)
    told = f"its sparse layers alone have {most + 1} bytes, {most} are allowed"
    assert told in reason(entry, "sparse_activations=0.5") and taken(entry) == ["formats and ranks"]


@pytest.mark.slow
def test_same_input_same_result_and_nothing_is_merged_twice():
    x = twins()
    graph = graph_of(layers, x, mlp_weights())
    budget = Budget(0.01, techniques=("tokens",), **NOTHING)
    first, once, _ = compress(graph, x, budget)
    _, again, _ = compress(graph, x, budget)
    assert again.sites == once.sites
    result, entry, _ = compress(first, x, budget)
    assert result is first and "merged already" in reason(entry, "tokens=Tokens(0.5)")


def test_without_examples_only_the_passes_between_run():
    x = rows()
    graph = graph_of(mlp, x, mlp_weights())
    asked = CompressToBudget(between=(FuseLinearEpilogue(),))
    report, limit = Report(), SiteLimit(0)
    result = Pipeline([asked], alone=True).run(graph, PassContext(ELSEWHERE, report=report))
    assert any(n.op.name == "linear_act" for n in result.nodes())
    (site,) = report.find("compress-to-budget").sites
    assert site.reason == "there are no example inputs to measure errors on"
    assert CompressToBudget().run(graph, PassContext(ELSEWHERE)) is graph
    ctx = PassContext(ELSEWHERE, limit=limit)  # a bisection finds sites of what it runs
    assert Pipeline([asked], alone=True).run(graph, ctx) is graph


def test_where_it_stands():
    budget = Budget(0.01, techniques="all")
    plain = [p.name for p in default_passes(budget=replace(budget, techniques=()))]
    passes = default_passes(budget=budget, compute="bf16", max_activations=1 << 20)
    [search] = [p for p in passes if isinstance(p, CompressToBudget)]
    inside = [p.name for p in search.parts]
    assert inside[0] == "keep-needed-rows" and inside[-1] == "quantize-to-budget"
    names = [p.name for p in passes if p.name not in ("narrow-compute", "slice-runs")]
    first = plain.index("keep-needed-rows")
    assert names == [*plain[:first], "compress-to-budget", *plain[first + len(inside) :]]
    assert search.then[0].name == "narrow-compute"
    assert "slice-runs" not in [p.name for p in search.then]
    assert search.formats.budget is budget
    left = [p.name for p in default_passes(budget=budget, remove=["compress-to-budget"])]
    assert left == plain


@pytest.mark.parametrize("named", ["prune", ("prunes",), ["prune"], ("prune", 3)])
def test_techniques_have_names(named):
    with pytest.raises(BadOption, match="techniques: expected 'all' or a tuple of prune, tokens"):
        Budget(0.1, techniques=named)
    assert Budget(0.1, techniques="all").techniques == TECHNIQUES == (*LADDERS, "kv")


@pytest.mark.parametrize(
    "given", [{"prune": 0.2}, {"tokens": infopt.Tokens(0.5)}, {"sparse_activations": 0.5}]
)
def test_a_share_by_hand_leaves_nothing_to_choose(given):
    (name,) = given
    with pytest.raises(BadOption, match=f"{name} names a share and the budget chooses one"):
        infopt.compile(
            nn.Linear(4, 4), (torch.ones(4),), budget=Budget(1, techniques="all"), **given
        )


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(K, N, bias=False), nn.Linear(N, K, bias=False)
        with torch.no_grad():
            for name, weight in mlp_weights(128).items():
                getattr(self, name).weight.copy_(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(nn.functional.gelu(self.up(x)))


@pytest.mark.slow
@torch.no_grad()
def test_through_the_front_door():
    net, x, seen = Mlp().eval(), rows(), [(rows(seed=s),) for s in range(3, 7)]
    budget = Budget(0.02, "size", techniques=("prune",), **INT8)
    compiled = infopt.compile(net, (x,), budget=budget, calibration=seen)
    assert relative(compiled(x), net(x)) <= 0.021
    assert "prune=0.3: applied" in infopt.explain(compiled, "compress-to-budget")
    assert "int8" in infopt.explain(compiled, "quantize-to-budget")


@torch.no_grad()
def test_through_torch_compile():
    """Calibration inputs are a module's, so pruning is declined there."""
    torch._dynamo.reset()
    net, x = Mlp().eval(), rows()
    options = {"budget": Budget(0.02, "size", techniques="all", **INT8)}
    compiled = torch.compile(net, backend="infopt", options=options)
    assert relative(compiled(x), net(x)) <= 0.021
    told = infopt.explain(compiled, "compress-to-budget")
    assert "formats and ranks: applied" in told and "no calibration inputs" in told


@pytest.mark.slow
@torch.no_grad()
def test_a_decoder_and_the_texts_that_judge_it(monkeypatch):
    monkeypatch.setitem(LADDERS, "prune", (0.1,))
    torch.manual_seed(0)
    model = Decoder(SMALL).eval()
    texts = [(torch.randint(0, SMALL.vocabulary, (1, 24)),) for _ in range(2)]
    budget = Budget(0.1, "size", samples=tuple(texts[:1]), techniques=("prune",), **NOTHING)
    lm = infopt.compile_causal_lm(model, max_length=64, budget=budget, calibration=texts[1:])
    told = infopt.explain(lm.program, "compress-to-budget")
    assert "prune=0.1: applied" in told, told
    (ids,) = texts[0]
    assert relative(lm.logits(ids)[None], model(ids)) <= 0.11
    with pytest.raises(BadOption, match=r"samples\[0\]: expected ids int64"):
        infopt.compile_causal_lm(
            model, max_length=64, budget=replace(budget, samples=((torch.ones(1, 3),),))
        )


def test_passes_that_look_at_examples_find_them() -> None:
    """Padding is dropped in the search as without it."""
    torch.manual_seed(0)
    net, ids = Pooled().eval(), torch.randint(0, 50, (8, 64))
    mask = lengths(5, 64, 9, 12, 3, 7, 11, 20)
    found = {}
    for techniques in ((), ("sparse_activations",)):
        budget = Budget(0.02, "size", **INT8, techniques=techniques)
        with torch.no_grad():
            found[techniques] = infopt.compile(net, (ids, mask), budget=budget)
    plain, searched = (made.report for made in found.values())
    assert searched.find("drop-padding").applied and searched.memory == plain.memory
