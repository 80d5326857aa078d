"""fuse-linear-epilogue: rewrites, declines, accuracy, idempotence, gain."""

import pytest
import torch

from infopt.codegen.kernels.linear import linear_act
from infopt.compiler.cost import graph_seconds
from infopt.compiler.target import Target
from infopt.compiler.testing import check_pass, graph_of, run_pass
from infopt.passes.fuse_linear_epilogue import FuseLinearEpilogue

X, W, B, R = torch.randn(2, 5, 32), torch.randn(48, 32) / 6, torch.randn(48), torch.randn(2, 5, 48)
INPUTS = [X, W, B, R]


def fused(o, x, w, b=None, r=None, activation="none"):
    return o.call(linear_act, x, w, b, r, activation=activation)


def quick(o, y):
    return o.mul(y, o.sigmoid(o.mul(y, 1.702)))


ACTIVATIONS = {
    "relu": lambda o, y: o.relu(y),
    "gelu": lambda o, y: o.gelu(y),
    "gelu_tanh": lambda o, y: o.gelu(y, approximate="tanh"),
    "silu": lambda o, y: o.silu(y),
    "sigmoid": lambda o, y: o.sigmoid(y),
    "tanh": lambda o, y: o.tanh(y),
    "quick_gelu": quick,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_rewrites_activations(name: str, dtype: torch.dtype) -> None:
    act = ACTIVATIONS[name]
    inputs = [t.to(dtype) for t in INPUTS]
    check_pass(
        FuseLinearEpilogue(),
        lambda o, x, w, b, r: (act(o, o.linear(x, w, b)), r),
        lambda o, x, w, b, r: (fused(o, x, w, b, activation=name), r),
        inputs,
    )
    check_pass(
        FuseLinearEpilogue(),
        lambda o, x, w, b, r: o.add(r, act(o, o.linear(x, w, b))),
        lambda o, x, w, b, r: fused(o, x, w, b, r, activation=name),
        inputs,
    )


def test_rewrites_a_residual_without_bias() -> None:
    report = check_pass(
        FuseLinearEpilogue(),
        lambda o, x, w, r: o.add(o.linear(x, w), r),
        lambda o, x, w, r: fused(o, x, w, None, r),
        [X, W, R],
    )
    assert len(report.applied) == 1


def read_twice(o, x, w, b, r):
    y = o.linear(x, w, b)
    return o.relu(y), o.tanh(y)


DECLINED = {
    "is a result": lambda o, x, w, b, r: (o.linear(x, w, b), o.relu(o.linear(x, w, b))),
    "is read by aten.relu.default, aten.tanh.default twice": read_twice,
    "is read by aten.sin.default": lambda o, x, w, b, r: o.sin(o.linear(x, w, b)),
    "is read by aten.add.Tensor": lambda o, x, w, b, r: o.add(o.linear(x, w, b), r, alpha=2),
}


@pytest.mark.parametrize("reason", DECLINED)
def test_declines(reason: str) -> None:
    graph = graph_of(DECLINED[reason], INPUTS, FuseLinearEpilogue())
    result, report = run_pass(FuseLinearEpilogue(), graph)
    assert result is graph and report.declined[0].reason == reason


def test_declines_a_broadcast_residual() -> None:
    graph = graph_of(
        lambda o, x, w, b, r: o.add(o.linear(x, w, b), o.slice(r, 0, 0, 1)),
        INPUTS,
        FuseLinearEpilogue(),
    )
    assert run_pass(FuseLinearEpilogue(), graph)[0] is graph


def test_accuracy() -> None:
    graph = graph_of(
        lambda o, x, w, b, r: o.add(o.gelu(o.linear(x, w, b)), r), INPUTS, FuseLinearEpilogue()
    )
    _, report = run_pass(FuseLinearEpilogue(), graph, [tuple(INPUTS)])
    assert len(report.applied) == 1


def test_idempotent() -> None:
    graph = graph_of(lambda o, x, w, b, r: o.relu(o.linear(x, w, b)), INPUTS, FuseLinearEpilogue())
    once, _ = run_pass(FuseLinearEpilogue(), graph)
    assert run_pass(FuseLinearEpilogue(), once)[0] is once


def test_gain() -> None:
    graph = graph_of(
        lambda o, x, w, b, r: o.add(o.gelu(o.linear(x, w, b)), r), INPUTS, FuseLinearEpilogue()
    )
    result, _ = run_pass(FuseLinearEpilogue(), graph)
    target = Target.parse("cpu:avx512")
    assert graph_seconds(result, target) < graph_seconds(graph, target)
