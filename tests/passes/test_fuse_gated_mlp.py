"""fuse-gated-mlp: rewrites, declines, accuracy, idempotence, gain."""

import pytest
import torch

from infopt.codegen.kernels.linear import gated_linear
from infopt.compiler.cost import graph_seconds
from infopt.compiler.target import Target
from infopt.compiler.testing import check_pass, graph_of, run_pass
from infopt.passes.fuse_gated_mlp import FuseGatedMlp
from tests.passes.test_fuse_linear_epilogue import ACTIVATIONS

X, G, U = torch.randn(2, 5, 32), torch.randn(48, 32) / 6, torch.randn(48, 32) / 6
B, C = torch.randn(48), torch.randn(48)
NAMES = ["silu", "gelu", "gelu_tanh", "relu", "sigmoid", "tanh"]


@pytest.mark.parametrize("name", NAMES)
def test_rewrites(name: str) -> None:
    act = ACTIVATIONS[name]
    check_pass(
        FuseGatedMlp(),
        lambda o, x, g, u: o.mul(act(o, o.linear(x, g)), o.linear(x, u)),
        lambda o, x, g, u: o.call(gated_linear, x, g, u, activation=name),
        [X, G, U],
    )
    check_pass(
        FuseGatedMlp(),
        lambda o, x, g, u, b, c: o.mul(o.linear(x, u, c), act(o, o.linear(x, g, b))),
        lambda o, x, g, u, b, c: o.call(gated_linear, x, g, u, b, c, activation=name),
        [X, G, U, B, C],
    )


def gated(o, x, g, u):
    return o.mul(o.silu(o.linear(x, g)), o.linear(x, u))


def chunked(o, x, w, b, swap=False):
    y = o.linear(x, w, b)
    first, second = o.slice(y, 2, 0, 48), o.slice(y, 2, 48, 2**63 - 1)
    return o.mul(first, o.silu(second)) if swap else o.mul(second, o.silu(first))


@pytest.mark.parametrize("swap", [False, True])
def test_rewrites_the_halves_of_one_product(swap: bool) -> None:
    def after(o, x, w, b):
        weights = [o.slice(w, 0, 0, 48), o.slice(w, 0, 48, 96)]
        biases = [o.slice(b, 0, 0, 48), o.slice(b, 0, 48, 96)]
        step = -1 if swap else 1
        return o.call(gated_linear, x, *weights[::step], *biases[::step], activation="silu")

    inputs = [X, torch.cat([G, U]), torch.cat([B, C])]
    check_pass(FuseGatedMlp(), lambda o, *a: chunked(o, *a, swap=swap), after, inputs)


def test_declines_other_parts() -> None:
    def build(o, x, w):
        y = o.linear(x, w)
        return o.mul(o.silu(o.slice(y, 2, 0, 32)), o.slice(y, 2, 16, 48))

    graph = graph_of(build, [X, G], FuseGatedMlp())
    result, report = run_pass(FuseGatedMlp(), graph)
    assert result is graph
    assert any("expected the halves" in s.reason for s in report.declined)


def shared(o, x, g, u):
    return gated(o, x, g, u), o.relu(o.linear(x, u))


DECLINED = {
    "also read by": (shared, [X, G, U]),
    "x is two different values": (
        lambda o, x, g, u: o.mul(o.silu(o.linear(x, g)), o.linear(o.sin(x), u)),
        [X, G, U],
    ),
    "gate is": (gated, [X, G, U[:1]]),
}


@pytest.mark.parametrize("reason", DECLINED)
def test_declines(reason: str) -> None:
    build, inputs = DECLINED[reason]
    graph = graph_of(build, inputs, FuseGatedMlp())
    result, report = run_pass(FuseGatedMlp(), graph)
    assert result is graph
    assert any(reason in s.reason for s in report.declined), report.declined


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accuracy(dtype: torch.dtype) -> None:
    inputs = [t.to(dtype) for t in (X, G, U)]
    _, report = run_pass(FuseGatedMlp(), graph_of(gated, inputs, FuseGatedMlp()), [tuple(inputs)])
    assert len(report.applied) == 1


def test_idempotent() -> None:
    once, _ = run_pass(FuseGatedMlp(), graph_of(gated, [X, G, U], FuseGatedMlp()))
    assert run_pass(FuseGatedMlp(), once)[0] is once


def test_gain() -> None:
    graph = graph_of(gated, [X, G, U], FuseGatedMlp())
    result, report = run_pass(FuseGatedMlp(), graph)
    target = Target.detect()
    assert graph_seconds(result, target) < graph_seconds(graph, target)
    assert report.gain > 0


@pytest.mark.parametrize(
    ("rows", "dim", "parts", "reason"),
    [
        (47, 2, (23, 23, 46), "the product has 47 features, expected an even number"),
        (48, 1, (2, 2, 4), "a slice along dim 1, expected the last"),
        (48, 2, (24, 0, 24), "slices [(0, 24), (0, 24)], expected the halves [(0, 24), (24, 48)]"),
    ],
)
def test_parts_of_one_product_that_are_no_halves(rows, dim, parts, reason) -> None:
    def build(o, x, w):
        y, (end, start, stop) = o.linear(x, w), parts
        return o.mul(o.silu(o.slice(y, dim, 0, end)), o.slice(y, dim, start, stop))

    graph = graph_of(build, [X, torch.randn(rows, 32)], FuseGatedMlp())
    result, report = run_pass(FuseGatedMlp(), graph)
    assert result is graph and reason in [s.reason for s in report.declined]
