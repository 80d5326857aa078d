"""Products of bytes, and the rounding of rows to bytes, on every level this machine runs."""

import struct

import pytest
import torch

from infopt.codegen.kernels.stored_calls import ROUNDED_BY_KERNELS
from infopt.codegen.weight_formats.formats import stored_format
from infopt.compiler.integer_weight import quantize_rows
from tests.codegen.product_kernels import (
    BF16,
    F16,
    F32,
    NAME,
    ROW,
    SIZES,
    ceil_div,
    guarded,
    random,
)


def bits_of(number):
    """As it travels in a call."""
    return struct.unpack("q", struct.pack("d", number))[0] if isinstance(number, float) else number


def byte_panels(codes, steps, zeros):
    """The memory of codegen/csrc/byte_panels.h for codes [M, K], steps and zeros [M, 1]."""
    m, k = codes.shape
    panels = ceil_div(m, 16)
    padded = torch.zeros(panels * 16, ceil_div(k, 4) * 4, dtype=torch.uint8)
    padded[:m, :k] = codes.to(torch.uint8)
    ordered = padded.reshape(panels, 16, -1, 4).transpose(1, 2).reshape(-1)
    numbers = torch.zeros(2, panels * 16)
    numbers[0, :m], numbers[1, :m] = steps[:, 0], zeros[:, 0].to(torch.int32).view(F32)
    return torch.cat([ordered, numbers.reshape(-1).view(torch.uint8)])


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=NAME.get)
def test_quantize_panels(kernels, dtype):
    """Codes, steps and zero points are those of the reference, to the bit, in every rounding."""
    torch.manual_seed(20)
    for m, k in [(1, 1), (3, 2), (17, 5), (16, 64), (31, 67), (2, 200), (40, 129)]:
        x = random(m, k + 3, dtype=dtype, offset=1)[:, :k]
        for row, value in zip(range(1, m), (0.0, 3.5, -2.0, 1e-38), strict=False):
            x[row] = value
        for number, rounding in enumerate(ROUNDED_BY_KERNELS):
            if dtype is not F32 and "per-token" in rounding:
                continue
            fixed = (0.25, 100) if rounding == "int8-static" else ()  # no rounding before codes
            codes, steps, zeros = quantize_rows(x, rounding, *fixed)
            if number == 0:  # rows of zeros, whatever their step is
                steps[x.float().abs().amax(-1) < 1e-35] = 0
            expected = byte_panels(codes, steps, zeros)
            found = torch.full_like(expected, 77)
            numbers = [m, k, ROW[dtype], k + 3, number, *(bits_of(v) for v in fixed)]
            kernels.run("quantize_panels", [x, found], numbers, ceil_div(m, 16), 0)
            assert torch.equal(found, expected), (m, k, rounding)


def run_bytes(kernels, codes, weight, *, zeros=None, up=None, out=F32, chunks=(48, 8)):
    """Products of bytes [M, K] with int8 [N, K]: exact but for the scaling of the result."""
    (m, k), n = codes.shape, weight.shape[0]
    zeros = torch.randint(0, 256, (m, 1)).float() if zeros is None else zeros
    steps, scales, up_scales = torch.rand(m, 1) + 0.5, torch.rand(n), torch.rand(n)
    bias, residual = random(n), random(m, n + 1, offset=1)[:, :n]

    def product(w, scale):
        exact = (codes.long() - zeros.long()) @ w.long().T
        return exact.double() * steps.double() * scale.double()

    expected = product(weight, scales)
    size = expected.abs()
    expected = expected + bias.double()
    size = size + bias.abs()
    if up is not None:
        other = product(up, up_scales)
        expected, size = torch.relu(expected) * other, size * other.abs()
    expected, size = expected + residual.double(), size + residual.abs()
    y, check = guarded(m, n, dtype=out, offset=1)
    sums = [None if w is None else w.sum(-1, dtype=torch.int32).float() for w in (weight, up)]
    pointers = [byte_panels(codes, steps, zeros), weight, up, bias, None, None, residual, y]
    pointers += [scales, up_scales if up is not None else None, *sums]
    numbers = [m, n, k, weight.stride(0), *chunks, 0 if up is None else 1, ROW[F32], 0, 0]
    numbers += [ROW[F32], n + 1, ROW[out], n, ceil_div(k, 4) * 64]
    tasks = ceil_div(n, chunks[0]) * ceil_div(ceil_div(m, 16), chunks[1])
    scratch = 6144 * chunks[1] * (1 + (up is not None)) + 96 * (
        min(ceil_div(k, 64) * 64, 4096) + 64
    )
    kernels.run("linear_bytes", pointers, numbers, tasks, scratch)
    check()
    limit = 8 * 2.0**-24 * size + {F32: 0, BF16: 2.0**-8}[out] * expected.abs()
    wrong = ~((y.double() - expected).abs() <= limit)
    assert not wrong.any(), f"m={m} n={n} k={k}: {int(wrong.sum())} of {wrong.numel()} differ"


