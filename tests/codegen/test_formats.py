"""Formats of stored weights: what is lost, what is exact, what they occupy."""

from __future__ import annotations

import pytest
import torch

from infopt.codegen.weight_formats.formats import FORMATS, format_of, stored_format

ERROR = {
    "int8": 0.012,
    "int4": 0.13,
    "lut4": 0.13,
    "lut3": 0.19,
    "fp8-e4m3": 0.04,
    "fp8-e5m2": 0.08,
}
FLOATS = {"fp8-e4m3": torch.float8_e4m3fn, "fp8-e5m2": torch.float8_e5m2}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 64), (16, 100), (7, 384)])
def test_round_trip(name, shape):
    torch.manual_seed(0)
    format, (n, k) = FORMATS[name], shape
    weight = torch.randn(shape)
    values, scales = format.encode(weight)
    decoded = format.decode(values, scales, k)
    assert decoded.shape == weight.shape
    assert ((decoded - weight).norm() / weight.norm()) <= ERROR[name.split("-g")[0]]
    assert format.bytes(n, k) == values.nbytes + scales.nbytes
    again = format.decode(*format.encode(decoded), k)
    assert (again - decoded).norm() <= 0.01 * weight.norm()


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_and_one_outlier(name):
    format = FORMATS[name]
    zeros = torch.zeros(3, 96)
    assert (format.decode(*format.encode(zeros), 96) == 0).all()
    weight = torch.zeros(3, 96)
    weight[1, 5] = -7.25
    decoded = format.decode(*format.encode(weight), 96)
    torch.testing.assert_close(decoded[1, 5], weight[1, 5], rtol=5e-3, atol=0)
    assert (decoded != 0).sum() == 1


@pytest.mark.parametrize("name", FORMATS)
def test_sums(name):
    torch.manual_seed(1)
    format = FORMATS[name]
    values, scales = format.encode(torch.randn(5, 130))
    sums = format.sums(values, scales, 130)
    if format.group or not format.takes_bytes:
        wanted = format.decode(values, scales, 130).double().sum(-1)
        torch.testing.assert_close(sums.double(), wanted, rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(sums, format.integers(values, 130).double().sum(-1).float())


def test_four_bits_hold_every_integer():
    format = FORMATS["int4-g64"]
    weight = torch.arange(-8, 8).repeat(1, 8).float()
    values, scales = format.encode(weight)
    assert values.shape == (1, 64) and values.dtype == torch.uint8
    assert torch.equal(format.decode(values, scales, 128), weight)
    assert torch.equal(format.integers(values, 128), weight.to(torch.int8))


@pytest.mark.parametrize(
    "most,k,groups,dtype,name",
    [
        (128, 96, 1, torch.float32, "int8"),
        (128, 96, 3, torch.float32, "int8-g32-f32"),
        (8, 256, 2, torch.bfloat16, "int4-g128"),
        (8, 192, 1, torch.float16, "int4-g128-f32"),
        (8, 192, 2, torch.bfloat16, "int4-g32"),  # runs of 96
    ],
)
def test_integers_of_others_are_held_exactly(most, k, groups, dtype, name):
    torch.manual_seed(0)
    integers = torch.randint(-most, most, (16, k), dtype=torch.int8)
    scales = (torch.rand(16, groups) + 0.1).to(dtype)
    codec, factors = format_of(integers, scales)
    assert codec.name == name and stored_format(name) == codec
    values, factors = codec.pack(integers, factors)
    wanted = integers.float() * scales.float().repeat_interleave(k // groups, 1)
    assert torch.equal(codec.decode(values, factors, k), wanted)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("groups", [1, 3])
def test_floats_of_others_are_held_exactly(name, groups):
    torch.manual_seed(0)
    numbers, scales = torch.randn(8, 192).to(FLOATS[name]), torch.rand(8, groups)
    codec, factors = format_of(numbers, scales)
    assert codec.name == name + ("-g64-f32" if groups > 1 else "")
    assert stored_format(codec.name) == codec
    values, factors = codec.pack(numbers, factors)
    wanted = numbers.float() * scales.repeat_interleave(192 // groups, 1)
    assert torch.equal(codec.decode(values, factors, 192), wanted)
    numbers[3, 5] = torch.nan
    assert format_of(numbers, scales) == f"{FLOATS[name]} that are not finite"


@pytest.mark.parametrize("name", FLOATS)
def test_no_float_is_beyond_the_largest(name):
    """Clipping, when factors were fitted or rounded to bf16, ends at the largest."""
    codec, dtype = FORMATS[name + "-g32"], FLOATS[name]
    weight = torch.tensor([[-3e38, 1.0, -0.0, 2e38] + [0.0] * 28])
    values, _ = codec.pack(codec.nearest(weight, torch.ones(1, 1, dtype=torch.bfloat16)), None)
    most = torch.finfo(dtype).max
    assert values.view(dtype)[0, :4].float().tolist() == [-most, 1.0, 0.0, most]


def test_integers_of_others_that_no_format_holds():
    reason = format_of(torch.zeros(4, 64, dtype=torch.int8), torch.ones(4, 4))
    assert reason == "a factor for every 16 weights, expected a multiple of 32"
