"""fuse-add-norm: rewrites, declines, accuracy, idempotence, gain."""

import pytest
import torch

from infopt.codegen.kernels.layer_norm import add_layer_norm
from infopt.codegen.kernels.rms_norm import add_rms_norm, rms_norm
from infopt.compiler.cost import graph_seconds
from infopt.compiler.target import Target
from infopt.compiler.testing import check_pass, graph_of, run_pass
from infopt.passes.fuse_add_norm import FuseAddNorm

X, R, W, B = torch.randn(2, 5, 32), torch.randn(2, 5, 32), torch.rand(32) + 0.5, torch.randn(32)
INPUTS = [X, R, W, B]
RMS = {"eps": 1e-6, "offset": 0.0, "cast_first": True}


def layer(o, x, r, w, b):
    return o.layer_norm(o.add(x, r), [32], w, b, 1e-5)


def both(o, x, r, w, b):
    """Before the norm there is the sum that the next block adds to."""
    return layer(o, x, r, w, b), o.relu(o.add(x, r))


def both_fused(o, x, r, w, b):
    made = o.call(add_layer_norm, x, r, w, b, eps=1e-5)
    return o.getitem(made, 0), o.relu(o.getitem(made, 1))


CASES = {
    "layer norm": (layer, lambda o, *a: o.getitem(o.call(add_layer_norm, *a, eps=1e-5), 0)),
    "the sum is read too": (both, both_fused),
    "rms norm": (
        lambda o, x, r, w, b: o.call(rms_norm, o.add(x, r), w, **RMS),
        lambda o, x, r, w, b: o.getitem(o.call(add_rms_norm, x, r, w, **RMS), 0),
    ),
    "one sum after another": (
        lambda o, x, r, w, b: layer(o, o.add(layer(o, x, r, w, b), r), r, w, b),
        lambda o, x, r, w, b: o.getitem(
            o.call(
                add_layer_norm,
                o.add(o.getitem(o.call(add_layer_norm, x, r, w, b, eps=1e-5), 0), r),
                r, w, b, eps=1e-5,
            ),
            0,
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_rewrites(case: str, dtype: torch.dtype) -> None:
    before, after = CASES[case]
    assert check_pass(FuseAddNorm(), before, after, [t.to(dtype) for t in INPUTS]).applied


DECLINED = {
    "normalises input": lambda o, x, r, w, b: o.layer_norm(x, [32], w, b),
    "normalises aten.add.Tensor": lambda o, x, r, w, b: o.layer_norm(
        o.add(x, r, alpha=2), [32], w, b
    ),
    "is broadcast": lambda o, x, r, w, b: layer(o, x, o.slice(r, 0, 0, 1), w, b),
    "more than the last dim": lambda o, x, r, w, b: o.layer_norm(o.add(x, r), [5, 32]),
    "another norm": lambda o, x, r, w, b: (layer(o, x, r, w, b), layer(o, x, r, b, w)),
}


@pytest.mark.parametrize("reason", DECLINED)
def test_declines(reason: str) -> None:
    graph = graph_of(DECLINED[reason], INPUTS, FuseAddNorm())
    _, report = run_pass(FuseAddNorm(), graph)
    assert reason in report.declined[0].reason
    assert len(report.applied) == (reason == "another norm")


def test_accuracy() -> None:
    for build, _ in CASES.values():
        graph = graph_of(build, INPUTS, FuseAddNorm())
        _, report = run_pass(FuseAddNorm(), graph, [tuple(INPUTS)])
        assert report.applied


def test_idempotent() -> None:
    for build, _ in CASES.values():
        once, _ = run_pass(FuseAddNorm(), graph_of(build, INPUTS, FuseAddNorm()))
        assert run_pass(FuseAddNorm(), once)[0] is once


def test_gain() -> None:
    graph = graph_of(both, INPUTS, FuseAddNorm())
    result, _ = run_pass(FuseAddNorm(), graph)
    target = Target.parse("cpu:avx512")
    assert graph_seconds(result, target) < graph_seconds(graph, target)
