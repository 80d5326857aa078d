"""Linear layers whose constant weights become two thin factors, where the user asked."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import infopt
from infopt.codegen.kernels.linear import gated_linear, linear_act
from infopt.compiler.graph import Graph, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.interpret import interpret
from infopt.compiler.testing import run_pass
from infopt.compiler.types import TensorType
from infopt.passes.factor_low_rank import FactorLowRank

M, K, N, R = 256, 512, 640, 64  # large enough to pay on any target


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(M, K)


def thin(n, k, rank=R, noise=0.0):
    """A matrix of that rank, and some noise."""
    return torch.randn(n, rank) @ torch.randn(rank, k) / (rank * k) ** 0.5 + noise * torch.randn(
        n, k
    )


def graph_with(weights, x, build):
    o = Builder()
    node = o.input("x", TensorType.of(x))
    consts = [o.const(name, TensorType.of(w)) for name, w in weights.items()]
    return Graph((node,), (build(o, node, *consts),), dict(weights), stage=Stage.FUSE)


def linear(o, x, w):
    return o.linear(x, w)


def relative(want, got):
    return ((got - want).norm() / want.norm()).item()


def test_rewrites(x):
    weights = {"w": thin(N, K), "bias": torch.randn(N), "res": torch.randn(M, N)}
    start = graph_with(
        weights, x, lambda o, x, w, b, r: o.call(linear_act, x, w, b, r, activation="gelu")
    )
    found, report = run_pass(FactorLowRank((("w", 0.125),)), start, [(x,)])
    [node] = [n for n in found.nodes() if n.op is linear_act]
    first, second = node.args[0], node.args[1]
    assert first.op.name == "aten.linear.default" and node.attr("activation") == "gelu"
    assert (first.args[1].shape, second.shape) == ((R, K), (N, R))
    assert (first.args[1].attr("name"), second.attr("name")) == ("w_rank64_a", "w_rank64_b")
    assert relative(interpret(start, [x])[0], interpret(found, [x])[0]) < 1e-5
    [site] = report.applied
    assert site.reason.startswith("rank 64 of 512, error 0.00%, 1310720 bytes -> 294912")
    assert site.gain > 0


@pytest.mark.parametrize("wanted", [0.25, slow("energy-0.99")])
def test_accuracy(x, wanted):
    """Plain factors are the truncated SVD's, and the error told is that of the result."""
    w = thin(N, K, noise=1e-3)
    power = torch.linalg.svdvals(w.double()).square().cumsum(0)
    rank = 128 if wanted == 0.25 else int((power < 0.99 * power[-1]).sum()) + 1
    start = graph_with({"w": w}, x, linear)
    found, report = run_pass(FactorLowRank((("*", wanted),)), start, [(x,)])
    kept = found.consts[f"w_rank{rank}_b"] @ found.consts[f"w_rank{rank}_a"]
    u, s, v = torch.linalg.svd(w.double())
    best = (u[:, :rank] * s[:rank]) @ v[:rank]
    assert relative(best.float(), kept) < 1e-4
    error = relative(w, kept)
    assert f"error {error:.2%}" in report.applied[0].reason and error > 0
    assert "rms" in report.error


def test_declines(x):
    full = {"w": torch.randn(N, K)}
    _, report = run_pass(FactorLowRank((("*", 0.75),)), graph_with(full, x, linear))
    assert report.declined[0].reason == (
        "rank 384 does not pay: 442368 numbers in two factors, 327680 in one"
    )
    _, report = run_pass(FactorLowRank((("w", "none"),)), graph_with(full, x, linear))
    assert report.declined[0].reason == "to stay as it is"
    start = graph_with(full, x, lambda o, x, w: o.linear(x, o.relu(w)))
    _, report = run_pass(FactorLowRank(), start)
    assert report.declined[0].reason == "its weight is not a constant"
    tied = graph_with(full, x, lambda o, x, w: o.add(o.linear(x, w), o.sum(w)))
    _, report = run_pass(FactorLowRank(), tied)
    assert report.declined[0].reason == "its weight is also read by aten.sum.default"
    small = {"w": torch.randn(4, K)}
    _, report = run_pass(FactorLowRank(), graph_with(small, x, linear))
    assert report.declined[0].reason == "4 x 512 is too small to pay"


def test_declines_what_is_slower():
    """One row of a small layer: starting twice costs more than half of the bytes."""
    x, weights = torch.randn(1, 96), {"w": torch.randn(64, 96)}
    found, report = run_pass(FactorLowRank(), graph_with(weights, x, linear))
    assert report.declined[0].reason.startswith("rank 16 does not pay: two products take ")
    assert report.declined[0].gain < 0 and "w" in found.consts


