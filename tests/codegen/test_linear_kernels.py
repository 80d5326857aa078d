"""Linear layers over panels against torch in float64, on every level this machine runs."""

import pytest
import torch

from tests.codegen.product_kernels import (
    ACTIVATIONS,
    BF16,
    F16,
    F32,
    NAME,
    PANEL,
    ROW,
    SIZES,
    assert_close,
    ceil_div,
    guarded,
    linear_scratch,
    panel_stride,
    random,
    to_panels,
)


@pytest.mark.parametrize("source", [F32, BF16, F16], ids=NAME.get)
@pytest.mark.parametrize("target", [F32, BF16], ids=NAME.get)
def test_pack_and_unpack(kernels, source, target):
    torch.manual_seed(0)
    for m, k in [(1, 1), (2, 3), (3, 2), (15, 31), (16, 32), (17, 33), (31, 16), (33, 127)]:
        x = random(m, k + 3, dtype=source, offset=1)[:, :k]
        x[0, 0], x[m - 1, k - 1] = float("nan"), float("inf")
        expected = to_panels(x, target)
        panels, check = guarded(*expected.shape, dtype=target, offset=1)
        stride = panel_stride(k, target)
        numbers = [m, k, ROW[source], x.stride(0), PANEL[target], stride]
        kernels.run("pack_panels", [x, panels], numbers, ceil_div(m, 16), 0)
        torch.testing.assert_close(panels, expected, rtol=0, atol=0, equal_nan=True)
        check()
        back, check = guarded(m, k, dtype=F32)
        numbers = [m, k, PANEL[target], stride, ROW[F32], k]
        kernels.run("unpack_panels", [panels, back], numbers, ceil_div(m, 16), 0)
        torch.testing.assert_close(back, x.to(target).float(), rtol=0, atol=0, equal_nan=True)
        check()


def run_linear(
    kernels,
    m,
    n,
    k,
    panel,
    weight,
    *,
    out=F32,
    out_panels=False,
    activation=0,
    bias=None,
    gated=False,
    multiplier=None,
    residual=None,
    chunks=(48, 8),
):
    """One linear with the given options (dtypes of the optional operands); checked."""
    x = random(m, k, dtype=panel)
    w = random(n, k + 1, dtype=weight, offset=1)[:, :k]
    up = random(n, k + 1, dtype=weight, offset=1)[:, :k] if gated else None
    b = random(n, dtype=bias, offset=1) if bias else None
    b_up = random(n, dtype=bias) if bias and gated else None
    mul = random(m, n + 2, dtype=multiplier)[:, :n] if multiplier else None
    res = random(m, n + 1, dtype=residual, offset=1)[:, :n] if residual else None

    compute = panel if kernels.level.startswith(("avx512_bf16", "amx")) else F32
    rounded = [None if t is None else t.to(compute).double() for t in (w, up)]
    y = x.double() @ rounded[0].T
    if b is not None:
        y = y + b.double()
    y = ACTIVATIONS[activation](y)
    if gated:
        u = x.double() @ rounded[1].T
        y = y * (u + b_up.double() if b_up is not None else u)
    if mul is not None:
        y = y * mul.double()
    if res is not None:
        y = y + res.double()

    if out_panels:
        shape = to_panels(torch.zeros(m, n), out).shape
        result, check = guarded(*shape, dtype=out)
        out_numbers = [PANEL[out], panel_stride(n, out)]
    else:
        wide, check = guarded(m, n + 5, dtype=out, offset=1)
        result, out_numbers = wide[:, :n], [ROW[out], n + 5]
    numbers = [
        m,
        n,
        k,
        w.stride(0),
        *chunks,
        activation,
        ROW.get(bias, 0),
        ROW.get(multiplier, 0),
        n + 2,
        ROW.get(residual, 0),
        n + 1,
        *out_numbers,
        panel_stride(k, panel),
    ]
    tasks = ceil_div(n, chunks[0]) * ceil_div(ceil_div(m, 16), chunks[1])
    tensors = [to_panels(x, panel), w, up, b, b_up, mul, res, result]
    kernels.run(
        f"linear_{NAME[panel]}_{NAME[weight]}",
        tensors,
        numbers,
        tasks,
        linear_scratch(k, chunks[1], gated),
    )
    check()
    size = k * (1 + 5 * k**0.5) if gated or multiplier else k  # a product of two sums
    if out_panels:
        full = torch.zeros(result.shape[0] * 16, n, dtype=torch.float64)
        full[:m] = y
        if out == F32:
            result = result.transpose(1, 2).reshape(-1, n)
        else:
            result = result.transpose(1, 2).reshape(-1, result.shape[1] * 2)
            assert (result[:, n:] == 0).all(), "the missing half of the last pair is not 0"
            result = result[:, :n]
        assert (result[m:] == 0).all(), "rows beyond M are not 0"
        assert_close(result, full, out, size)
    else:
        assert wide[:, n:].isnan().all(), "wrote into the gap between rows"
        assert_close(result, y, out, size)


