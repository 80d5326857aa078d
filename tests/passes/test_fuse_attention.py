"""fuse-attention: rewrites, declines, accuracy, idempotence, gain."""

import math

import pytest
import sympy
import torch

from infopt.codegen.kernels.attention import attention
from infopt.codegen.kernels.attention_sinks import attention_sinks
from infopt.compiler.cost import graph_seconds
from infopt.compiler.graph import Graph, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.target import Target
from infopt.compiler.testing import check_pass, graph_of, run_pass
from infopt.compiler.types import Dim, TensorType
from infopt.passes.fuse_attention import FuseAttention
from tests.compiler.tracing.traced import names
from tests.conformance.harness import check

Q, K, V = torch.randn(2, 4, 5, 16), torch.randn(2, 4, 7, 16), torch.randn(2, 4, 7, 16)
KV = torch.randn(2, 2, 7, 16)
MASK = torch.randn(2, 1, 5, 7)
SEEN = torch.rand(2, 1, 5, 7) > 0.3
SINKS = torch.randn(4)
LOW = torch.finfo(torch.float32).min


def swap(o, x):
    rank = x.tensor_type.rank
    return o.permute(x, [*range(rank - 2), rank - 1, rank - 2])


def softmax(o, x, dtype=None):
    return o.call("aten.softmax.int", x, -1, dtype=dtype)


def product(o, q, k, v, change=lambda o, scores: scores, dtype=None):
    return o.matmul(softmax(o, change(o, o.matmul(q, swap(o, k))), dtype), v)


def repeated(o, x, groups=2):
    b, h, s, d = x.shape
    wide = o.expand(o.reshape(x, [b, h, 1, s, d]), [b, h, groups, s, d])
    return o.reshape(wide, [b, h * groups, s, d])


def fused(o, q, k, v, mask=None, scale=1.0, causal=False):
    return o.call(attention, q, k, v, mask, scale=scale, causal=causal)


def merged_heads(o, m, q, k, v, n):
    """Bloom: alibi and the products over [B * H], the mask over [B, H]."""
    scores = o.reshape(o.call("aten.baddbmm.default", m, q, swap(o, k), alpha=0.25), [2, 2, 5, 7])
    return o.bmm(o.reshape(softmax(o, o.add(scores, n)), [4, 5, 7]), v)


def low_where(o, condition, shown):
    zero = o.call("aten.scalar_tensor.default", 0.0, dtype=torch.float32)
    low = o.call("aten.scalar_tensor.default", LOW, dtype=torch.float32)
    return o.call("aten.where.self", condition, *((zero, low) if shown else (low, zero)))


def low_windows(o, width, n):
    """Added by models that mask themselves: 0 in the last `width` keys, else very low."""
    key, query = o.reshape(o.arange(n), [1, 1, 1, n]), o.reshape(o.arange(n), [1, 1, n, 1])
    seen = o.bitwise_and(o.gt(key, o.sub(query, width)), o.le(key, query))
    return o.call("aten.where.ScalarOther", seen, number(o, 0.0), LOW)


def with_sinks(o, q, k, v, sinks, mask=None, shifted=True, kept=-1):
    """gpt-oss: a column of sinks under the softmax, dropped behind it."""
    b, h, t, _ = q.shape
    scores = o.mul(o.matmul(q, swap(o, repeated(o, k))), 0.25)
    scores = scores if mask is None else o.add(scores, mask)
    column = o.expand(o.reshape(sinks, [1, -1, 1, 1]), [b, h, t, 1])
    joined = o.call("aten.cat.default", [scores, column], -1)
    if shifted:
        joined = o.sub(joined, o.call("aten.amax.default", joined, [-1], True))
    weights = o.call("aten.slice.Tensor", softmax(o, joined), 3, 0, kept)
    return o.matmul(weights, repeated(o, v))


