"""Convolutions that come in two factors: merged to the same values, or left with the reason."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import infopt
from infopt.codegen.kernels.conv import conv_act
from infopt.compiler.graph import Graph, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.interpret import interpret
from infopt.compiler.testing import run_pass
from infopt.compiler.types import TensorType
from infopt.passes import merge_factors
from infopt.passes.merge_factors import MergeFactors

X = torch.randn(2, 6, 12, 11)
MERGE = {"passes": infopt.default_passes(add=["merge-factors"])}


@pytest.fixture
def free(monkeypatch):
    """Whatever can be merged pays."""
    costs = {"aten.conv1d.default": 2.0, "aten.conv2d.default": 2.0, "conv_act": 2.0}
    monkeypatch.setattr(merge_factors, "node_seconds", lambda n, *_: costs.get(n.op.name, 1.0))


def graph_of(weights, x, build):
    o = Builder()
    node = o.input("x", TensorType.of(x))
    consts = [o.const(name, TensorType.of(w)) for name, w in weights.items()]
    outputs = build(o, node, *consts)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return Graph((node,), outputs, dict(weights), stage=Stage.COMPRESS)


def convolutions(graph):
    return [n for n in graph.nodes() if "conv" in n.op.name]


def weights(*shapes, dtype=torch.float32):
    torch.manual_seed(0)
    return {f"w{i}": torch.randn(s, dtype=dtype) / 4 for i, s in enumerate(shapes)}


def convolve(o, x, weight, bias=None, **window):
    kind = "padding" if isinstance(window.get("padding"), str) else "default"
    return o.call(f"aten.conv{weight.tensor_type.rank - 2}d.{kind}", x, weight, bias, **window)


def pair(first=None, second=None):
    def build(o, x, a, b):
        return convolve(o, convolve(o, x, a, **first or {}), b, **second or {})

    return build


def reasons(build, given, x=X):
    start = graph_of(given, x, build)
    found, report = run_pass(MergeFactors(), start)
    assert found is start
    return [s.reason for s in report.declined]


def test_rewrites(free):
    """k x k then 1 x 1, 1 x 1 then k x k, k x 1 then 1 x k: windows as one convolution's."""
    cases = [
        ((3, 3), (1, 1), {"stride": [2], "padding": [1], "dilation": [2]}, {"stride": [2]}),
        ((1, 1), (3, 3), {"stride": [2]}, {"padding": [1], "dilation": (1, 2)}),
        ((3, 1), (1, 3), {"stride": (2, 1), "padding": (1, 0)}, {"padding": (0, 1)}),
    ]
    windows = [((4, 4), (1, 1), (2, 2)), ((2, 2), (2, 2), (2, 4)), ((2, 1), (1, 1), (1, 1))]
    for (a, b, first, second), window in zip(cases, windows, strict=True):
        given = weights((4, 6, *a), (8, 4, *b))
        start = graph_of(given, X, pair(first, second))
        found, report = run_pass(MergeFactors(), start, [(X,)])
        [one] = convolutions(found)
        names = ("stride", "padding", "dilation")
        assert tuple(one.attr(n) for n in names) == window
        assert list(found.consts) == ["merged_w1"] and len(report.applied) == 1
        assert found.consts["merged_w1"].shape == (8, 6, 3, 3)


def test_three_factors_become_one(free):
    """As Tucker's decomposition has them."""

    def build(o, x, a, b, c):
        return o.conv2d(o.conv2d(o.conv2d(x, a), b, padding=[1]), c)

    start = graph_of(weights((4, 6, 1, 1), (5, 4, 3, 3), (8, 5, 1, 1)), X, build)
    found, report = run_pass(MergeFactors(), start, [(X,)])
    assert len(convolutions(found)) == 1 and len(report.applied) == 2
    torch.testing.assert_close(interpret(found, [X]), interpret(start, [X]))


