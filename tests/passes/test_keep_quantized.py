"""Layers whose weights a model brings as integers run on those."""

from __future__ import annotations

import pytest
import torch

import infopt
from infopt.codegen.kernels.quantized_embedding import quantized_embedding
from infopt.codegen.kernels.quantized_linear import quantized_gated_linear, quantized_linear
from infopt.compiler.graph import Graph, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.integer_weight import byte_rows, integer_weight
from infopt.compiler.interpret import interpret
from infopt.compiler.testing import run_pass
from infopt.compiler.types import TensorType
from infopt.passes.keep_quantized import KeepQuantized
from infopt.passes.narrow_compute import NarrowCompute

K, N = 128, 64


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(5, K)


def graph_with(x, build, groups=1, most=127, count=1, scales=None):
    """build(o, x, *matrices) over matrices of integers up to `most`."""
    torch.manual_seed(1)
    o, consts, matrices = Builder(), {}, []
    node = o.input("x", TensorType.of(x))
    for i in range(count):
        consts[f"w{i}_integers"] = torch.randint(-most, most + 1, (N, K), dtype=torch.int8)
        factors = torch.rand(N, groups) / 50 if scales is None else scales
        consts[f"w{i}_scales"] = factors
        parts = [o.const(n, TensorType.of(consts[n])) for n in list(consts)[-2:]]
        matrices.append(o.call(integer_weight, *parts, out=torch.float32))
    return Graph((node,), (build(o, node, *matrices),), consts, stage=Stage.FUSE)


@pytest.mark.parametrize(
    "groups,most,scales,format",
    [
        (1, 127, None, "int8"),
        (4, 127, None, "int8-g32-f32"),
        (4, 7, None, "int4-g32-f32"),
        (2, 7, torch.rand(N, 2).bfloat16(), "int4-g64"),
        (1, 7, None, "int4-g128-f32"),
        (1, 7, torch.rand(N, 1).half(), "int4-g128-f32"),
    ],
)
def test_rewrites(x, groups, most, scales, format):
    start = graph_with(x, lambda o, x, w: o.linear(x, w), groups, most, scales=scales)
    found, report = run_pass(KeepQuantized(), start, [(x,)])
    [node] = [n for n in found.nodes() if n.op is quantized_linear]
    assert node.attr("format") == format and node.attr("activations") == "none"
    assert [(s.where, s.reason) for s in report.applied] == [("w0", format)]
    assert sorted(found.consts) == ["w0_scales_", "w0_sums", "w0_values"]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("groups,format", [(1, ""), (2, "-g64-f32")])
def test_floats_of_8_bits(x, dtype, groups, format):
    start = graph_with(x, lambda o, x, w: o.linear(x, w), groups)
    start.consts["w0_integers"] = start.consts["w0_integers"].to(dtype)
    o = Builder()
    parts = [o.const(n, TensorType.of(t)) for n, t in start.consts.items()]
    made = o.linear(start.inputs[0], o.call(integer_weight, *parts, out=torch.float32))
    start = Graph(start.inputs, (made,), start.consts, stage=Stage.FUSE)
    found, report = run_pass(KeepQuantized(), start, [(x,)])
    kind = "e4m3" if dtype is torch.float8_e4m3fn else "e5m2"
    assert [(s.where, s.reason) for s in report.applied] == [("w0", f"fp8-{kind}{format}")]
    torch.testing.assert_close(interpret(found, [x])[0], interpret(start, [x])[0])


def test_accuracy(x):
    def build(o, x, gate, up):
        return o.call("gated_linear", o.call(byte_rows, x), gate, up, None, None, activation="silu")

    start = graph_with(x, build, 4, 7, count=2)
    found, _ = run_pass(KeepQuantized(), start, [(x,)])
    [node] = [n for n in found.nodes() if n.op is quantized_gated_linear]
    assert node.attr("activations") == "int8" and byte_rows not in {n.op for n in found.nodes()}
    torch.testing.assert_close(interpret(found, [x])[0], interpret(start, [x])[0])


def test_declines(x):
    start = graph_with(x, lambda o, x, w: o.linear(x, w), groups=8)
    found, report = run_pass(KeepQuantized(), start, [(x,)])
    reason = "a factor for every 16 weights, expected a multiple of 32"
    assert [s.reason for s in report.declined] == [reason]
    assert (
        list(found.consts) == ["w0_decoded"] and found.consts["w0_decoded"].dtype is torch.float32
    )


