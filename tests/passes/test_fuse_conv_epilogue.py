"""fuse-conv-epilogue: rewrites, declines, accuracy, idempotence, gain."""

import pytest
import torch

from infopt.codegen.kernels.conv import conv_act
from infopt.compiler.cost import graph_seconds
from infopt.compiler.target import Target
from infopt.compiler.testing import check_pass, graph_of, run_pass
from infopt.passes.fuse_conv_epilogue import FuseConvEpilogue

X, W, B = torch.randn(2, 4, 9, 8), torch.randn(6, 4, 3, 3) / 6, torch.randn(6)
R = torch.randn(2, 6, 5, 8)
INPUTS = [X, W, B, R]
WINDOW = {"stride": [2, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}


def conv(o, x, w, b=None):
    return o.conv2d(x, w, b, **WINDOW)


def fused(o, x, w, b=None, r=None, **attrs):
    return o.call(conv_act, x, w, None, b, r, **WINDOW, **attrs)


ACTIVATIONS = {
    "relu": lambda o, y: o.relu(y),
    "gelu": lambda o, y: o.gelu(y),
    "gelu_tanh": lambda o, y: o.gelu(y, approximate="tanh"),
    "silu": lambda o, y: o.silu(y),
    "sigmoid": lambda o, y: o.sigmoid(y),
    "tanh": lambda o, y: o.tanh(y),
    "relu6": lambda o, y: o.hardtanh(y, 0.0, 6.0),
    "hardswish": lambda o, y: o.hardswish(y),
    "quick_gelu": lambda o, y: o.mul(y, o.sigmoid(o.mul(y, 1.702))),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_rewrites_an_activation(name):
    act = ACTIVATIONS[name]
    check_pass(
        FuseConvEpilogue(),
        lambda o, x, w, b, r: (act(o, conv(o, x, w, b)), r),
        lambda o, x, w, b, r: (fused(o, x, w, b, activation=name), r),
        INPUTS,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rewrites_a_residual_before_and_after_the_activation(dtype):
    given = [t.to(dtype) for t in INPUTS]
    check_pass(
        FuseConvEpilogue(),
        lambda o, x, w, b, r: o.relu(o.add(conv(o, x, w, b), r)),
        lambda o, x, w, b, r: fused(o, x, w, b, r, activation="relu", add_first=True),
        given,
    )
    check_pass(
        FuseConvEpilogue(),
        lambda o, x, w, b, r: o.add(r, o.relu(conv(o, x, w, b))),
        lambda o, x, w, b, r: fused(o, x, w, b, r, activation="relu"),
        given,
    )


def test_rewrites_a_scaled_convolution():
    def scaled(o, x, w, s, r):
        return o.relu(o.add(o.call(conv_act, x, w, s, s, **WINDOW), r))

    def expected(o, x, w, s, r):
        more = {"activation": "relu", "add_first": True}
        return o.call(conv_act, x, w, s, s, r, **WINDOW, **more)

    check_pass(FuseConvEpilogue(), scaled, expected, INPUTS)


def test_of_two_convolutions_that_are_added_one_takes_the_sum():
    graph = graph_of(
        lambda o, x, w, b, r: o.relu(o.add(conv(o, x, w, b), conv(o, x, w))),
        INPUTS,
        FuseConvEpilogue(),
    )
    found, report = run_pass(FuseConvEpilogue(), graph, [tuple(INPUTS)])
    assert [n.op.name for n in found.nodes()].count("conv_act") == 1
    assert report.declined[0].reason == "another convolution takes it"


DECLINED = {
    "is a result": lambda o, x, w, b, r: conv(o, x, w, b),
    "is read by aten.sin.default": lambda o, x, w, b, r: o.sin(conv(o, x, w, b)),
    "is read by aten.add.Tensor": lambda o, x, w, b, r: o.add(conv(o, x, w, b), r, alpha=2),
}


@pytest.mark.parametrize("reason", DECLINED)
def test_declines(reason):
    graph = graph_of(DECLINED[reason], INPUTS, FuseConvEpilogue())
    found, report = run_pass(FuseConvEpilogue(), graph)
    assert found is graph and report.declined[0].reason == reason


def test_declines_float64():
    graph = graph_of(
        lambda o, x, w: o.relu(conv(o, x, w)), [X.double(), W.double()], FuseConvEpilogue()
    )
    _, report = run_pass(FuseConvEpilogue(), graph)
    assert report.declined[0].reason == "the result is torch.float64"


def whole(o, x, w, b, r):
    return o.relu(o.add(conv(o, x, w, b), r))


def test_accuracy():
    graph = graph_of(whole, INPUTS, FuseConvEpilogue())
    _, report = run_pass(FuseConvEpilogue(), graph, [tuple(INPUTS)])
    assert len(report.applied) == 1


def test_idempotent():
    once, _ = run_pass(FuseConvEpilogue(), graph_of(whole, INPUTS, FuseConvEpilogue()))
    assert run_pass(FuseConvEpilogue(), once)[0] is once


def test_gain():
    graph = graph_of(whole, INPUTS, FuseConvEpilogue())
    found, _ = run_pass(FuseConvEpilogue(), graph)
    target = Target.parse("cpu:avx512")
    assert graph_seconds(found, target) < graph_seconds(graph, target)
