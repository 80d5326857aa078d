"""fuse-activation: rewrites, declines, accuracy, idempotence, gain."""

import math

import pytest
import torch

from infopt.compiler.cost import graph_seconds
from infopt.compiler.target import Target
from infopt.compiler.testing import check_pass, graph_of, run_pass
from infopt.passes.fuse_activation import FuseActivation

X = torch.randn(3, 50) * 3
ROOT = math.sqrt(2 / math.pi)


def tanh_gelu(o, x, coefficient=0.044715, root=ROOT, power=3.0):
    inner = o.mul(o.add(x, o.mul(o.pow(x, power), coefficient)), root)
    return o.mul(o.mul(x, 0.5), o.add(o.tanh(inner), 1.0))


def factored(o, x):
    inner = o.mul(o.mul(x, 0.79788456), o.add(o.mul(o.mul(x, 0.044715), x), 1))
    return o.mul(o.mul(x, 0.5), o.add(o.tanh(inner), 1.0))


CASES = {
    "tanh": (tanh_gelu, lambda o, x: o.gelu(x, approximate="tanh")),
    "tanh, factored": (factored, lambda o, x: o.gelu(x, approximate="tanh")),
    "erf": (
        lambda o, x: o.mul(o.mul(x, 0.5), o.add(o.erf(o.div(x, math.sqrt(2))), 1.0)),
        lambda o, x: o.gelu(x),
    ),
    "erf, half at the end": (
        lambda o, x: o.mul(o.mul(x, o.add(o.erf(o.mul(x, math.sqrt(0.5))), 1.0)), 0.5),
        lambda o, x: o.gelu(x),
    ),
    "silu": (lambda o, x: o.mul(o.sigmoid(x), x), lambda o, x: o.silu(x)),
}


@pytest.mark.parametrize("case", CASES)
def test_rewrites(case: str) -> None:
    assert len(check_pass(FuseActivation(), *CASES[case], [X]).applied) == 1


DECLINED = {
    "coefficient is 0.05": lambda o, x: tanh_gelu(o, x, coefficient=0.05),
    "inner is 0.8": lambda o, x: tanh_gelu(o, x, root=0.8),
    "power is 2.0": lambda o, x: tanh_gelu(o, x, power=2.0),
    "x is two different values": lambda o, x: o.mul(o.sigmoid(x), o.sin(x)),
    "also": lambda o, x: (o.mul(x, o.sigmoid(x)), o.sigmoid(x)),
}


@pytest.mark.parametrize("reason", DECLINED)
def test_declines(reason: str) -> None:
    graph = graph_of(DECLINED[reason], [X], FuseActivation())
    result, report = run_pass(FuseActivation(), graph)
    assert result is graph
    assert any(reason in s.reason for s in report.declined), report.declined


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accuracy(dtype: torch.dtype) -> None:
    for build, _ in CASES.values():
        graph = graph_of(build, [X.to(dtype)], FuseActivation())
        _, report = run_pass(FuseActivation(), graph, [(X.to(dtype),)])
        assert report.applied


def test_idempotent() -> None:
    for build, _ in CASES.values():
        once, _ = run_pass(FuseActivation(), graph_of(build, [X], FuseActivation()))
        assert run_pass(FuseActivation(), once)[0] is once


def test_gain() -> None:
    graph = graph_of(tanh_gelu, [X], FuseActivation())
    result, report = run_pass(FuseActivation(), graph)
    assert report.gain > 0
    target = Target.detect()
    assert graph_seconds(result, target) < graph_seconds(graph, target)


def test_eight_digits_are_another_number_in_float64() -> None:
    x = X.double()
    _, report = run_pass(FuseActivation(), graph_of(factored, [x], FuseActivation()))
    assert not report.applied and "inner is 0.79788456" in report.declined[0].reason
    check_pass(FuseActivation(), *CASES["tanh"], [x])