def bytes_of(*shape, low, high):
    return torch.randint(low, high + 1, shape).to(torch.uint8 if low == 0 else torch.int8)


def test_linear_bytes_odd_sizes(kernels):
    torch.manual_seed(21)
    for i, m in enumerate(SIZES):
        for j, n in enumerate(SIZES):
            k = [1, 3, 4, 5, 63, 64, 65, 130, 259][(i + 2 * j) % 9]
            weight = bytes_of(n, k + 3, low=-127, high=127)[:, :k]
            run_bytes(kernels, bytes_of(m, k, low=0, high=255), weight)


def test_linear_bytes_blocks_gates_and_bf16(kernels):
    """K beyond one cut of a panel, several panels and groups of rows, chunks that do not divide."""
    torch.manual_seed(22)
    codes, weight = bytes_of(50, 4100, low=0, high=255), bytes_of(150, 4100, low=-127, high=127)
    run_bytes(kernels, codes, weight, chunks=(96, 3))
    run_bytes(kernels, codes[:33], weight[:70], up=weight[80:], chunks=(34, 2), out=BF16)


@pytest.mark.parametrize("low,high", [(127, 127), (-127, -127), (-127, 127)])
def test_linear_bytes_never_saturate(kernels, low, high):
    """The largest sums there are, in 16 bits of two neighbours and in 32 of a row."""
    torch.manual_seed(23)
    k = 65536 if (low, high) != (-127, 127) else 8192
    weight = torch.where(torch.rand(18, k) < 0.5, low, high).to(torch.int8)
    zeros = torch.tensor([[0.0], [255.0], [128.0]])
    codes = torch.tensor([[255], [0], [255]], dtype=torch.uint8).expand(3, k)
    run_bytes(kernels, codes, weight, zeros=zeros, chunks=(48, 1))


@pytest.mark.parametrize(
    "format", ["int8-g32", "int8-g64", "int4-g64", "int4-g128-f32", "lut4", "lut3-g64"]
)
def test_groups_of_bytes_on_tiles(kernels, format):
    """What tests/codegen/test_quantized_kernels.py does where there are tiles."""
    if kernels.level != "amx_emulated":
        pytest.skip("the other levels run in test_quantized_kernels.py")
    torch.manual_seed(24)
    codec = stored_format(format)
    for m, n, k in [(1, 1, 1), (17, 40, 130), (40, 100, 4400)]:
        codes, steps, zeros = quantize_rows(random(m, k))
        values, scales = codec.encode(random(n, k))
        sums, y = codec.sums(values, scales, k), torch.empty(m, n)
        pointers = [byte_panels(codes, steps, zeros), values, *[None] * 5, y]
        numbers = [m, n, k, values.stride(0), 96, 2, *[0] * 6, ROW[F32], n, ceil_div(k, 4) * 64]
        kernels.run(
            "linear_stored_bytes",
            [*pointers, scales, None, sums, None],
            [*numbers, codec.layout, codec.group, scales.stride(0), scales.itemsize],
            ceil_div(n, 96) * ceil_div(ceil_div(m, 16), 2),
            6144 * 2 + 96 * (min(ceil_div(k, 64) * 64, 4096) + 64),
        )
        x = (codes.double() - zeros.double()) * steps.double()
        expected = x @ codec.decode(values, scales, k).double().T
        assert (y - expected).norm() <= 1e-5 * expected.norm(), (m, n, k)
