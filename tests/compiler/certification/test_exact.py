"""Programs over exact arithmetic: equal where they are equal as functions, different elsewhere."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from infopt.codegen.kernels.attention import attention
from infopt.codegen.kernels.linear import linear_act
from infopt.codegen.kernels.rms_norm import rms_norm
from infopt.compiler.certification.exact import exact_difference, exact_results
from infopt.compiler.certification.exact_tensor import NotExact, Residue
from infopt.compiler.certification.residue import P
from infopt.compiler.pipeline import PassContext, Pipeline
from infopt.compiler.target import Target
from infopt.compiler.testing import graph_of
from infopt.compiler.types import TensorType
from infopt.passes.fold_constants import FoldConstants

X, Y, W = torch.randn(4, 6), torch.randn(4, 6), torch.randn(6, 6)
IMAGE, KERNEL = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
MASK = torch.rand(4, 6) > 0.5
HEADS = torch.randn(2, 2, 5, 8)


def by_hand(o, q, k, v):
    scores = o.mul(o.matmul(q, o.permute(k, [0, 1, 3, 2])), 8**-0.5)
    return o.matmul(o.softmax(scores, -1), v)


def fused(o, q, k, v):
    return o.call(attention, q, k, v, scale=8**-0.5)


def softmax_by_hand(o, x):
    high = o.exp(o.sub(x, o.amax(x, [-1], True)))
    return o.div(high, o.call("aten.sum.dim_IntList", high, [-1], True))


def layer_norm_by_hand(o, x):
    mean = o.call("aten.mean.dim", x, [-1], True)
    centered = o.sub(x, mean)
    variance = o.call("aten.mean.dim", o.mul(centered, centered), [-1], True)
    return o.div(centered, o.sqrt(o.add(variance, 1e-5)))


def rms_norm_by_hand(o, x, y, w):
    scale = o.rsqrt(o.add(o.call("aten.mean.dim", o.pow(x, 2.0), [-1], True), 1e-6))
    return o.mul(o.mul(x, scale), o.select(w, 0, 0))


EQUAL = {
    "distributive": (
        lambda o, x, y, w: o.mul(o.add(x, y), w.shape[0]),
        lambda o, x, y, w: o.add(o.mul(x, 6), o.mul(y, 6.0)),
        [X, Y, W],
    ),
    "products associate": (
        lambda o, x, y, w: o.matmul(o.matmul(x, w), w),
        lambda o, x, y, w: o.matmul(x, o.matmul(w, w)),
        [X, Y, W],
    ),
    "addmm is linear": (
        lambda o, x, y, w: o.addmm(y, x, w),
        lambda o, x, y, w: o.add(o.linear(x, o.permute(w, [1, 0])), y),
        [X, Y, W],
    ),
    "exp is a homomorphism": (
        lambda o, x, y: o.exp(o.add(x, y)),
        lambda o, x, y: o.mul(o.exp(x), o.exp(y)),
        [X, Y],
    ),
    "sigmoid": (
        lambda o, x: o.mul(x, o.sigmoid(x)),
        lambda o, x: o.div(x, o.add(o.exp(o.neg(x)), 1.0)),
        [X],
    ),
    "silu": (lambda o, x: o.silu(x), lambda o, x: o.mul(x, o.sigmoid(x)), [X]),
    "softmax": (lambda o, x: o.softmax(x, -1), softmax_by_hand, [X]),
    "softmax of large scores": (lambda o, x: o.softmax(x, -1), softmax_by_hand, [X * 300]),
    "log softmax": (
        lambda o, x: o.log_softmax(x, -1),
        lambda o, x: o.log_softmax(o.clone(x), -1),
        [X],
    ),
    "layer norm": (lambda o, x: o.layer_norm(x, [6], None, None, 1e-5), layer_norm_by_hand, [X]),
    "rms norm": (
        lambda o, x, y, w: o.call(rms_norm, x, o.select(w, 0, 0), eps=1e-6),
        rms_norm_by_hand,
        [X, Y, W],
    ),
    "gelu": (
        lambda o, x: o.gelu(x),
        lambda o, x: o.mul(o.mul(x, 0.5), o.add(o.erf(o.div(x, math.sqrt(2))), 1.0)),
        [X],
    ),
    "attention": (
        by_hand,
        lambda o, q, k, v: o.call(attention, q, k, v, scale=8**-0.5),
        [HEADS] * 3,
    ),
    "sdpa": (by_hand, lambda o, q, k, v: o.scaled_dot_product_attention(q, k, v), [HEADS] * 3),
    "convolution": (
        lambda o, x, w: o.conv2d(x, o.mul(w, 3.0)),
        lambda o, x, w: o.mul(o.conv2d(x, w), 3.0),
        [IMAGE, KERNEL],
    ),
    "choices": (
        lambda o, x, y, m: o.call("aten.where.self", m, x, y),
        lambda o, x, y, m: o.call("aten.where.self", o.logical_not(m), y, x),
        [X, Y, MASK],
    ),
    "relu": (lambda o, x: o.relu(x), lambda o, x: o.clamp(x, 0.0), [X]),
    "minus infinity": (
        lambda o, x, m: o.softmax(o.masked_fill(x, m, -math.inf), -1),
        lambda o, x, m: o.softmax(o.masked_fill(x, m, torch.finfo(torch.float32).min), -1),
        [X, MASK],
    ),
    "moved": (
        lambda o, x: o.slice(o.cat([x, x], 0), 0, 4, 8),
        lambda o, x: o.permute(o.permute(x, [1, 0]), [1, 0]),
        [X],
    ),
    "fused op": (
        lambda o, x, y, w: o.add(o.relu(o.linear(x, w)), y),
        lambda o, x, y, w: o.call(linear_act, x, w, None, y, activation="relu"),
        [X, Y, W],
    ),
}


@pytest.mark.parametrize("name", EQUAL)
def test_equal_functions(name: str) -> None:
    first, second, inputs = EQUAL[name]
    for seed in range(3):
        assert (
            exact_difference(graph_of(first, inputs), graph_of(second, inputs), inputs, seed)
            is None
        )


DIFFERENT = {
    "a factor near one": (lambda o, x: o.mul(x, 1.000002), lambda o, x: x, [X]),
    "another constant": (lambda o, x: o.add(x, 1e-5), lambda o, x: o.add(x, 2e-5), [X]),
    "forgotten": (lambda o, x, y: o.add(x, o.mul(y, 1e-30)), lambda o, x, y: o.clone(x), [X, Y]),
    "swapped": (lambda o, x, y: o.sub(x, y), lambda o, x, y: o.sub(y, x), [X, Y]),
    "gelu by tanh": (lambda o, x: o.gelu(x), lambda o, x: o.gelu(x, approximate="tanh"), [X]),
    "rounded away": (
        lambda o, x: o.layer_norm(x, [6], None, None, 1e-5),
        lambda o, x: o.layer_norm(x, [6], None, None, 1e-6),
        [X],
    ),
    "exp is not linear": (lambda o, x: o.exp(o.mul(x, 2.0)), lambda o, x: o.exp(x), [X]),
    "moved elements": (lambda o, x: o.flip(x, [0]), lambda o, x: o.clone(x), [X]),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_functions(name: str) -> None:
    first, second, inputs = DIFFERENT[name]
    for seed in range(3):
        reason = exact_difference(graph_of(first, inputs), graph_of(second, inputs), inputs, seed)
        assert reason is not None and f"modulo {P}" in reason


def test_shapes_and_dtypes_are_compared() -> None:
    before = graph_of(lambda o, x: o.sum(x), [X])
    after = graph_of(lambda o, x: o.sum(o.call("aten.to.dtype", x, torch.float64)), [X])
    expected = r"result 0 is torch.float64\(\), expected torch.float32\(\)"
    with pytest.raises(AssertionError, match=expected):
        raise AssertionError(exact_difference(before, after, [X]))


def test_derived_constants_are_computed_exactly() -> None:
    def build(o, x):
        c = o.const("c", TensorType.of(W))
        return o.linear(x, o.matmul(c, c))

    graph = replace(graph_of(build, [X]), consts={"c": W})
    ctx = PassContext(Target.detect())
    folded = Pipeline([FoldConstants()], alone=True).run(graph, ctx)
    assert list(folded.consts) == ["folded_0"]
    assert exact_difference(graph, folded, [X], derived=ctx.derived) is None
    with pytest.raises(NotExact, match="the constant folded_0, of which the pass tells no origin"):
        exact_difference(graph, folded, [X])


def test_what_has_no_exact_meaning_is_named() -> None:
    graph = graph_of(lambda o, x: o.getitem(o.call("aten.sort.default", x, -1, False), 0), [X])
    with pytest.raises(NotExact, match=r"aten\.sort"):
        exact_difference(graph, graph, [X])


def test_results_keep_type_and_strides() -> None:
    held = X.t()
    graph = graph_of(lambda o, x: (o.mul(x, 2.0), o.gt(x, 0)), [held])
    scaled, positive = exact_results(graph, [held])
    assert isinstance(scaled, Residue) and scaled.stride() == held.stride()
    assert scaled.dtype is torch.float32 and torch.equal(positive, held > 0)
