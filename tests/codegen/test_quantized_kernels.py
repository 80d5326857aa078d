"""Kernels of linear layers with stored weights against their references, on every level."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from infopt.codegen.kernels.quantized_linear import quantized_gated_linear, quantized_linear
from infopt.codegen.kernels.stored_calls import ROUNDED_BY_KERNELS
from infopt.codegen.load import lower_for, program
from infopt.codegen.weight_formats.formats import FORMATS, stored_format
from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType
from infopt.passes.quantizing import no_kernel
from tests.codegen.kernel_call import every_level

# rows, columns, features: few and many rows, and no multiple of anything
SIZES = [
    (1, 64, 16),
    (2, 100, 33),
    (5, 37, 19),
    (8, 384, 48),
    (16, 4, 3),
    (37, 130, 77),
    (20, 4160, 5),
]
LIMIT = {"none": 1e-5, "int8": 1e-5, "bf16": 4e-3}
# what somebody else chose has factors of 32 bits
KEPT = ("int4-g32-f32", "int8-g128-f32")
# with a factor for a row and for a group; other groups are other numbers
TABLES = ("lut4", "lut3-g64")
INTEGERS = tuple(name for name in FORMATS if name.startswith("int"))
FLOATS = ("fp8-e4m3", "fp8-e5m2-g64", "fp8-e4m3-g32-f32")
every_format = pytest.mark.parametrize("format", (*INTEGERS, *KEPT, *TABLES, *FLOATS))
every_activations = pytest.mark.parametrize("activations", LIMIT)


def stored(format, w):
    codec = stored_format(format)
    values, scales = codec.encode(w)
    return values, scales, codec.sums(values, scales, w.shape[1])


def native(op, args, attrs, level):
    """The op's kernel on a level; fails where torch would have to run it."""
    o = Builder()
    nodes = [None if a is None else o.input(f"x{i}", TensorType.of(a)) for i, a in enumerate(args)]
    out = o.call(op, *nodes, **attrs)
    lowered = lower_for(
        Graph(tuple(n for n in nodes if n is not None), (out,)), Target.parse(f"cpu:{level}")
    )
    assert lowered.report.aten_nodes == 0, lowered.report
    return program(lowered, 2)([a for a in args if a is not None])[0]


def distance(found, wanted):
    return (
        (found.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-9)
    ).item()


@every_level
@every_format
@every_activations
def test_equals_the_reference(level, format, activations):
    if format in FLOATS and activations == "int8":
        pytest.skip("not a product of bytes")
    torch.manual_seed(0)
    for m, k, n in SIZES:
        x, weight = torch.randn(m, k), stored(format, torch.randn(n, k) / 8)
        attrs = {"format": format, "activations": activations, "activation": "gelu"}
        args = (x, *weight, torch.randn(n), torch.randn(m, n))
        found, wanted = (
            native(quantized_linear, args, attrs, level),
            quantized_linear(*args, **attrs),
        )
        assert distance(found, wanted) <= LIMIT[activations], (m, k, n)


@every_level
@pytest.mark.parametrize("format", [name for name in INTEGERS if name.startswith("int4")])
@pytest.mark.parametrize("m", [1, 2, 20])
def test_the_largest_sums_of_4_bits_are_exact(level, format, m):
    """Every activation is the byte 255, every integer -8 or 7: the sums that might not fit."""
    weight = stored(format, torch.randn(33, 320))
    values = weight[0].view(torch.uint8)
    values[::2], values[1::2] = 0x00, 0xFF
    sums = stored_format(format).sums(weight[0], weight[1], 320)
    args, attrs = (torch.full((m, 320), 255.0), *weight[:2], sums), {"format": format}
    attrs["activations"] = "int8"
    found, wanted = native(quantized_linear, args, attrs, level), quantized_linear(*args, **attrs)
    assert distance(found, wanted) <= LIMIT["int8"]


@every_level
@pytest.mark.parametrize("format", ["int8", "int4-g32", "lut4-g128", "lut3"])
@every_activations
def test_gates_and_bf16(level, format, activations):
    torch.manual_seed(1)
    for m in (3, 20):
        x = torch.randn(m, 100).bfloat16()
        gate, up = (stored(format, torch.randn(50, 100) / 8) for _ in range(2))
        attrs = {"format": format, "activations": activations, "out": torch.bfloat16}
        args = (x, *gate, *up, torch.randn(50), torch.randn(50))
        found = native(quantized_gated_linear, args, attrs, level)
        wanted = quantized_gated_linear(*args, **attrs)
        assert found.dtype == torch.bfloat16
        assert distance(found, wanted) <= 8e-3