def test_idempotent(x):
    weights = {"w": thin(N, K), "v": thin(N, N)}
    start = graph_with(weights, x, lambda o, x, w, v: o.linear(o.relu(o.linear(x, w)), v))
    pass_ = FactorLowRank((("*", 0.125),))
    found, _ = run_pass(pass_, start)
    again, report = run_pass(pass_, found)
    assert again is found
    assert {s.reason for s in report.declined} == {"it is one of two thin products already"}


def test_gain():
    """Only permission puts it in the list, and it comes before formats."""
    assert "factor-low-rank" not in {p.name for p in infopt.default_passes()}
    names = [p.name for p in infopt.default_passes(low_rank=0.25, weights="int8")]
    assert names.index("factor-low-rank") + 1 == names.index("quantize-weights")


def test_gate_and_up_share_their_first_factor(x):
    both = thin(2 * N, K)
    weights = {"gate": both[:N].contiguous(), "up": both[N:].contiguous()}
    start = graph_with(
        weights, x, lambda o, x, w, v: o.call(gated_linear, x, w, v, None, None, activation="silu")
    )
    found, _ = run_pass(FactorLowRank((("*", 0.125),)), start, [(x,)])
    assert sorted(found.consts) == ["gate_rank64_a", "gate_rank64_gate", "gate_rank64_up"]
    assert relative(interpret(start, [x])[0], interpret(found, [x])[0]) < 1e-5


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.first, self.last = nn.Linear(K, N), nn.Linear(N, N)
        with torch.no_grad():
            self.first.weight.copy_(thin(N, K))
            self.last.weight.copy_(thin(N, N))

    def forward(self, x):
        return self.last(torch.nn.functional.gelu(self.first(x)))


@pytest.mark.parametrize("options", [slow({}), slow({"weights": "int8"}), {"compute": "bf16"}])
def test_both_doors_agree_and_options_apply_to_factors(x, options):
    torch._dynamo.reset()
    net = Net().eval()
    options = {"low_rank": {"last*": 0.1, "*": 0.125}, **options}
    with torch.no_grad():
        offline = infopt.compile(net, (x,), **options)
        online = torch.compile(net, backend="infopt", options=options)
        assert torch.equal(offline(x), online(x))
        assert relative(net(x), offline(x)) < (1e-5 if options.keys() == {"low_rank"} else 2e-2)
        told = infopt.explain(online, "factor-low-rank")
        assert "last_weight: applied, gain" in told and "rank 64 of 640, error" in told
        if "weights" in options:
            names = {k for k, v in offline.graph.consts.items() if v.dtype == torch.int8}
            assert names == {
                f"p_{w}_weight_rank64_{f}_int8_values" for w in ("first", "last") for f in "ab"
            }
        net.first.weight.mul_(2)  # noticed, and factored again
        assert relative(net(x), online(x)) < 2e-2


def test_factors_for_the_inputs_seen():
    """Inputs that vary in few directions around a mean: factors for those, the mean in the bias."""
    torch.manual_seed(5)
    net, directions, mean = nn.Linear(K, N).eval(), torch.randn(K // 16, K), torch.randn(K)

    def inputs(rows):
        return mean + torch.randn(rows, K // 16) @ directions / 4 + 0.01 * torch.randn(rows, K)

    seen, unseen = [(inputs(M),) for _ in range(3)], inputs(M)
    with torch.no_grad():
        want = net(unseen)
        with pytest.raises(infopt.ContractBroken, match="factor-low-rank promises"):
            infopt.compile(net, (unseen,), low_rank=1 / 16)
        tuned = infopt.compile(net, (unseen,), low_rank=1 / 16, calibration=seen)
    assert relative(want, tuned(unseen)) < 0.02


@pytest.mark.parametrize(
    "wrong",
    [
        0.0,
        1.0,
        1.5,
        -0.5,
        True,
        2,
        "half",
        "energy-2",
        "energy-0",
        "energy-x",
        {"*": 0},
        {"*": None},
        {3: 0.5},
    ],
)
def test_bad_ranks(x, wrong):
    with pytest.raises(infopt.BadOption, match="low_rank: expected a "):
        infopt.compile(Net().eval(), (x,), low_rank=wrong)


def test_beside_passes(x):
    with pytest.raises(infopt.BadOption, match="low_rank chooses passes"):
        infopt.compile(Net().eval(), (x,), low_rank=0.5, passes=[])
