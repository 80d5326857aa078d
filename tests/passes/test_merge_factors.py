"""Thin products and adapters merged into one weight where that is cheaper, kept where not."""

from __future__ import annotations

import torch
from torch import nn

import infopt
from infopt.compiler.graph import Graph, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.interpret import interpret
from infopt.compiler.testing import run_pass
from infopt.compiler.types import TensorType
from infopt.passes.merge_factors import MergeFactors

K, N, R = 64, 96, 8


def constants(rank=R, dtype=torch.float32):
    torch.manual_seed(0)
    shapes = {"w": (N, K), "a": (rank, K), "b": (N, rank), "bias": (N,)}
    return {name: torch.randn(*shape).to(dtype) / 8 for name, shape in shapes.items()}


def graph_with(weights, x, build):
    o = Builder()
    node = o.input("x", TensorType.of(x))
    consts = {name: o.const(name, TensorType.of(w)) for name, w in weights.items()}
    return Graph((node,), (build(o, node, **consts),), weights, stage=Stage.COMPRESS).with_consts(
        {}
    )


def adapter(o, x, w, a, b, bias):
    return o.add(o.linear(x, w, bias), o.mul(o.linear(o.linear(x, a), b), 0.25))


def pair(o, x, w, a, b, bias):
    return o.linear(o.linear(x, a), b, bias)


def linears(graph):
    return [n for n in graph.nodes() if n.op.name == "aten.linear.default"]


def test_rewrites():
    x, weights = torch.randn(32, K), constants()
    found, report = run_pass(MergeFactors(), graph_with(weights, x, adapter), [(x,)])
    [one] = linears(found)
    assert sorted(found.consts) == ["bias", "merged_b"] and len(report.applied) == 1
    want = weights["w"] + 0.25 * weights["b"] @ weights["a"]
    torch.testing.assert_close(found.consts[one.args[1].attr("name")], want)


def test_accuracy():
    x, weights = torch.randn(32, K), constants(rank=K)
    for build in (adapter, pair):
        start = graph_with(weights, x, build)
        found, _ = run_pass(MergeFactors(), start, [(x,)])
        assert len(linears(found)) == 1
        torch.testing.assert_close(interpret(found, [x])[0], interpret(start, [x])[0])


def test_both_layers_have_biases():
    torch.manual_seed(1)
    x = torch.randn(32, K)
    given = {"a": torch.randn(K, K) / 8, "c": torch.randn(K), "b": torch.randn(N, K) / 8}
    given["d"] = torch.randn(N)

    def between(o, x, a, c, b, d):
        return o.relu(o.linear(o.linear(o.relu(x), a, c), b, d))

    start = graph_with(given, x, between)
    found, _ = run_pass(MergeFactors(), start, [(x,)])
    [one] = linears(found)
    assert one.args[2].attr("name") == "merged_b_bias"
    torch.testing.assert_close(found.consts["merged_b_bias"], given["d"] + given["b"] @ given["c"])


def test_declines():
    def reasons(build, x=None, **given):
        x = torch.randn(256, K) if x is None else x
        start = graph_with(constants(**given), x, build)
        found, report = run_pass(MergeFactors(), start)
        assert found is start
        return [s.reason for s in report.declined]

    [thin] = reasons(pair, torch.randn(1 << 14, K))  # it came factored, and that is cheaper
    assert thin.startswith("one product does not pay: one takes ")
    half = torch.randn(256, K).bfloat16()
    assert reasons(adapter, half, dtype=torch.bfloat16) == [
        "the merged weight would be rounded to torch.bfloat16"
    ]
    [twice] = reasons(lambda o, x, **w: o.add(adapter(o, x, **w), o.sum(o.linear(x, w["a"]))))
    assert twice.endswith("is read elsewhere too")

    def scaled(o, x, w, a, b, bias):
        side = o.mul(o.linear(o.linear(x, a), b), 0.25)
        return o.add(o.add(o.linear(x, w, bias), side), o.sum(side))

    assert "is read elsewhere too" in reasons(scaled, rank=2)[0]
    [moving] = reasons(lambda o, x, w, a, b, bias: adapter(o, x, w, o.relu(a), b, bias))
    assert moving == "weights are aten.relu.defaults, not constants"


def test_idempotent():
    x = torch.randn(32, K)
    found, _ = run_pass(MergeFactors(), graph_with(constants(), x, adapter), [(x,)])
    again, report = run_pass(MergeFactors(), found)
    assert again is found and not report.sites


def test_gain():
    """On request only; then it says what one product saves."""
    assert "merge-factors" not in {p.name for p in infopt.default_passes()}
    assert "merge-factors" in {p.name for p in infopt.default_passes(add=["merge-factors"])}
    x = torch.randn(32, K)
    _, report = run_pass(MergeFactors(), graph_with(constants(), x, adapter))
    assert report.gain > 0


class Adapted(nn.Module):
    """A layer as adapter libraries make it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.base = nn.Linear(K, N)
        self.down, self.up = nn.Linear(K, R, bias=False), nn.Linear(R, N, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x)) * 2.0


def test_adapters_are_merged_when_asked_and_may_be_exchanged():
    net, other, x = Adapted().eval(), Adapted().eval(), torch.randn(16, K)
    with torch.no_grad():
        other.up.weight.mul_(-3)
        compiled = infopt.compile(net, (x,), passes=infopt.default_passes(add=["merge-factors"]))
        assert len(linears(compiled.graph)) == 1
        torch.testing.assert_close(compiled(x), net(x))
        compiled.load_weights(other.state_dict())
        torch.testing.assert_close(compiled(x), other(x))
