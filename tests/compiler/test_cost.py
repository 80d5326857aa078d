"""Costs: exact flops of the products, traffic, views for free, seconds."""

import pytest
import sympy
import torch

from infopt.codegen.kernels.narrow_linear import narrow_linear
from infopt.codegen.kernels.quantized_linear import quantized_gated_linear, quantized_linear
from infopt.codegen.weight_formats.formats import FORMATS
from infopt.compiler.alias import is_view
from infopt.compiler.cost import Cost, compute_dtype, cost_of, graph_seconds, seconds
from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder
from infopt.compiler.target import Target
from infopt.compiler.types import Dim, TensorType

F32 = torch.float32


def tensor(o: Builder, name: str, *shape):
    return o.input(name, TensorType.dense(shape, F32))


def test_products_count_exactly() -> None:
    o = Builder()
    x, w, b = tensor(o, "x", 2, 8, 16), tensor(o, "w", 32, 16), tensor(o, "b", 32)
    linear = cost_of(o.linear(x, w, b))
    assert linear.flops == 2 * 16 * 16 * 32
    assert linear.bytes == 4 * (2 * 8 * 16 + 32 * 16 + 32 + 2 * 8 * 32)
    assert linear.launches == 1
    assert cost_of(o.matmul(x, tensor(o, "m", 2, 16, 4))).flops == 2 * 2 * 8 * 4 * 16
    assert cost_of(o.mm(tensor(o, "a", 3, 5), tensor(o, "c", 5, 7))).flops == 2 * 3 * 5 * 7
    image, kernel = tensor(o, "i", 1, 3, 8, 8), tensor(o, "k", 4, 3, 3, 3)
    conv = o.conv2d(image, kernel)
    assert cost_of(conv).flops == 2 * (4 * 6 * 6) * (3 * 3 * 3)