COMBINATIONS = [(F32, F32), (F32, BF16), (F32, F16), (BF16, BF16), (BF16, F32)]
combinations = pytest.mark.parametrize(
    "panel,weight", COMBINATIONS, ids=[f"{NAME[p]}_{NAME[w]}" for p, w in COMBINATIONS]
)


@combinations
def test_linear_odd_sizes(kernels, panel, weight):
    torch.manual_seed(1)
    for i, m in enumerate(SIZES):
        for j, n in enumerate(SIZES):
            k = SIZES[(i + 2 * j) % len(SIZES)]
            run_linear(kernels, m, n, k, panel, weight)


@combinations
def test_linear_blocks_and_chunks(kernels, panel, weight):
    """K beyond one cut, several panels and groups per task, chunks that do not divide."""
    torch.manual_seed(2)
    run_linear(kernels, 50, 100, 2049, panel, weight, chunks=(96, 3))
    run_linear(kernels, 100, 70, 1100, panel, weight, chunks=(34, 2), bias=F32)
    run_linear(kernels, 33, 50, 4100, panel, weight, chunks=(48, 1), gated=True)


@combinations
@pytest.mark.parametrize("out", [F32, BF16, F16], ids=NAME.get)
def test_linear_epilogues(kernels, panel, weight, out):
    torch.manual_seed(3)
    for activation in range(len(ACTIVATIONS)):
        run_linear(kernels, 19, 37, 24, panel, weight, out=out, activation=activation, bias=F32)
    run_linear(kernels, 19, 37, 24, panel, weight, out=out, activation=4, gated=True, bias=BF16)
    run_linear(kernels, 40, 64, 33, panel, weight, out=out, residual=out, bias=F16)
    run_linear(kernels, 18, 20, 40, panel, weight, out=out, multiplier=F32, residual=BF16)


@combinations
@pytest.mark.parametrize("out", [F32, BF16], ids=NAME.get)
def test_linear_to_panels(kernels, panel, weight, out):
    torch.manual_seed(4)
    for m, n in [(1, 1), (17, 33), (32, 48), (40, 95)]:
        run_linear(kernels, m, n, 31, panel, weight, out=out, out_panels=True, bias=F32)
    run_linear(
        kernels,
        40,
        95,
        31,
        panel,
        weight,
        out=out,
        out_panels=True,
        activation=2,
        gated=True,
        residual=F32,
        multiplier=BF16,
    )


def test_residual_in_place_and_in_panels(kernels):
    """y += x wᵀ, where the residual is the output itself, row-major and in panels."""
    torch.manual_seed(5)
    m, n, k = 21, 50, 40
    x, w, y = random(m, k), random(n, k), random(m, n)
    expected = y.double() + x.double() @ w.double().T
    for panels in (False, True):
        result = to_panels(y, F32) if panels else y.clone()
        code, stride = (PANEL[F32], n * 16) if panels else (ROW[F32], n)
        numbers = [m, n, k, k, 48, 2, 0, 0, 0, 0, code, stride, code, stride, k * 16]
        tensors = [to_panels(x, F32), w, None, None, None, None, result, result]
        kernels.run("linear_f32_f32", tensors, numbers, 2, linear_scratch(k, 2, False))
        if panels:
            result = result.transpose(1, 2).reshape(-1, n)[:m]
        assert_close(result, expected, F32, k)


def test_activation_accuracy(kernels):
    """y = act(x * 1) over all magnitudes: 4 units in the last place, and IEEE's special values."""
    exponents = torch.linspace(-30, 6.2, 1000, dtype=torch.float64)
    x = torch.cat(
        [
            2**exponents,
            -(2**exponents),
            torch.linspace(-9, 9, 1000).double(),
            torch.tensor([0.0, float("nan"), float("inf"), 1e30, -1e30]),
        ]
    ).float()
    x = x.reshape(-1, 1)
    m, w = len(x), torch.ones(1, 1)
    for activation, function in enumerate(ACTIVATIONS):
        y, expected = torch.empty(m, 1), function(x.double())
        numbers = [m, 1, 1, 1, 48, 200, activation, 0, 0, 0, 0, 0, ROW[F32], 1, 16]
        kernels.run(
            "linear_f32_f32",
            [to_panels(x, F32), w, None, None, None, None, None, y],
            numbers,
            ceil_div(ceil_div(m, 16), 200),
            linear_scratch(1, 200, False),
        )
        # The GELUs multiply x by a number that is exact to one rounding of 1, as torch's are.
        atol = 6e-8 if activation in (2, 3, 5) else 2e-38
        torch.testing.assert_close(
            y.double(),
            expected,
            rtol=4 * 2.0**-23,
            atol=atol,
            equal_nan=True,
            msg=lambda m, a=activation: f"{a}: {m}",
        )
