"""f32 linears and attention with bf16 products, where compute="bf16" permits it."""

from __future__ import annotations

import pytest
import torch

import infopt
from infopt.codegen.kernels.attention import attention
from infopt.codegen.kernels.conv import conv_act
from infopt.codegen.kernels.linear import gated_linear, linear_act
from infopt.codegen.kernels.narrow_conv import narrow_conv
from infopt.codegen.kernels.narrow_linear import narrow_gated_linear, narrow_linear
from infopt.compiler.graph import Graph, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.interpret import interpret
from infopt.compiler.testing import check_pass, graph_of, run_pass
from infopt.compiler.types import TensorType
from infopt.passes.narrow_compute import NarrowCompute

BF16 = torch.bfloat16


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(2, 20, 32)


@pytest.fixture
def w():
    torch.manual_seed(1)
    return torch.randn(32, 32) / 6


def test_rewrites(x, w):
    """A value that only products read stays in bf16; one that is a result or is summed is f32."""

    def before(o, x, w):
        hidden = o.call(linear_act, x, w, None, None, activation="gelu")
        return o.call(linear_act, hidden, w, None, x, activation="none")

    def expected(o, x, w):
        hidden = o.call(narrow_linear, x, w, None, None, activation="gelu", out=BF16)
        return o.call(narrow_linear, hidden, w, None, x, activation="none", out=torch.float32)

    check_pass(NarrowCompute(), before, expected, [x, w])


def test_convolutions():
    """Between two of them a value is bf16; what is added, and its sum, are f32."""
    x, w = torch.randn(2, 16, 9, 8), torch.randn(16, 16, 3, 3) / 12
    window = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}

    def before(o, x, w):
        inner = o.call(conv_act, x, w, None, None, None, **window, activation="relu")
        return o.call(conv_act, inner, w, None, None, x, **window, add_first=True)

    def expected(o, x, w):
        inner = o.call(narrow_conv, x, w, None, None, None, **window, activation="relu", out=BF16)
        return o.call(narrow_conv, inner, w, None, None, x, **window, add_first=True)

    check_pass(NarrowCompute(), before, expected, [x, w])


def test_depthwise_convolutions_stay():
    x, w = torch.randn(2, 16, 9, 8), torch.randn(16, 1, 3, 3)
    graph = graph_of(lambda o, x, w: o.conv2d(x, w, None, groups=16), [x, w], NarrowCompute())
    found, report = run_pass(NarrowCompute(), graph)
    assert found.key == graph.key
    assert "depthwise" in report.declined[0].reason


def test_attention_and_gates(x, w):
    def heads(o, y):
        return o.permute(o.reshape(y, [2, 20, 4, 8]), [0, 2, 1, 3])

    def before(o, x, w):
        q, k = heads(o, o.linear(x, w)), heads(o, o.linear(x, o.neg(w)))
        mixed = o.call(attention, q, k, q, None, scale=0.3)
        flat = o.reshape(o.permute(mixed, [0, 2, 1, 3]), [2, 20, 32])
        return o.call(gated_linear, flat, w, w)

    found, report = run_pass(NarrowCompute(), graph_of(before, [x, w]), [(x, w)])
    names = [n.op for n in found.nodes()]
    assert names.count(narrow_linear) == 2 and names.count(narrow_gated_linear) == 1
    [mixed] = [n for n in found.nodes() if n.op is attention]
    assert mixed.dtype == BF16 and found.outputs[0].dtype == torch.float32
    assert not any(n.op.name == "aten.to.dtype" for n in found.nodes())
    assert len(report.applied) == 4


def test_masks_keep_masked_rows_finite(x):
    lowest = torch.finfo(torch.float32).min
    q = torch.randn(1, 2, 4, 8)
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 2:] = lowest
    mask[..., 1, :] = lowest
    start = graph_of(lambda o, q, m: o.call(attention, q, q, q, m, scale=0.3), [q, mask])
    found, _ = run_pass(NarrowCompute(), start)
    got, want = interpret(found, [q, mask])[0], interpret(start, [q, mask])[0]
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)


def test_constant_weights_are_rounded_once(x, w):
    o = Builder()
    node, const = o.input("x", TensorType.of(x)), o.const("w", TensorType.of(w))
    graph = Graph((node,), (o.linear(node, o.permute(const, [1, 0])),), {"w": w}, stage=Stage.FUSE)
    found, _ = run_pass(NarrowCompute(), graph, [(x,)])
    assert set(found.consts) == {"w_bf16"} and found.consts["w_bf16"].dtype == BF16


