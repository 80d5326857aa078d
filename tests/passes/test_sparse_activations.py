"""sparse-activations: rewrites, shared places, declines with both numbers; a decoder's steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import infopt
from infopt.codegen.kernels.sparse_linear import keep_largest
from infopt.compiler.accuracy import Exact
from infopt.compiler.errors import BadOption, ContractBroken
from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder
from infopt.compiler.interpret import interpret
from infopt.compiler.pipeline import PassContext, Pipeline, SiteLimit
from infopt.compiler.report import Report
from infopt.compiler.settings import Settings
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType
from infopt.models.decoder import SMALL, Decoder
from infopt.passes.pipelines import default_passes
from infopt.passes.sparse_activations import SparseActivations

K, N = 48, 64
SLOW = replace(Target.detect(), caches=(0, 0, 0), bandwidth=1e-3)  # so that all of it pays
torch.manual_seed(0)
X = torch.randn(1, K)
W = {name: torch.randn(N, K) / 7 for name in ("gate", "up", "lone")}
W |= {"down": torch.randn(K, N) / 8, "bias": torch.randn(N)}
HALF = SparseActivations(0.5, limit=2.0)


def graph_with(build, x=X, names=tuple(W)) -> Graph:
    o = Builder()
    node = o.input("x", TensorType.of(x))
    consts = {name: o.const(name, TensorType.of(W[name])) for name in names}
    return Graph((node,), (build(o, node, **consts),), dict(W), stage=SparseActivations.stage)


def sparse(graph: Graph, pass_=HALF, target=SLOW, samples=(), limit=None):
    report = Report()
    ctx = PassContext(target, tuple(samples), report, Settings(check=1), limit=limit)
    return Pipeline([pass_], alone=True).run(graph, ctx), report.passes[0]


def mlp(o, x, gate, up, down, lone, bias):
    y = o.call("gated_linear", x, gate, up, activation="silu")
    z = o.add(y, o.linear(x, lone, bias))
    return o.call("linear_act", z, down, None, x, activation="none")


def ops(graph: Graph, name: str) -> list:
    return [n for n in graph.nodes() if n.op.name == name]


def by_hand(x, score):
    """mlp with half of the places of each x."""

    def kept(x, *weights):
        norms = torch.cat(weights).norm(dim=0) if score == "weighted" else torch.ones(x.shape[-1])
        places = (x.abs() * norms).topk(x.shape[-1] // 2).indices
        return torch.zeros_like(x).scatter(-1, places, x.gather(-1, places))

    x0 = kept(x, W["gate"], W["up"], W["lone"])
    y = torch.nn.functional.silu(x0 @ W["gate"].T) * (x0 @ W["up"].T)
    z = y + x0 @ W["lone"].T + W["bias"]
    return kept(z, W["down"]) @ W["down"].T + x


@pytest.mark.parametrize("score", ["weighted", "magnitude"])
def test_rewrites_with_places_shared_by_all_who_read_x(score) -> None:
    graph = graph_with(mlp)
    result, entry = sparse(graph, SparseActivations(0.5, score, limit=2.0))
    told = [f"{K // 2} of {K} places are read"] * 2 + [f"{N // 2} of {N} places are read"]
    assert [s.reason for s in entry.sites] == told and all(s.gain > 0 for s in entry.applied)
    assert len(ops(result, "keep_largest")) == 2
    assert len(ops(result, "sparse_linear")) == 2 and len(ops(result, "sparse_gated_linear")) == 1
    (found,) = interpret(result, [X])
    assert Exact().accepts(by_hand(X, score), found) is None
    again, entry = sparse(result)
    assert again is result and not entry.sites


def test_sites_can_be_left_out() -> None:
    limit = SiteLimit(1)
    result, _ = sparse(graph_with(mlp), limit=limit)
    left = ops(result, "sparse_linear") + ops(result, "sparse_gated_linear")
    assert len(limit.applied) == len(left) == 1


def test_accuracy_is_held_to_the_limit() -> None:
    with pytest.raises(ContractBroken, match=r"sparse-activations promises .*rms_rel.*0\.01"):
        sparse(graph_with(mlp), SparseActivations(0.5, limit=0.01), samples=[(X,)])


def no_constant(o, x, lone, **rest):
    return o.linear(x, o.mul(lone, 2.0))


def read_elsewhere(o, x, lone, **rest):
    return o.add(o.linear(x, lone), o.sum(o.mul(lone, 2.0)))


def biased_gate(o, x, gate, up, bias, **rest):
    return o.call("gated_linear", x, gate, up, bias, bias, activation="silu")


def one(o, x, lone, **rest):
    return o.linear(x, lone)


@pytest.mark.parametrize(
    ("build", "target", "x", "reason"),
    [
        (no_constant, SLOW, X, "its weight is not a constant"),
        (read_elsewhere, SLOW, X, "its weight is also read by aten.mul.Scalar"),
        (biased_gate, SLOW, X, "its gate has a bias"),
        (one, SLOW, torch.randn(3, 3, K), "it has 9 rows at once, which together read all weights"),
        (one, Target.detect(), X, "does not pay: all weights, 12288 bytes, fit a cache of "),
        (one, replace(SLOW, bandwidth=1e3), X, "does not pay: 8.104 us, 0.01229 us as it is"),
    ],
)
def test_declines(build, target, x, reason) -> None:
    graph = graph_with(build, x)
    result, entry = sparse(graph, target=target)
    (site,) = entry.sites
    assert result is graph and not site.applied and reason in site.reason


@pytest.mark.parametrize("share", [0, 1, True, "half"])
def test_wrong_options(share) -> None:
    with pytest.raises(BadOption, match="sparse_activations: expected a share between 0 and 1"):
        infopt.compile(torch.nn.Linear(2, 2), (torch.randn(1, 2),), sparse_activations=share)
    with pytest.raises(BadOption, match="score: expected weighted or magnitude, found 'norm'"):
        SparseActivations(score="norm")


def test_steps_and_prompts_of_a_decoder_agree() -> None:
    """A step skips weights, a prompt turns them: both read the same places."""
    model = Decoder(SMALL).eval()
    passes = default_passes(add=[SparseActivations(0.5, limit=2.0)])
    lm = infopt.compile_causal_lm(model, max_length=32, target=SLOW, passes=passes)
    assert len(lm.report.find("sparse-activations").applied) == 6 * SMALL.layers
    ids = torch.randint(0, SMALL.vocabulary, (16,))
    prompt = lm.logits(ids)
    state = lm.prefill(ids[None, :1])
    steps = [state.logits[0]]
    for token in ids[1:]:
        state = lm.step(state, token[None])
        steps.append(state.logits[0])
    torch.testing.assert_close(torch.stack(steps), prompt, rtol=1e-4, atol=1e-4)
    whole = infopt.compile_causal_lm(model, max_length=32, sparse_activations=0.5)
    assert any("fit a cache" in s.reason for s in whole.report.find("sparse-activations").sites)
    assert not torch.allclose(whole.logits(ids), prompt, rtol=1e-2, atol=1e-2)


def test_zeros_of_a_row_are_kept_last() -> None:
    x = torch.tensor([[0.0, -3, 0, 1, 0]])
    assert keep_largest(x, keep=2).tolist() == [[0, -3, 0, 1, 0]]


def test_turned_weights_take_names_that_are_free():
    start = graph_with(lambda o, x, **w: o.linear(x, w["lone"]))
    start = start.with_consts({"lone_turned": torch.ones(3)})
    start = Graph(
        start.inputs,
        (*start.outputs, Builder().const("lone_turned", TensorType.of(torch.ones(3)))),
        {**W, "lone_turned": torch.ones(3)},
        stage=SparseActivations.stage,
    )
    found, _ = sparse(start)
    assert {"lone_turned", "lone_turned_"} <= set(found.consts)
    assert torch.equal(found.consts["lone_turned"], torch.ones(3))
