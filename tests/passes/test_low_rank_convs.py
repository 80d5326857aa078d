"""Convolutions whose constant weights become a narrow convolution and a product of channels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import infopt
from infopt.codegen.kernels.conv import conv_act
from infopt.compiler.graph import Graph, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.interpret import interpret
from infopt.compiler.testing import graph_of, run_pass
from infopt.compiler.types import TensorType
from infopt.passes.factor_low_rank import FactorLowRank
from infopt.passes.low_rank_convs import is_second_convolution

C, N, R = 64, 128, 16
WINDOW = {"stride": [2, 1], "padding": [1, 2], "dilation": [1, 2]}


def thin(*shape, rank=R):
    """A weight that is a matrix of that rank."""
    torch.manual_seed(1)
    n, k = shape[0], torch.Size(shape[1:]).numel()
    return (torch.randn(n, rank) @ torch.randn(rank, k) / (rank * k) ** 0.5).reshape(shape)


def graph_with(weights, x, build):
    o = Builder()
    node = o.input("x", TensorType.of(x))
    consts = [o.const(name, TensorType.of(w)) for name, w in weights.items()]
    return Graph((node,), (build(o, node, *consts),), dict(weights), stage=Stage.FUSE)


def plain(o, x, w):
    return o.conv2d(x, w, **WINDOW)


def finished(o, x, w, scale, shift, residual):
    window = {"stride": (2, 1), "padding": (1, 0, 2, 2), "dilation": (1, 2)}
    args = (x, w, scale, shift, residual)
    return o.call(conv_act, *args, **window, activation="relu", add_first=True)


def line(o, x, w, b):
    return o.conv1d(x, w, b, padding=[1])


IMAGE, LINE = torch.randn(2, C, 32, 31), torch.randn(4, C, 400)
ENDS = {"scale": torch.rand(N) + 0.5, "shift": torch.randn(N), "rest": torch.randn(2, N, 16, 31)}
CASES = {
    "window": (plain, IMAGE, {"w": thin(N, C, 3, 3)}),
    "point": (plain, IMAGE, {"w": thin(N, C, 1, 1)}),
    "what follows": (finished, IMAGE, {"w": thin(N, C, 3, 3), **ENDS}),
    "line": (line, LINE, {"w": thin(N, C, 3), "b": torch.randn(N)}),
}


@pytest.mark.parametrize("name", CASES)
def test_rewrites(name):
    build, x, weights = CASES[name]
    start = graph_with(weights, x, build)
    pass_ = FactorLowRank((("*", R / min(N, weights["w"][0].numel())),))
    found, report = run_pass(pass_, start, [(x,)])
    a, b = found.consts["w_rank16_a"], found.consts["w_rank16_b"]
    assert a.shape == (R, *weights["w"].shape[1:]) and b.flatten(1).shape == (N, R)
    torch.testing.assert_close(interpret(found, [x]), interpret(start, [x]), rtol=1e-4, atol=1e-4)
    [site] = report.applied
    assert site.reason.startswith("rank 16 of ") and site.gain > 0
    again, report = run_pass(pass_, found)
    assert again is found
    kept = ("it is one of two thin products already", "too small to pay")
    assert all(s.reason.endswith(kept) for s in report.declined) and len(report.declined) == 2


def test_accuracy():
    """What is lost is the least any matrix of that rank loses."""
    weight = thin(N, C, 3, 3) + torch.randn(N, C, 3, 3) / 200
    start = graph_with({"w": weight}, IMAGE, plain)
    found, report = run_pass(FactorLowRank((("*", R / N),)), start, [(IMAGE,)])
    a, b = found.consts["w_rank16_a"].flatten(1), found.consts["w_rank16_b"].flatten(1)
    values = torch.linalg.svdvals(weight.flatten(1).double())
    error = (weight.flatten(1) - b @ a).norm() / weight.norm()
    torch.testing.assert_close(error.double(), values[R:].norm() / values.norm())
    assert f"error {error:.2%}" in report.applied[0].reason


def test_declines():
    def reason(weights, build=plain, x=IMAGE, rank=0.25):
        start = graph_with(weights, x, build)
        found, report = run_pass(FactorLowRank((("*", rank),)), start)
        assert found is start
        return report.declined[0].reason

    def grouped(o, x, w):
        return o.conv2d(x, w, groups=2)

    assert reason({"w": torch.randn(N, C // 2, 3, 3)}, grouped) == "it has 2 groups"
    pixel = torch.randn(1, C, 1, 1)
    slower = reason({"w": torch.randn(16, C, 3, 3)}, x=pixel, rank=0.75)
    assert slower.startswith("rank 12 does not pay: two products take ")
    assert reason({"w": torch.randn(N, C, 3, 3)}, rank=0.95) == (
        "rank 122 does not pay: 85888 numbers in two factors, 73728 in one"
    )
    assert reason({"w": torch.randn(4, C, 3, 3)}) == "4 x 576 is too small to pay"
    moving = lambda o, x, w: o.conv2d(x, o.relu(w))  # noqa: E731
    assert reason({"w": torch.randn(N, C, 3, 3)}, moving) == "its weight is not a constant"


def test_pairs_that_came_thin():
    def last(a, b, between=lambda o, y: y, **more):
        def build(o, x, a, b):
            return o.conv2d(between(o, o.conv2d(x, a, **more)), b)

        shapes = (torch.randn(1, 8, 9, 9), torch.randn(a), torch.randn(b))
        return graph_of(build, shapes).outputs[0]

    assert is_second_convolution(last((2, 8, 3, 1), (8, 2, 1, 3)))
    assert is_second_convolution(last((2, 8, 1, 1), (8, 2, 3, 3)))
    assert not is_second_convolution(last((8, 8, 1, 1), (8, 8, 1, 1)))  # no fewer numbers
    assert not is_second_convolution(last((2, 8, 3, 1), (8, 2, 3, 1)))  # five taps in one
    relu = lambda o, y: o.relu(y)  # noqa: E731
    assert not is_second_convolution(last((2, 8, 3, 1), (8, 2, 1, 3), relu))


def test_a_network_and_what_applies_to_factors():
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.Conv2d(C, N, 3, padding=1), nn.BatchNorm2d(N), nn.ReLU(), nn.Conv2d(N, N, 1)
    ).eval()
    with torch.no_grad():
        net[0].weight.copy_(thin(N, C, 3, 3))
        net[3].weight.copy_(thin(N, N, 1, 1))
        want = net(IMAGE)
        exact = infopt.compile(net, (IMAGE,), low_rank={"0.weight": 0.125, "*": "energy-0.999"})
        torch.testing.assert_close(exact(IMAGE), want, rtol=1e-3, atol=1e-3)
        assert len(exact.report.find("factor-low-rank").applied) == 2
        narrow = infopt.compile(net, (IMAGE,), low_rank=0.125, compute="bf16")
        assert (narrow(IMAGE) - want).norm() < 2e-2 * want.norm()