def test_a_norm_stays_behind(free):
    def build(o, x, a, b, inner, scale, shift):
        return o.call(
            conv_act, o.conv2d(x, a, inner), b, scale, shift, stride=(2, 1), padding=(0, 0)
        )

    given = weights((4, 6, 3, 1), (8, 4, 1, 3), (4,), (8,), (8,))
    start = graph_of(given, X, build)
    found, _ = run_pass(MergeFactors(), start, [(X,)])
    [one] = convolutions(found)
    assert one.op is conv_act and one.args[3].attr("name") == "merged_w1_bias"
    torch.testing.assert_close(interpret(found, [X]), interpret(start, [X]))


def test_declines():
    thin = weights((2, 6, 3, 3), (64, 2, 1, 1))
    [kept] = reasons(pair(), thin, torch.randn(2, 6, 64, 64))  # cheaper as it came
    assert kept.startswith("one product does not pay: one takes ")
    square, point = (8, 6, 3, 3), (8, 8, 1, 1)
    around = pair({"padding": [1]}, {"padding": [1]})
    assert reasons(around, weights(square, point)) == [
        "1 zeros lie between, where one of 3 taps sees x"
    ]
    apart = pair({"dilation": [2]})
    assert reasons(apart, weights(square, (8, 8, 2, 2))) == [
        "taps 2 and 1 apart are not of one window"
    ]
    [grouped] = reasons(pair({"groups": 6}), weights((6, 1, 3, 3), (8, 6, 1, 1)))
    assert grouped.endswith("has 6 groups")
    even = weights((8, 6, 2, 2), point)
    assert reasons(pair({"padding": "same"}), even) == ["its padding is not the same on both sides"]
    half = {name: w.bfloat16() for name, w in weights(square, point).items()}
    assert reasons(pair(), half, X.bfloat16()) == [
        "the merged weight would be rounded to torch.bfloat16"
    ]
    given = weights(square, point)
    [moving] = reasons(lambda o, x, a, b: pair()(o, x, o.relu(a), b), given)
    assert moving == "weights are aten.relu.defaults, not constants"

    def biased(o, x, a, b, inner):
        return o.conv2d(o.conv2d(x, a, inner), b, padding=[1])

    assert reasons(biased, weights((8, 6, 1, 1), (8, 8, 3, 3), (8,))) == [
        "the first has a bias, and what lies between is padded with zeros"
    ]

    def twice(o, x, a, b):
        middle = o.conv2d(x, a)
        return o.conv2d(middle, b), o.relu(middle)

    [read] = reasons(twice, given)
    assert read.endswith("is read elsewhere too")


def test_idempotent(free):
    given = weights((4, 6, 3, 3), (8, 4, 1, 1))
    found, _ = run_pass(MergeFactors(), graph_of(given, X, pair()), [(X,)])
    again, report = run_pass(MergeFactors(), found)
    assert again is found and not report.sites


def test_gain():
    """Factors of nearly full rank cost more than one convolution."""
    given = weights((8, 6, 3, 3), (8, 8, 1, 1))
    _, report = run_pass(MergeFactors(), graph_of(given, X, pair()))
    assert len(report.applied) == 1 and report.gain > 0


@st.composite
def layers(draw):
    """Two convolutions over one or two axes, with any windows."""
    rank, batch, channels = (
        draw(st.integers(1, 2)),
        draw(st.integers(1, 2)),
        draw(st.integers(1, 3)),
    )
    sizes = [draw(st.integers(1, 14)) for _ in range(rank)]
    made, width = [], channels
    for _ in range(2):
        features = draw(st.integers(1, 4))
        kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
        window = {
            "stride": [draw(st.integers(1, 3)) for _ in range(rank)],
            "padding": [draw(st.sampled_from([0, 0, 1, 2])) for _ in range(rank)],
            "dilation": [draw(st.integers(1, 2)) for _ in range(rank)],
        }
        if draw(st.integers(0, 3)) == 0:
            window |= {"stride": [1] * rank, "padding": draw(st.sampled_from(["same", "valid"]))}
        made.append(((features, width, *kernel), window, draw(st.booleans())))
        width = features
    return (batch, channels, *sizes), made


applied = 0