def test_what_is_no_layer_gets_the_matrix(x):
    start = graph_with(x, lambda o, x, w: o.add(o.linear(x, w), o.sum(w)))
    found, _ = run_pass(KeepQuantized(), start, [(x,)])
    assert "w0_decoded" in found.consts and quantized_linear in {n.op for n in found.nodes()}
    torch.testing.assert_close(interpret(found, [x])[0], interpret(start, [x])[0])


def test_idempotent(x):
    start = graph_with(x, lambda o, x, w: o.linear(x, w))
    found, _ = run_pass(KeepQuantized(), start, [(x,)])
    assert run_pass(KeepQuantized(), found, [(x,)])[0] is found


def test_gain():
    """Always in the list: a model that comes as integers asked for it."""
    names = [p.name for p in infopt.default_passes(weights="int8")]
    assert names.index("keep-quantized") < names.index("quantize-weights")


def test_rows_rounded_by_the_formula_of_their_model_stay_f32(x):
    """compute="bf16" would give that formula other numbers: a step off, not 2^-9."""

    def build(o, x, w):
        hidden = o.linear(x, o.cat([w, w], 0))
        return o.linear(o.call(byte_rows, hidden, rounding="int8-symmetric"), w)

    start = graph_with(x, build)
    kept, _ = run_pass(KeepQuantized(), start, [(x,)])
    found, _ = run_pass(NarrowCompute(), kept, [(x,)])
    [node] = [n for n in found.nodes() if n.op is quantized_linear]
    assert node.attr("activations") == "int8-symmetric" and node.args[0].dtype is torch.float32


class Packed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("codes", torch.randint(0, 16, (N, K), dtype=torch.uint8))
        self.scales = torch.nn.Parameter(torch.rand(N, 2).bfloat16().float())
        self.bias = torch.nn.Parameter(torch.randn(N))

    def forward(self, x):
        integers = (self.codes.float() - 8).reshape(N, 2, -1) * self.scales[..., None]
        return torch.nn.functional.linear(x, integers.reshape(N, K), self.bias)


def test_what_the_format_was_chosen_by_is_held_and_the_rest_can_be_exchanged(x):
    """Other factors may need more bits than the format has: no silent rounding."""
    torch.manual_seed(3)
    model = Packed().eval()
    compiled = infopt.compile(model, (x,))
    assert quantized_linear in {n.op for n in compiled.graph.nodes()}
    with torch.no_grad():
        model.bias += 1
        compiled.load_weights(model.state_dict())
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
        with pytest.raises(infopt.WeightsMismatch, match="scales: other values"):
            compiled.load_weights({"scales": model.scales * 1.01})


@pytest.mark.parametrize("groups,most,format", [(1, 127, "int8"), (4, 7, "int4-g32-f32")])
def test_rows_of_a_table(groups, most, format):
    ids = torch.randint(0, N, (3, 5))
    start = graph_with(ids, lambda o, x, w: o.embedding(w, x), groups, most)
    found, report = run_pass(KeepQuantized(), start, [(ids,)])
    [node] = [n for n in found.nodes() if n.op is quantized_embedding]
    assert node.attr("width") == K and [s.reason for s in report.applied] == [format]
    torch.testing.assert_close(interpret(found, [ids])[0], interpret(start, [ids])[0])


def gate_and_up(o, x, gate, up):
    return o.call("gated_linear", x, gate, up, None, None, activation="silu")


def test_one_product_has_one_format(x):
    start = graph_with(x, gate_and_up, 4, 7, count=2)
    start.consts["w1_integers"] = torch.randint(-127, 128, (N, K), dtype=torch.int8)
    found, report = run_pass(KeepQuantized(), start, [(x,)])
    assert [(s.where, s.applied, s.reason) for s in report.sites] == [
        ("w0 and w1", False, "one product of two formats, int4-g32-f32 and int8-g32-f32")
    ]
    assert sorted(found.consts) == ["w0_decoded", "w1_decoded"]
    torch.testing.assert_close(interpret(found, [x])[0], interpret(start, [x])[0])


def test_integers_that_are_inputs_stay(x):
    o, scales = Builder(), torch.rand(N, 1)
    node = o.input("x", TensorType.of(x))
    integers = o.input("q", TensorType.dense((N, K), torch.int8))
    matrix = o.call(
        integer_weight, integers, o.const("s", TensorType.of(scales)), out=torch.float32
    )
    start = Graph((node, integers), (o.linear(node, matrix),), {"s": scales}, stage=Stage.FUSE)
    found, report = run_pass(KeepQuantized(), start)
    assert [(s.applied, s.reason) for s in report.sites] == [
        (False, "its integers are not constants")
    ]
    assert integer_weight in {n.op for n in found.nodes()}
