"""Every op over exact arithmetic: its real part is torch's result, and its residues are those of
the very number where that number is a finite binary fraction."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import infopt.compiler.certification.exact  # noqa: F401  declares the functions that are exact
from infopt.compiler.certification.exact_tensor import NotExact, Residue, like_of
from infopt.compiler.certification.residue import P, Q, numbers

torch.manual_seed(3)
X = torch.randint(-8, 9, (4, 8)).double()
Y = torch.tensor([1.0, -2, 4, 0.5, -0.25, 8, -1, 2]).double().repeat(4, 1)
W = torch.randint(-4, 5, (8, 8)).double()
V = torch.randint(-4, 5, (8,)).double()
M = torch.arange(32).view(4, 8) % 3 == 0
IMAGE, KERNEL = torch.randint(-4, 5, (2, 4, 6, 6)).double(), torch.randint(-3, 4, (4, 4, 3, 3))
KERNEL = KERNEL.double()
BATCH = X.view(2, 2, 8)
INF = torch.tensor([math.inf, -math.inf, math.nan, 1.0]).double()

# Results that binary fractions hold exactly: residues are known.
FRACTIONS: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "add": (lambda x, y: torch.add(x, y, alpha=3), [X, Y]),
    "sub": (lambda x, y: torch.sub(x, y, alpha=0.5), [X, Y]),
    "rsub": (lambda x: 1.5 - x, [X]),
    "mul": (lambda x, y: x * y * 0.5, [X, Y]),
    "div": (lambda x, y: x / y / 4, [X, Y]),
    "reciprocal": (torch.reciprocal, [Y]),
    "neg": (torch.neg, [X]),
    "square": (torch.square, [X]),
    "pow": (lambda x: x**3, [X]),
    "pow 0": (lambda x: x**0, [X]),
    "pow -2": (lambda y: y**-2, [Y]),
    "addcmul": (lambda x, y: torch.addcmul(x, y, y, value=2), [X, Y]),
    "addcdiv": (lambda x, y: torch.addcdiv(x, x, y, value=-3), [X, Y]),
    "sum": (lambda x: x.sum(1), [X]),
    "sum keepdim": (lambda x: x.sum((0, 1), keepdim=True), [X]),
    "sum of all": (lambda x: x.sum(), [X]),
    "mean": (lambda x: x.mean(-1, keepdim=True), [X]),
    "mean of all": (lambda x: torch.ops.aten.mean.dim(x, None), [X]),
    "mean of two": (lambda x: x.mean((0, 1)), [X]),
    "cumsum": (lambda x: x.cumsum(1), [X]),
    "mm": (torch.mm, [X, W]),
    "mv": (torch.mv, [W, V]),
    "dot": (torch.dot, [V, V]),
    "bmm": (torch.bmm, [BATCH, W.expand(2, 8, 8)]),
    "linear": (F.linear, [X, W, V]),
    "linear without bias": (F.linear, [X, W]),
    "addmm": (lambda v, x, w: torch.addmm(v, x, w, beta=2, alpha=3), [V, X, W]),
    "baddbmm": (
        lambda c, a, w: torch.baddbmm(c, a, w, beta=0.5, alpha=-2),
        [BATCH, BATCH, W.expand(2, 8, 8)],
    ),
    "addmv": (lambda v, w: torch.addmv(v, w, v, alpha=2), [V, W]),
    "convolution": (lambda x, w: F.conv2d(x, w, stride=2, padding=1), [IMAGE, KERNEL]),
    "convolution with bias": (
        lambda x, w, b: F.conv2d(x, w, b[:4], dilation=2),
        [IMAGE, KERNEL, V],
    ),
    "convolution of groups": (lambda x, w: F.conv2d(x, w[:, :2], groups=2), [IMAGE, KERNEL]),
    "where": (lambda m, x, y: torch.where(m, x, y), [M, X, Y]),
    "where number": (lambda m, x: torch.where(m, x, 2.5), [M, X]),
    "masked_fill": (lambda x, m: x.masked_fill(m, -1.5), [X, M]),
    "pad": (lambda x: F.pad(x, (1, 2, 0, 1), value=0.75), [X]),
    "pad with zeros": (lambda x: F.pad(x, (0, 3)), [X]),
    "relu": (torch.relu, [X]),
    "abs": (torch.abs, [X]),
    "maximum": (torch.maximum, [X, Y]),
    "minimum": (torch.minimum, [X, Y]),
    "clamp": (lambda x: torch.clamp(x, -2, 3), [X]),
    "clamp below": (lambda x: torch.clamp(x, max=1), [X]),
    "clamp_min": (lambda x: torch.clamp_min(x, 2), [X]),
    "clamp_max": (lambda x: torch.clamp_max(x, 2), [X]),
    "hardtanh": (lambda x: F.hardtanh(x, -3.0, 2.0), [X]),
    "amax": (lambda x: x.amax(1), [X]),
    "amax keepdim": (lambda x: x.amax((0, 1), keepdim=True), [X]),
    "amin": (lambda x: x.amin(0), [X]),
    "amin of all": (lambda x: x.amin(), [X]),
    "zeros_like": (lambda x: torch.zeros_like(x) + x, [X]),
    "full_like": (lambda x: torch.full_like(x, 1.5) * x, [X]),
    "new_full": (lambda x: x.new_full((4, 1), 2.5) * x, [X]),
    "moves": (lambda x: x.t().reshape(2, 16)[:, 3:9].flip(0), [X]),
    "cat": (lambda x, y: torch.cat([x, y], 1).chunk(4, 1)[1], [X, Y]),
    "gather": (lambda x: x.gather(1, torch.tensor([[0], [2], [1], [7]])), [X]),
    "embedding": (lambda w: F.embedding(torch.tensor([1, 7, 1]), w), [W]),
    "index": (lambda x: x[torch.tensor([3, 0])], [X]),
    "infinities": (lambda x: x + 1, [INF]),
    "infinity chosen": (lambda m, x: torch.where(m, x, -math.inf), [M, X]),
}
POSITIVE = X.abs() + 0.5
# Results that are no such fractions: the real part decides comparisons, so it is torch's.
REALS: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "div": (lambda x: x / 3, [X]),
    "div down": (lambda x: torch.div(x, 3, rounding_mode="floor"), [X]),
    "div to zero": (lambda x: torch.div(x, 3, rounding_mode="trunc"), [X]),
    "pow 0.5": (lambda x: x**0.5, [POSITIVE]),
    "pow -0.5": (lambda x: x**-0.5, [POSITIVE]),
    "pow 1.5": (lambda x: x**1.5, [POSITIVE]),
    "pow of tensors": (lambda x, y: x**y, [POSITIVE, Y]),
    "pow of a number": (lambda x: 2**x, [X]),
    "pow 70": (lambda x: x**70, [Y]),
    "sqrt": (torch.sqrt, [POSITIVE]),
    "rsqrt": (torch.rsqrt, [POSITIVE]),
    "exp": (torch.exp, [X]),
    "exp of exp": (lambda x: torch.exp(-torch.exp(x)), [X]),
    "expm1": (torch.expm1, [X]),
    "log": (torch.log, [POSITIVE]),
    "sigmoid": (torch.sigmoid, [X]),
    "silu": (F.silu, [X]),
    "gelu": (F.gelu, [X]),
    "gelu by tanh": (lambda x: F.gelu(x, approximate="tanh"), [X]),
    "hardswish": (F.hardswish, [X]),
    "tanh": (torch.tanh, [X]),
    "softmax": (lambda x: x.softmax(0), [X]),
    "softmax in float64": (lambda x: x.softmax(1, dtype=torch.float64), [X]),
    "log_softmax": (lambda x: x.log_softmax(1), [X]),
    "layer_norm": (lambda x, v: F.layer_norm(x, [8], v, v + 1), [X, V]),
    "layer_norm of two": (lambda x: F.layer_norm(x, [4, 8], eps=0.5), [X]),
    "rms_norm": (lambda x, v: F.rms_norm(x, [8], v, 0.25), [X, V]),
    "rms_norm, plain": (lambda x: torch.ops.aten.rms_norm(x, [4, 8]), [X]),
    "batch_norm": (
        lambda x, v: F.batch_norm(x, v[:4], v[4:].abs(), v[2:6], v[:4] + 1, eps=0.5),
        [IMAGE, V],
    ),
    "batch_norm, plain": (lambda x, v: F.batch_norm(x, v[:4], v[4:].abs(), eps=0.5), [IMAGE, V]),
    "group_norm": (lambda x, v: F.group_norm(x, 2, v[:4], v[4:], eps=0.5), [IMAGE, V]),
    "group_norm, plain": (lambda x: F.group_norm(x, 4), [IMAGE]),
    "attention": (lambda q, k: F.scaled_dot_product_attention(q, k, k + 1), [BATCH, BATCH]),
    "causal": (
        lambda q, k: F.scaled_dot_product_attention(q, k, k + 1, is_causal=True),
        [X.view(1, 4, 8), Y.view(1, 4, 8)],
    ),
    "attention, mask": (
        lambda q, m: F.scaled_dot_product_attention(q, q, q, attn_mask=m[:, :4], scale=0.5),
        [X.view(1, 4, 8), M],
    ),
    "attention, bias": (
        lambda q, m: F.scaled_dot_product_attention(q, q, q, attn_mask=m[:, :4]),
        [X.view(1, 4, 8), Y],
    ),
    "grouped heads": (
        lambda q, k: F.scaled_dot_product_attention(q, k, k + 1, enable_gqa=True),
        [X.view(1, 4, 1, 8), Y[:2].view(1, 2, 1, 8)],
    ),
    "uninterpreted": (lambda x: torch.sin(x).cos(), [X]),
}


def lifted(inputs: list[Tensor]) -> list[Tensor]:
    return [Residue.of(x) if x.is_floating_point() else x for x in inputs]


@pytest.mark.parametrize("name", FRACTIONS)
def test_residues_are_those_of_the_result(name: str) -> None:
    f, inputs = FRACTIONS[name]
    expected, found = f(*inputs), f(*lifted(inputs))
    assert isinstance(found, Residue) and found.dtype == expected.dtype
    assert torch.equal(found.value.nan_to_num(9e9), expected.nan_to_num(9e9).double())
    assert torch.equal(found.p, numbers(expected, P))
    assert found.q is not None and torch.equal(found.q, numbers(expected, Q))


@pytest.mark.parametrize("name", REALS)
def test_the_real_part_is_torchs_result(name: str) -> None:
    f, inputs = REALS[name]
    expected, found = f(*inputs), f(*lifted(inputs))
    assert isinstance(found, Residue) and found.dtype == expected.dtype
    torch.testing.assert_close(found.value, expected.double(), rtol=1e-9, atol=1e-9)
    assert found.p.shape == expected.shape and bool(((found.p >= 0) & (found.p < P)).all())
    again = f(*lifted(inputs))
    assert torch.equal(again.p, found.p)  # the same arguments give the same residues
    if found.q is not None:
        assert bool(((found.q >= 0) & (found.q < Q)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_are_those_of_torch(dtype: torch.dtype) -> None:
    x, y = X.to(dtype), Y.to(torch.float32)
    for f in (
        lambda x, y: x + y,
        lambda x, y: (x * 2).to(torch.float64),
        lambda x, y: torch.maximum(x, y),
        lambda x, y: torch.softmax(x, 0, dtype=torch.float32),
        lambda x, y: x.sum(1, dtype=torch.float64),
        lambda x, y: torch.zeros_like(x) + x,
        lambda x, y: torch.tanh(x),
        lambda x, y: x.relu().mean(),
    ):
        assert f(*lifted([x, y])).dtype == f(x, y).dtype


def test_what_real_values_decide_is_plain() -> None:
    x, y = lifted([X, Y])
    for f in (lambda x, y: x > y, lambda x, y: x.argmax(1), lambda x, y: x.to(torch.int64)):
        found = f(x, y)
        assert not isinstance(found, Residue) and torch.equal(found, f(X, Y))


def test_what_has_no_meaning_is_refused() -> None:
    (x,) = lifted([X])
    with pytest.raises(NotExact, match="writes in place"):
        x.add_(1)
    with pytest.raises(NotExact, match="attention with dropout"):
        F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)
    with pytest.raises(NotExact, match="batch norm in training"):
        F.batch_norm(x, None, None, training=True)
    with pytest.raises(NotExact, match="svd"):
        torch.linalg.svd(x)


def test_other_arguments_are_other_functions() -> None:
    (x,) = lifted([X])
    assert not torch.equal(torch.sin(x).p, torch.cos(x).p)
    assert not torch.equal(F.elu(x, 1.0).p, F.elu(x, 2.0).p)
    assert torch.equal(torch.sin(x).p, torch.sin(x.clone()).p)


def test_what_an_op_gives_is_found_without_values() -> None:
    x = torch.ones(2, 3)
    like = like_of(torch.ops.aten.zeros_like.default, (x,), {"device": torch.device("cpu")})
    assert like.device.type == "meta" and like.shape == x.shape