@settings(max_examples=150, deadline=None, derandomize=True)
@given(layers())
def check_windows(drawn):
    global applied
    shape, made = drawn
    torch.manual_seed(0)
    x, given = torch.randn(shape, dtype=torch.float64), {}
    for i, (size, _, biased) in enumerate(made):
        given[f"w{i}"] = torch.randn(size, dtype=torch.float64)
        if biased:
            given[f"b{i}"] = torch.randn(size[0], dtype=torch.float64)

    def build(o, node, *consts):
        names = dict(zip(given, consts, strict=True))
        for i, (_, window, _) in enumerate(made):
            node = convolve(o, node, names[f"w{i}"], names.get(f"b{i}"), **window)
        return node

    try:
        start = graph_of(given, x, build)
    except infopt.CannotInfer:
        assume(False)
    found, report = run_pass(MergeFactors(), start)
    applied += len(report.applied)
    assert len(report.applied) + len(report.declined) == 1
    torch.testing.assert_close(interpret(found, [x]), interpret(start, [x]), rtol=1e-12, atol=1e-12)


def test_any_windows(free):
    check_windows()
    assert applied > 30


class Adapted(nn.Module):
    """A convolution with an adapter as PEFT makes it: down in its window, up point by point."""

    def __init__(self, **window):
        super().__init__()
        torch.manual_seed(3)
        self.base = nn.Conv2d(16, 24, 3, **window)
        self.down = nn.Conv2d(16, 4, 3, bias=False, **window)
        self.up = nn.Conv2d(4, 24, 1, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x)) * 2.0


@pytest.mark.parametrize("window", [{}, {"padding": 1, "stride": 2}])
def test_adapters_are_merged_when_asked_and_may_be_exchanged(window):
    net, other = Adapted(**window).eval(), Adapted(**window).eval()
    x = torch.randn(2, 16, 12, 12)
    with torch.no_grad():
        other.up.weight.mul_(-3)
        compiled = infopt.compile(net, (x,), **MERGE)
        assert len(convolutions(compiled.graph)) == 1
        torch.testing.assert_close(compiled(x), net(x), rtol=1e-4, atol=1e-4)
        compiled.load_weights(other.state_dict())
        torch.testing.assert_close(compiled(x), other(x), rtol=1e-4, atol=1e-4)


def test_an_adapter_of_another_window_stays():
    net, x = Adapted(padding=1).eval(), torch.randn(2, 16, 12, 12)
    net.base.padding = net.base.dilation = (2, 2)
    with torch.no_grad():
        compiled = infopt.compile(net, (x,), **MERGE)
        assert len(convolutions(compiled.graph)) > 1
        torch.testing.assert_close(compiled(x), net(x), rtol=1e-4, atol=1e-4)


class Factored(nn.Module):
    """A network whose layers are pairs, with norms behind them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.layers = nn.Sequential(
            *(nn.Conv2d(6, 24, (3, 1), bias=False), nn.Conv2d(24, 12, (1, 3), bias=False)),
            *(nn.BatchNorm2d(12), nn.ReLU()),
            *(nn.Conv2d(12, 12, 1), nn.Conv2d(12, 12, 3, 2)),
        )
        self.layers[2].running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.layers(x)


def test_networks_of_pairs_in_any_layout_and_size():
    net, height = Factored().eval(), torch.export.Dim("height", min=8, max=64)
    with torch.no_grad():
        last = torch.channels_last
        for x, layout in ((X, None), (X.to(memory_format=last), None), (X, last)):
            net = net if layout is None else net.to(memory_format=layout)
            compiled = infopt.compile(net, (x,), **MERGE)
            assert len(convolutions(compiled.graph)) == 2
            want, got = net(x), compiled(x)
            assert got.stride() == want.stride()
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        compiled = infopt.compile(net, (X,), dynamic_shapes=({2: height},), **MERGE)
        for size in (8, 13, 40):
            x = torch.randn(2, 6, size, 11)
            torch.testing.assert_close(compiled(x), net(x), rtol=1e-4, atol=1e-4)
        assert len(convolutions(compiled.graph)) == 2