def test_declines(x, w):
    start = graph_of(lambda o, x, w: o.linear(x, w), [x.double(), w.double()], NarrowCompute())
    found, report = run_pass(NarrowCompute(), start)
    assert found is start
    assert report.declined[0].reason == "it computes in torch.float64"


def test_accuracy(x, w):
    _, report = run_pass(
        NarrowCompute(), graph_of(lambda o, x, w: o.linear(x, w), [x, w]), [(x, w)]
    )
    assert "rms" in report.error


def test_idempotent(x, w):
    found, _ = run_pass(NarrowCompute(), graph_of(lambda o, x, w: o.linear(x, w), [x, w]))
    again, report = run_pass(NarrowCompute(), found)
    assert again is found and not report.sites


def test_gain():
    """Only permission puts it in the list, so its price is paid by whoever asked."""
    assert "narrow-compute" not in {p.name for p in infopt.default_passes()}
    assert "narrow-compute" in {p.name for p in infopt.default_passes(compute="bf16")}


def test_behind_activations_in_bytes_the_limit_is_theirs():
    """A rounding that moves a code moves a result by as much as the code's step."""
    limits = [
        [p.accuracy.limit for p in passes if p.name == "narrow-compute"]
        for passes in (
            infopt.default_passes(compute="bf16"),
            infopt.default_passes(compute="bf16", weights="int8"),
            infopt.default_passes(compute="bf16", weights="int8", activations="int8"),
        )
    ]
    assert limits == [[0.05], [0.05], [0.1]]


def heads(o, y):
    return o.permute(o.reshape(y, [2, 20, 4, 8]), [0, 2, 1, 3])


def swapped(o, y):
    return o.permute(y, [1, 0, 2])


# What reads the value of the first product, and whether it may be bf16 then: all who read it
# would round it themselves.
READERS = {
    "a product": (lambda o, y, w: o.linear(y, w), True),
    "two products": (lambda o, y, w: (o.linear(y, w), o.linear(y, o.neg(w))), True),
    "a view of it": (lambda o, y, w: o.linear(o.reshape(y, [40, 32]), w), True),
    "two views of it": (lambda o, y, w: o.linear(o.reshape(swapped(o, y), [40, 32]), w), True),
    "a norm": (lambda o, y, w: o.layer_norm(y, [32]), False),
    "a product and a norm": (lambda o, y, w: (o.linear(y, w), o.layer_norm(y, [32])), False),
    "a norm through a view": (lambda o, y, w: o.layer_norm(o.reshape(y, [40, 32]), [32]), False),
    "a product and a norm's view": (
        lambda o, y, w: (o.linear(y, w), o.exp(o.reshape(y, [40, 32]))), False
    ),
    "a residual": (lambda o, y, w: o.call(linear_act, o.sin(y), w, None, y), False),
    "a product and its residual": (lambda o, y, w: o.call(linear_act, y, w, None, y), False),
    "as weights": (lambda o, y, w: o.linear(w, o.select(y, 0, 0)), False),
    "nobody, a result": (lambda o, y, w: (y, o.linear(y, w)), False),
    "a result's view": (lambda o, y, w: (o.reshape(y, [40, 32]), o.linear(y, w)), False),
}  # fmt: skip


@pytest.mark.parametrize("case", READERS)
def test_what_a_value_is_kept_in(case: str, x, w) -> None:
    read, narrow = READERS[case]
    graph = graph_of(lambda o, x, w: read(o, o.linear(x, w), w), [x, w], NarrowCompute())
    found, _ = run_pass(NarrowCompute(), graph, [(x, w)])
    first = next(n for n in found.nodes() if n.op is narrow_linear)
    assert first.dtype == (BF16 if narrow else torch.float32)


def test_attention_reads_what_it_rounds(x, w) -> None:
    """Queries, keys and values may come in bf16; what is added to the scores may not."""

    def before(o, x, w):
        q, mask = heads(o, o.linear(x, w)), o.linear(x, o.slice(w, 0, 0, 20))
        return o.call(attention, q, q, q, o.reshape(mask, [2, 1, 20, 20]), scale=0.3)

    found, _ = run_pass(NarrowCompute(), graph_of(before, [x, w], NarrowCompute()), [(x, w)])
    dtypes = [n.dtype for n in found.nodes() if n.op is narrow_linear]
    assert dtypes == [BF16, torch.float32]