def test_rows_of_a_linear_layer_come_in_whole_panels() -> None:
    o = Builder()
    w = tensor(o, "w", 32, 16)
    flops = {n: cost_of(o.linear(tensor(o, f"x{n}", n, 16), w)).flops for n in (1, 8, 16, 17, 40)}
    assert {n: f // (2 * 16 * 32) for n, f in flops.items()} == {1: 1, 8: 8, 16: 16, 17: 32, 40: 48}


def test_attention_counts_both_products() -> None:
    o = Builder()
    q, k = tensor(o, "q", 1, 4, 10, 8), tensor(o, "k", 1, 4, 20, 8)
    made = o.call("aten.scaled_dot_product_attention.default", q, k, k)
    assert cost_of(made).flops >= 4 * 4 * 10 * 20 * 8


def test_views_and_leaves_are_free() -> None:
    o = Builder()
    x = tensor(o, "x", 4, 6)
    free = [x, o.permute(x, [1, 0]), o.reshape(x, [24]), o.call("aten.slice.Tensor", x, 0, 1, 3)]
    free.append(o.expand(o.reshape(x, [1, 4, 6]), [5, 4, 6]))
    assert all(cost_of(n) == Cost() for n in free)
    copy = o.reshape(o.permute(x, [1, 0]), [24])
    assert not is_view(copy) and cost_of(copy).bytes == 2 * 4 * 24


def test_expanded_inputs_are_read_once() -> None:
    o = Builder()
    wide = o.expand(tensor(o, "x", 1, 6), [100, 6])
    made = o.add(wide, tensor(o, "y", 100, 6))
    assert cost_of(made).bytes == 4 * (6 + 600 + 600)


def test_symbolic_sizes() -> None:
    s = sympy.Symbol("s0", integer=True, positive=True)
    dims = (Dim(s, 2, None, 128),)
    o = Builder(dims)
    made = o.linear(tensor(o, "x", s, 16), tensor(o, "w", 32, 16))
    assert cost_of(made).flops == 2 * s * 16 * 32
    target = Target.parse("cpu:avx2,cores=2")
    small, large = Dim(s, 2, None, 128), Dim(s, 2, None, 12800)
    assert seconds(cost_of(made), target, "f32", [large]) > seconds(
        cost_of(made), target, "f32", [small]
    )


def test_seconds_is_the_larger_limit_plus_starts() -> None:
    t = Target.parse("cpu:avx2,cores=2")
    work = seconds(Cost(flops=10**9), t)
    traffic = seconds(Cost(bytes=10**9), t)
    assert work == 1 / t.peak["f32"] and traffic == 1 / t.bandwidth
    assert seconds(Cost(10**9, 10**9, 3), t) == max(work, traffic) + 3 * t.launch_cost


def test_graph_seconds_adds_the_nodes() -> None:
    o = Builder()
    x = tensor(o, "x", 64, 64)
    one = Graph((x,), (o.gelu(x),))
    two = Graph((x,), (o.gelu(o.gelu(x)),))
    t = Target.parse("cpu:scalar")
    assert 0 < graph_seconds(one, t) < graph_seconds(two, t)


def test_functions_cost_more_than_arithmetic() -> None:
    o = Builder()
    x = tensor(o, "x", 4, 6)
    for made, each in (
        (o.add(x, x), 1), (o.exp(x), 12), (o.gelu(x), 20), (o.tanh(x), 15), (o.silu(x), 15),
        (o.div(x, x), 4), (o.sqrt(x), 4), (o.rsqrt(x), 4), (o.softmax(x, -1), 16),
        (o.layer_norm(x, [6]), 8), (o.sin(x), 15), (o.pow(x, 3.0), 20),
    ):  # fmt: skip
        assert cost_of(made).flops == 24 * each, made


def test_the_dtype_a_node_calculates_in() -> None:
    o = Builder()
    x = tensor(o, "x", 4, 6)
    narrow = o.call("aten.to.dtype", x, torch.bfloat16)
    assert compute_dtype(o.add(x, x)) is F32
    assert compute_dtype(o.add(narrow, narrow)) is torch.bfloat16
    assert compute_dtype(o.gt(narrow, 0)) is torch.bfloat16
    assert compute_dtype(o.call("aten.to.dtype", x, torch.int64)) is F32


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({}, torch.float32),
        ({"activations": "none"}, torch.float32),
        ({"activations": "int8"}, torch.int8),
        ({"activations": "bf16"}, torch.bfloat16),
    ],
)
def test_the_dtype_of_a_layer_in_few_bits(options: dict, dtype: torch.dtype) -> None:
    o = Builder()
    values, scales = FORMATS["int8"].encode(torch.randn(4, 6))
    sums = FORMATS["int8"].sums(values, scales, 6)
    given = [o.input(f"i{i}", TensorType.of(t)) for i, t in enumerate((values, scales, sums))]
    made = o.call(quantized_linear, tensor(o, "x", 3, 6), *given, format="int8", **options)
    assert compute_dtype(made) is dtype


@pytest.mark.parametrize("gated", [False, True])
def test_layers_in_few_bits_do_the_products_of_whole_ones(gated: bool) -> None:
    o = Builder()
    values, scales = FORMATS["int8"].encode(torch.randn(4, 6))
    given = [values, scales, FORMATS["int8"].sums(values, scales, 6)] * (1 + gated)
    inputs = [o.input(f"i{i}", TensorType.of(t)) for i, t in enumerate(given)]
    op = quantized_gated_linear if gated else quantized_linear
    made = o.call(op, tensor(o, "x", 3, 6), *inputs, format="int8")
    assert cost_of(made).flops == (1 + gated) * 2 * 3 * 4 * 6


def test_narrow_layers_calculate_in_bf16() -> None:
    o = Builder()
    x, w = tensor(o, "x", 3, 6), tensor(o, "w", 4, 6)
    assert compute_dtype(o.call(narrow_linear, x, w, out=torch.float32)) is torch.bfloat16