@every_level
@pytest.mark.parametrize("rounding", ROUNDED_BY_KERNELS[1:4])
def test_rows_rounded_as_torchao_rounds_them(level, rounding):
    """Every code and step is the reference's, so that only the order of sums is another."""
    torch.manual_seed(2)
    dtypes = (torch.float32,) if "per-token" in rounding else (torch.float32, torch.bfloat16)
    for m, dtype, format in itertools.product(
        (5, 37), dtypes, ("int8", "int8-g32", "int4-g64-f32")
    ):
        x, weight = torch.randn(m, 200).to(dtype), stored(format, torch.randn(33, 200) / 8)
        x[1], x[2], x[3, 7] = 0, x[2] * 1e-7, torch.nan  # zeros; steps below the least; NaN
        attrs = {"format": format, "activations": rounding}
        found = native(quantized_linear, (x, *weight), attrs, level)
        wanted = quantized_linear(x, *weight, **attrs)
        assert wanted[3].isnan().all() and found[3].isnan().all()
        keep = torch.arange(m) != 3
        assert distance(found[keep], wanted[keep]) <= 1e-6, (m, dtype, format)


@every_level
@pytest.mark.parametrize("format", ["fp8-e4m3", "fp8-e5m2"])
def test_every_float_of_8_bits(level, format):
    """What has the least exponents too: each is multiplied by 1 and by nothing else, exactly."""
    codec = stored_format(format)
    values = torch.arange(256, dtype=torch.uint8)
    wanted = codec.integers(values[None], 256)[0]
    values = values[wanted.abs() <= codec.largest, None].expand(-1, 64)
    wanted = codec.integers(values, 64)[:, :1]
    weight = (values.contiguous(), torch.ones(len(values), 1), torch.zeros(len(values)))
    attrs = {"format": format, "activations": "none"}
    for rows in (3, 64):  # few and many
        places = torch.arange(rows) % 64
        found = native(quantized_linear, (torch.eye(64)[places], *weight), attrs, level)
        assert torch.equal(found, wanted.T.expand(rows, -1))


def test_rows_in_bytes_times_floats_have_no_kernel():
    o, weight = Builder(), stored("fp8-e4m3-g32", torch.randn(33, 64))
    nodes = [
        o.input(f"x{i}", TensorType.of(a)) for i, a in enumerate((torch.randn(5, 64), *weight))
    ]
    made = o.call(quantized_linear, *nodes, format="fp8-e4m3-g32", activations="int8")
    assert no_kernel(made, Target.parse("cpu:avx2")) == "rows in bytes times fp8-e4m3-g32"


def test_a_rounding_that_is_all_in_bf16_has_no_kernel():
    o, weight = Builder(), stored("int8", torch.randn(33, 64))
    args = (torch.randn(5, 64).bfloat16(), *weight)
    nodes = [o.input(f"x{i}", TensorType.of(a)) for i, a in enumerate(args)]
    made = o.call(quantized_linear, *nodes, activations="int8-affine-per-token")
    reason = "rows of torch.bfloat16 rounded as int8-affine-per-token"
    assert no_kernel(made, Target.parse("cpu:avx2")) == reason


@every_level
@pytest.mark.parametrize("rows", [2, 24])
def test_extreme_integers_do_not_saturate(level, rows):
    k = 8192
    x = torch.full((rows, k), 255.0)
    x[1] *= -1
    values = torch.full((20, k), 127, dtype=torch.int8)
    values[1::2] = -127
    scales = torch.full((20, 1), 0.5)
    weight = (values, scales, FORMATS["int8"].sums(values, scales, k))
    attrs = {"format": "int8", "activations": "int8"}
    found = native(quantized_linear, (x, *weight), attrs, level)
    exact = x.double() @ (values.double() * scales.double()).T  # 255 is a whole number of steps
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)


@every_level
@pytest.mark.parametrize("rows", [8, 24])
def test_rows_that_are_special(level, rows):
    """NaN and infinities spoil their own row only; constant rows and rows of zeros are exact."""
    torch.manual_seed(2)
    x = torch.randn(rows, 70)
    x[0, 3], x[1, 69], x[2], x[3], x[4], x[5] = float("nan"), float("inf"), 0.0, 3.5, -2.0, 1e-40
    weight = stored("int8", torch.randn(32, 70))
    attrs = {"format": "int8", "activations": "int8"}
    found = native(quantized_linear, (x, *weight), attrs, level)
    assert found[:2].isnan().all() and not found[2:].isnan().any()
    assert (found[2] == 0).all() and (found[5] == 0).all()
    torch.testing.assert_close(
        found[2:], quantized_linear(x, *weight, **attrs)[2:], rtol=1e-5, atol=1e-5
    )


@settings(max_examples=30)
@given(
    m=st.integers(1, 40),
    k=st.integers(1, 200),
    n=st.integers(1, 70),
    format=st.sampled_from(list(FORMATS)),
    activations=st.sampled_from(["none", "int8"]),
    step=st.sampled_from([1, 2]),
)
def test_any_size_and_row_stride(m, k, n, format, activations, step):
    assume(activations == "none" or stored_format(format).takes_bytes)
    torch.manual_seed(m * 1000 + k)
    x = torch.randn(m * step, k + 3)[::step, :k]
    weight = stored(format, torch.randn(n, k))
    attrs = {"format": format, "activations": activations}
    found = native(quantized_linear, (x, *weight), attrs, Target.detect().level)
    assert distance(found, quantized_linear(x, *weight, **attrs)) <= 1e-5