def fused_sinks(o, q, k, v, sinks, mask=None, **attrs):
    return o.call(attention_sinks, q, k, v, sinks, mask, scale=0.25, **attrs)


def number(o, value):
    return o.call("aten.scalar_tensor.default", value, dtype=torch.float32)


CASES = {
    "plain": (product, fused, [Q, K, V]),
    "scaled scores": (
        lambda o, q, k, v: product(o, q, k, v, lambda o, s: o.mul(s, 0.25)),
        lambda o, q, k, v: fused(o, q, k, v, scale=0.25),
        [Q, K, V],
    ),
    "divided scores": (
        lambda o, q, k, v: product(o, q, k, v, lambda o, s: o.div(s, 3.0)),
        lambda o, q, k, v: fused(o, q, k, v, scale=1 / 3.0),
        [Q, K, V],
    ),
    "scaled q and k": (
        lambda o, q, k, v: product(o, o.mul(q, 0.5), o.mul(k, 0.5), v),
        lambda o, q, k, v: fused(o, q, k, v, scale=0.25),
        [Q, K, V],
    ),
    "added mask": (
        lambda o, q, k, v, m: product(o, q, k, v, lambda o, s: o.add(m, o.mul(s, 0.25))),
        lambda o, q, k, v, m: fused(o, q, k, v, m, scale=0.25),
        [Q, K, V, MASK],
    ),
    "two added masks": (
        lambda o, q, k, v, m, n: product(o, q, k, v, lambda o, s: o.add(o.add(s, m), n)),
        lambda o, q, k, v, m, n: fused(o, q, k, v, o.add(n, m)),
        [Q, K, V, MASK, MASK[:1] + 1],
    ),
    "masked fill": (
        lambda o, q, k, v, m: product(
            o, q, k, v, lambda o, s: o.call("aten.masked_fill.Scalar", o.mul(s, 0.5), m, LOW)
        ),
        lambda o, q, k, v, m: fused(o, q, k, v, low_where(o, m, shown=False), scale=0.5),
        [Q, K, V, ~SEEN],
    ),
    "where": (
        lambda o, q, k, v, m: product(
            o, q, k, v, lambda o, s: o.call("aten.where.ScalarOther", m, s, LOW)
        ),
        lambda o, q, k, v, m: fused(o, q, k, v, low_where(o, m, shown=True)),
        [Q, K, V, SEEN],
    ),
    "where, of three": (
        lambda o, q, k, v, m: product(
            o, q, k, v, lambda o, s: o.call("aten.where.self", m, s, number(o, LOW))
        ),
        lambda o, q, k, v, m: fused(o, q, k, v, low_where(o, m, shown=True)),
        [Q, K, V, SEEN],
    ),
    "where, a full tensor": (
        lambda o, q, k, v, m: product(
            o, q, k, v,
            lambda o, s: o.call("aten.where.self", m, s, o.call("aten.full_like.default", s, LOW)),
        ),
        lambda o, q, k, v, m: fused(o, q, k, v, low_where(o, m, shown=True)),
        [Q, K, V, SEEN],
    ),
    "scaled by numbers as tensors": (
        lambda o, q, k, v: product(
            o, q, k, v,
            lambda o, s: o.div(o.mul(s, number(o, 0.5)), o.call("aten.full.default", [], 4.0)),
        ),
        lambda o, q, k, v: fused(o, q, k, v, scale=0.125),
        [Q, K, V],
    ),
    "scaled before a transposition": (
        lambda o, q, k, v: o.matmul(
            softmax(o, o.matmul(o.div(q, 2.0), o.mul(swap(o, o.mul(k, 0.5)), 0.5))), v
        ),
        lambda o, q, k, v: fused(o, q, k, v, scale=0.125),
        [Q, K, V],
    ),
    "repeat_interleave": (
        lambda o, q, k, v: product(
            o, q, *(o.call("aten.repeat_interleave.self_int", t, 2, 1) for t in (k, v))
        ),
        fused,
        [Q, KV, KV + 1],
    ),
    "softmax in float32": (
        lambda o, q, k, v: o.matmul(
            o.to(softmax(o, o.matmul(q, swap(o, k)), torch.float32), torch.bfloat16), v
        ),
        fused,
        [Q.bfloat16(), K.bfloat16(), V.bfloat16()],
    ),
    "grouped queries": (
        lambda o, q, k, v: product(o, q, repeated(o, k), repeated(o, v)),
        fused,
        [Q, KV, KV + 1],
    ),
    "three dims": (
        lambda o, q, k, v: o.bmm(softmax(o, o.bmm(q, swap(o, k))), v),
        lambda o, q, k, v: o.reshape(
            fused(o, *(o.reshape(t, [4, 1, *t.shape[1:]]) for t in (q, k, v))), [4, 5, 16]
        ),
        [Q[0], K[0], V[0]],
    ),
    "alibi": (
        lambda o, m, q, k, v: o.bmm(
            softmax(o, o.call("aten.baddbmm.default", m, q, swap(o, k), alpha=0.25)), v
        ),
        lambda o, m, q, k, v: o.reshape(
            fused(
                o, *(o.reshape(t, [4, 1, *t.shape[1:]]) for t in (q, k, v)),
                o.reshape(m, [4, 1, 1, 7]), scale=0.25,
            ),
            [4, 5, 16],
        ),
        [torch.randn(4, 1, 7), Q[0], K[0], V[0]],
    ),
    "heads merged with the batch for the products": (
        merged_heads,
        lambda o, m, q, k, v, n: o.reshape(
            fused(
                o, *(o.reshape(t, [2, 2, *t.shape[1:]]) for t in (q, k, v)),
                o.add(n, o.reshape(m, [2, 2, 1, 7])), scale=0.25,
            ),
            [4, 5, 16],
        ),
        [torch.randn(4, 1, 7), Q[0], K[0], V[0], MASK],
    ),
    "sdpa": (
        lambda o, q, k, v: o.call("aten.scaled_dot_product_attention.default", q, k, v),
        lambda o, q, k, v: fused(o, q, k, v, scale=1 / math.sqrt(16)),
        [Q, K, V],
    ),
    "sdpa, causal, scaled, grouped": (
        lambda o, q, k, v: o.call(
            "aten.scaled_dot_product_attention.default",
            q,
            k,
            v,
            is_causal=True,
            scale=0.3,
            enable_gqa=True,
        ),
        lambda o, q, k, v: fused(o, q, k, v, scale=0.3, causal=True),
        [Q, KV, KV],
    ),
    "a window, added": (
        lambda o, q, k, v: product(
            o, q, k, v, lambda o, s: o.add(s, low_windows(o, 3, s.shape[3]))
        ),
        lambda o, q, k, v: o.call(attention, q, k, v, None, scale=1.0, causal=True, window=3),
        [K, K + 1, V],
    ),
    "sinks": (
        lambda o, *args: with_sinks(o, *args, shifted=False), fused_sinks,
        [Q, KV, KV + 1, SINKS],
    ),
    "sinks and a window": (
        lambda o, q, k, v, s: with_sinks(o, q, k, v, s, low_windows(o, 3, q.shape[2])),
        lambda o, *args: fused_sinks(o, *args, causal=True, window=3),
        [K, KV, KV + 1, SINKS],
    ),
    "sdpa of one key head": (
        lambda o, q, k: o.call("aten.scaled_dot_product_attention.default", q, k, k),
        lambda o, q, k: fused(o, q, k, k, scale=0.25),
        [Q, KV[:, :1].contiguous()],
    ),
    "sdpa of repeated heads": (
        lambda o, q, k, v, m: o.call(
            "aten.scaled_dot_product_attention.default", q, repeated(o, k), repeated(o, v), m
        ),
        lambda o, q, k, v, m: fused(o, q, k, v, m, scale=0.25),
        [Q, KV, KV, SEEN],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_rewrites(case: str) -> None:
    before, after, inputs = CASES[case]
    report = check_pass(FuseAttention(), before, after, inputs)
    assert len(report.applied) == 1


def sdpa(o, *args, **attrs):
    return o.call("aten.scaled_dot_product_attention.default", *args, **attrs)


def returned_weights(o, q, k, v):
    weights = softmax(o, o.matmul(q, swap(o, k)))
    return o.matmul(weights, v), weights


def read_weights(o, q, k, v):
    weights = softmax(o, o.matmul(q, swap(o, k)))
    return o.matmul(weights, v), o.sum(weights)


def positive(o, m):
    return o.gt(m, 0.0)


DECLINED = {
    "a result of the graph": (returned_weights, [Q, K, V]),
    "also read by": (read_weights, [Q, K, V]),
    "dropout_p is 0.5": (lambda o, q, k, v: sdpa(o, q, k, v, dropout_p=0.5), [Q, K, V]),
    "broadcast against each other": (lambda o, q, k, v: sdpa(o, q, k, v), [Q, K[:1], V[:1]]),
    "scaled together": (
        lambda o, q, k, v, m: product(o, q, k, v, lambda o, s: o.mul(o.add(s, m), 0.5)),
        [Q, K, V, MASK],
    ),
    "NaN": (
        lambda o, q, k, v, m: product(
            o, q, k, v, lambda o, s: o.call("aten.masked_fill.Scalar", s, m, -math.inf)
        ),
        [Q, K, V, SEEN],
    ),
    "may still tell apart": (
        lambda o, q, k, v, m: product(
            o, q, k, v, lambda o, s: o.call("aten.masked_fill.Scalar", s, m, -1e4)
        ),
        [Q, K, V, SEEN],
    ),
    "aten.tanh.default between": (
        lambda o, q, k, v: product(o, q, k, v, lambda o, s: o.tanh(s)),
        [Q, K, V],
    ),
    "the mask is scaled by 0.5": (
        lambda o, m, q, k, v: o.bmm(
            softmax(o, o.call("aten.baddbmm.default", m, q, swap(o, k), beta=0.5)), v
        ),
        [torch.randn(4, 1, 7), Q[0], K[0], V[0]],
    ),
    "in the place of a constant": (
        lambda o, q, k, v, m: product(
            o, q, k, v, lambda o, s: o.call("aten.where.self", positive(o, m), s, o.tanh(m))
        ),
        [Q, K, V, MASK],
    ),
    "the condition is larger than the scores": (
        lambda o, q, k, v, m: o.matmul(
            softmax(o, o.call("aten.where.ScalarOther", m, o.matmul(q, swap(o, k)), LOW)), v
        ),
        [Q[:1], K[:1], V[:1], torch.rand(2, 4, 5, 7) > 0.3],
    ),
    "is larger than the scores": (
        lambda o, q, k, v, m: product(o, q, k, v, lambda o, s: o.add(s, m)),
        [Q[:1], K[:1], V[:1], MASK],
    ),
    "scale 0.0": (
        lambda o, q, k, v: product(o, q, k, v, lambda o, s: o.mul(s, 0.0)),
        [Q, K, V],
    ),
    "neither side of a sum": (
        lambda o, x, v: o.matmul(softmax(o, o.add(x, x)), v),
        [torch.randn(2, 4, 5, 7), V],
    ),
    "expected [batch, heads, tokens, depth]": (
        lambda o, q, k, v: o.matmul(softmax(o, o.matmul(q, swap(o, k))), v),
        [Q[0, 0], K[0, 0], V[0, 0]],
    ),
    "4 key heads and 2 value heads": (
        lambda o, q, k, v: product(o, q, k, repeated(o, v)),
        [Q, K, KV],
    ),
    "7 keys and 6 values": (sdpa, [Q, K, V[:, :, :-1].contiguous()]),
    "the mask is torch.bfloat16, q is torch.float32": (
        lambda o, q, k, v, m: o.matmul(softmax(o, o.add(o.matmul(q, swap(o, k)), m)), v),
        [Q, K, V, MASK.bfloat16()],
    ),
    "the result are": (
        lambda o, q, k, v: o.matmul(o.to(softmax(o, o.matmul(q, swap(o, k))), torch.bfloat16), v),
        [Q, K, V.bfloat16()],
    ),
    "columns of the attention weights are dropped": (
        lambda o, q, k, v: o.matmul(
            o.call("aten.slice.Tensor", softmax(o, o.matmul(q, swap(o, k))), 3, 0, -1), v
        ),
        [Q, K, V[:, :, :-1].contiguous()],
    ),
    "softmax over dim 1": (
        lambda o, q, k, v: o.matmul(o.call("aten.softmax.int", o.matmul(q, swap(o, k)), 1), v),
        [Q, K, V],
    ),
    "scores are replaced by nan, expected a number": (
        lambda o, q, k, v, m: product(
            o, q, k, v, lambda o, s: o.call("aten.masked_fill.Scalar", s, m, math.nan)
        ),
        [Q, K, V, SEEN],
    ),
    "q, k, v are f32[5, 16], f32[7, 16], f32[7, 16], expected 3 or 4 dims": (
        lambda o, q, k, v: sdpa(o, q, k, v),
        [Q[0, 0], K[0, 0], V[0, 0]],
    ),
    "the mask is f32[1, 2, 1, 5, 7]": (
        lambda o, q, k, v, m: sdpa(o, q, k, v, m),
        [Q, K, V, MASK[None]],
    ),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32s_lowest_number_is_infinite_in_half_precision(dtype: torch.dtype) -> None:
    build, _, inputs = CASES["where"]
    given = [t.to(dtype) if t.is_floating_point() else t for t in inputs]
    graph = graph_of(build, given, FuseAttention())
    result, report = run_pass(FuseAttention(), graph, [tuple(given)])
    assert result is graph and "would be NaN" in report.declined[0].reason


@pytest.mark.parametrize("reason", DECLINED)
def test_declines(reason: str) -> None:
    build, inputs = DECLINED[reason]
    graph = graph_of(build, inputs, FuseAttention())
    result, report = run_pass(FuseAttention(), graph)
    assert result is graph
    assert reason in report.declined[0].reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["scaled q and k", "added mask", "masked fill", "where"])
def test_accuracy(case: str, dtype: torch.dtype) -> None:
    """Rows that see nothing, too: they attend to every key alike, as lowest numbers do."""
    build, _, inputs = CASES[case]
    inputs = [t.to(dtype) if t.is_floating_point() else t.clone() for t in inputs]
    if dtype is torch.bfloat16 and case in ("masked fill", "where"):
        low = torch.finfo(dtype).min
        op = "masked_fill.Scalar" if case == "masked fill" else "where.ScalarOther"

        def hidden(o, q, k, v, m):
            def change(o, s):
                args = (s, m) if case == "masked fill" else (m, s)
                return o.call(f"aten.{op}", *args, low)

            return product(o, q, k, v, change)

        build = hidden
    if inputs[-1].dtype is torch.bool:
        inputs[-1][0, 0, 1] = case == "masked fill"
    graph = graph_of(build, inputs, FuseAttention())
    result, _ = run_pass(FuseAttention(), graph, [tuple(inputs)])
    assert "attention" in names(result)


def test_idempotent() -> None:
    for before, _, inputs in CASES.values():
        once, _ = run_pass(FuseAttention(), graph_of(before, inputs, FuseAttention()))
        again, _ = run_pass(FuseAttention(), once)
        assert again is once and once.stage is Stage.FUSE


def test_gain() -> None:
    inputs = [torch.randn(1, 8, 128, 64) for _ in range(3)]
    graph = graph_of(product, inputs, FuseAttention())
    result, _ = run_pass(FuseAttention(), graph)
    target = Target.parse("cpu:avx512")
    assert graph_seconds(result, target) < graph_seconds(graph, target)


NUMBERS = {
    "a full tensor": lambda o, s: o.call("aten.full.default", [], 0.5),
    "a scalar tensor": lambda o, s: number(o, 0.5),
    "a tensor like the scores": lambda o, s: o.call("aten.full_like.default", s, 0.5),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_as_tensors(case: str) -> None:
    def scaled(o, q, k, v):
        return product(o, q, k, v, lambda o, s: o.mul(s, NUMBERS[case](o, s)))

    check_pass(FuseAttention(), scaled, lambda o, q, k, v: fused(o, q, k, v, scale=0.5), [Q, K, V])


@pytest.mark.parametrize("value", [torch.tensor(0.5), torch.tensor([0.5]), torch.ones(7) / 2])
def test_constants_of_the_graph_as_numbers(value: torch.Tensor) -> None:
    """One number is a scale; a row of them is another scale for each key."""
    o = Builder()
    q, k, v = (o.input(n, TensorType.of(t)) for n, t in zip("qkv", (Q, K, V)))
    held = o.const("half", TensorType.of(value))
    out = product(o, q, k, v, lambda o, s: o.mul(s, held))
    graph = Graph((q, k, v), (out,), {"half": value}, stage=Stage.NORMALIZE)
    result, report = run_pass(FuseAttention(), graph, [(Q, K, V)])
    if value.numel() == 1:
        (node,) = (n for n in result.nodes() if n.op.name == "attention")
        assert node.attr("scale") == 0.5
    else:
        assert report.declined[0].reason == "const in the place of a constant"


SINGLE = [Q[0], K[0], V[0]]


@pytest.mark.parametrize("low", [-1e30, -0.99e30])
def test_how_low_a_number_hides_a_key(low: float) -> None:
    """Lower than half of what scores may be, so that no sum of scores comes near."""

    def filled(o, q, k, v, m):
        return product(o, q, k, v, lambda o, s: o.call("aten.masked_fill.Scalar", s, m, low))

    _, report = run_pass(FuseAttention(), graph_of(filled, [Q, K, V, SEEN], FuseAttention()))
    assert bool(report.applied) is (low <= -1e30)


def test_a_mask_of_three_dims() -> None:
    mask = torch.randn(4, 5, 7)
    check_pass(
        FuseAttention(),
        lambda o, q, k, v, m: sdpa(o, q, k, v, m),
        lambda o, q, k, v, m: o.reshape(
            fused(
                o, *(o.reshape(t, [4, 1, *t.shape[1:]]) for t in (q, k, v)),
                o.reshape(m, [4, 1, 5, 7]), scale=0.25,
            ),
            [4, 5, 16],
        ),
        [*SINGLE, mask],
    )  # fmt: skip


def test_a_size_that_is_open_gives_no_scale() -> None:
    width = sympy.Symbol("w", integer=True, positive=True)
    o = Builder((Dim(width, 2, None, 16),))
    q = o.input("q", TensorType.dense((2, 4, 5, width), torch.float32))
    graph = Graph((q,), (sdpa(o, q, q, q),), dims=o.dims)
    _, report = run_pass(FuseAttention(), graph)
    assert report.declined[0].reason == "the default scale depends on the size w"
    scores = o.mul(o.matmul(q, swap(o, q)), width)
    scaled = Graph((q,), (o.matmul(softmax(o, scores), q),), dims=o.dims)
    _, report = run_pass(FuseAttention(), scaled)
    assert report.declined[0].reason == "the scale w is a size"


def test_a_call_with_fewer_values_than_keys_is_torchs():
    check(torch.nn.functional.scaled_dot_product_attention, (Q, K, V[:, :, :-1].contiguous()))
