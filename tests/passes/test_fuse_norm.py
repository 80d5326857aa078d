"""fuse-norm: rewrites, declines, accuracy, idempotence, gain."""

import pytest
import torch

from infopt.codegen.kernels.rms_norm import rms_norm
from infopt.compiler.cost import graph_seconds
from infopt.compiler.target import Target
from infopt.compiler.testing import check_pass, graph_of, run_pass
from infopt.passes.fuse_norm import FuseNorm

X, W, B = torch.randn(2, 5, 64), torch.rand(64) + 0.5, torch.randn(64)
HALF = [X.bfloat16(), W.bfloat16()]
F32, BF16 = torch.float32, torch.bfloat16


def to(o, x, dtype):
    return o.call("aten.to.dtype", x, dtype)


def normed(o, x, eps=1e-5):
    return o.mul(x, o.rsqrt(o.add(o.mean(o.pow(x, 2), [-1], True), eps)))


def rms(o, x, w=None, eps=1e-5, offset=0.0, cast_first=False):
    return o.call(rms_norm, x, w, eps=eps, offset=offset, cast_first=cast_first)


def t5(o, x, w):
    wide = to(o, x, F32)
    root = o.rsqrt(o.add(o.mean(o.pow(wide, 2), [-1], True), 1e-6))
    return o.mul(w, to(o, o.mul(x, root), BF16))


def layer_norm(o, x, *affine, cast=None):
    y = x if cast is None else to(o, x, cast)
    centered = o.sub(y, o.mean(y, [-1], True))
    value = o.div(centered, o.sqrt(o.add(o.mean(o.pow(centered, 2), [-1], True), 1e-7)))
    if affine:
        value = o.add(o.mul(affine[0], value), affine[1])
    return value


CASES = {
    "no weight": (normed, rms, [X]),
    "weight": (lambda o, x, w: o.mul(w, normed(o, x)), lambda o, x, w: rms(o, x, w), [X, W]),
    "squared by itself": (
        lambda o, x: o.mul(x, o.rsqrt(o.add(o.mean(o.mul(x, x), [2], True), 1e-6))),
        lambda o, x: rms(o, x, eps=1e-6),
        [X],
    ),
    "divided by the root": (
        lambda o, x: o.div(x, o.sqrt(o.add(o.mean(o.pow(x, 2), [-1], True), 1e-6))),
        lambda o, x: rms(o, x, eps=1e-6),
        [X],
    ),
    "llama in half precision": (
        lambda o, x, w: o.mul(w, to(o, normed(o, to(o, x, F32)), BF16)),
        lambda o, x, w: rms(o, x, w, cast_first=True),
        HALF,
    ),
    "gemma in half precision": (
        lambda o, x, w: to(o, o.mul(normed(o, to(o, x, F32)), o.add(to(o, w, F32), 1.0)), BF16),
        lambda o, x, w: rms(o, x, w, offset=1.0),
        HALF,
    ),
    "gemma in float32": (
        lambda o, x, w: o.mul(normed(o, x), o.add(w, 1.0)),
        lambda o, x, w: rms(o, x, w, offset=1.0),
        [X, W],
    ),
    "t5 in half precision": (t5, lambda o, x, w: rms(o, x, w, eps=1e-6, cast_first=True), HALF),
    "layer norm": (
        lambda o, x, w, b: layer_norm(o, x, w, b),
        lambda o, x, w, b: o.layer_norm(x, [64], w, b, 1e-7),
        [X, W, B],
    ),
    "layer norm without weights": (
        lambda o, x: layer_norm(o, x),
        lambda o, x: o.layer_norm(x, [64], None, None, 1e-7),
        [X],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_rewrites(case: str) -> None:
    """The values are measured on the inputs as well, in the dtype of the case."""
    before, after, inputs = CASES[case]
    assert len(check_pass(FuseNorm(), before, after, inputs).applied) == 1


def read_mean(o, x):
    mean = o.mean(o.pow(x, 2), [-1], True)
    return o.mul(x, o.rsqrt(o.add(mean, 1e-5))), o.sum(mean)


DECLINED = {
    "read 2 times": (read_mean, [X]),
    "expected the last dim": (
        lambda o, x: o.mul(x, o.rsqrt(o.add(o.mean(o.pow(x, 2), [1], True), 1e-5))),
        [X],
    ),
    "another value": (
        lambda o, x, y: o.mul(y, o.rsqrt(o.add(o.mean(o.pow(x, 2), [-1], True), 1e-5))),
        [X, X + 1],
    ),
    "expected aten.add.Scalar": (lambda o, x: o.rsqrt(o.mean(o.pow(x, 2), [-1], True)), [X]),
    "eps is": (
        lambda o, x: o.mul(x, o.rsqrt(o.add(o.mean(o.pow(x, 2), [-1], True), 1e-5, alpha=2))),
        [X],
    ),
    "to the power -0.25": (
        lambda o, x: o.mul(x, o.pow(o.add(o.mean(o.pow(x, 2), [-1], True), 1e-5), -0.25)),
        [X],
    ),
    "the mean of torch.float32 is torch.float64": (
        lambda o, x: o.mul(
            to(o, x, torch.float64),
            o.rsqrt(o.add(o.mean(o.pow(x, 2), [-1], True, dtype=torch.float64), 1e-5)),
        ),
        [X],
    ),
    "not divided by": (
        lambda o, x: o.div(o.sqrt(o.add(o.mean(o.pow(x, 2), [-1], True), 1e-5)), x),
        [X],
    ),
}


@pytest.mark.parametrize("reason", DECLINED)
def test_declines(reason: str) -> None:
    build, inputs = DECLINED[reason]
    graph = graph_of(build, inputs, FuseNorm())
    result, report = run_pass(FuseNorm(), graph)
    assert result is graph and reason in report.declined[0].reason


def test_declines_rows_of_one_value() -> None:
    start = graph_of(layer_norm, [X[..., :1].contiguous()], FuseNorm())
    found, report = run_pass(FuseNorm(), start)
    assert found is start and report.declined[0].reason.startswith("rows of one value")


def test_accuracy_of_large_common_values() -> None:
    inputs = [X + 100.0, W]
    graph = graph_of(CASES["weight"][0], inputs, FuseNorm())
    _, report = run_pass(FuseNorm(), graph, [tuple(inputs)])
    assert report.applied


def test_idempotent() -> None:
    for before, _, inputs in CASES.values():
        once, _ = run_pass(FuseNorm(), graph_of(before, inputs, FuseNorm()))
        assert run_pass(FuseNorm(), once)[0] is once


def test_gain() -> None:
    graph = graph_of(CASES["weight"][0], [X, W], FuseNorm())
    result, _ = run_pass(FuseNorm(), graph)
    target = Target.parse("cpu:avx2")
    assert graph_seconds(result, target) < graph_seconds(graph, target)
