"""Products of few rows against torch in float64, on every level this machine runs."""

import pytest
import torch
import torch.nn.functional as F

from tests.codegen.product_kernels import (
    ACTIVATIONS,
    BF16,
    F16,
    F32,
    NAME,
    ROW,
    assert_close,
    ceil_div,
    guarded,
    linear_scratch,
    random,
    to_panels,
)


def few_numbers(m, n, k, x, w, chunk, bias, activation, residual, y):
    return [
        m,
        n,
        k,
        w.stride(0),
        chunk,
        0,
        activation,
        ROW.get(bias, 0),
        0,
        0,
        ROW.get(residual, 0),
        n,
        ROW[y.dtype],
        n,
        x.stride(0),
        ROW[x.dtype],
    ]


@pytest.mark.parametrize("weight", [F32, BF16, F16], ids=NAME.get)
@pytest.mark.parametrize("token", [F32, BF16, F16], ids=NAME.get)
def test_few_rows(kernels, weight, token):
    torch.manual_seed(6)
    for m in [1, 2, 3, 4, 5, 6, 7, 8, 9, 17]:
        for n, k in [(1, 1), (15, 33), (33, 16), (40, 127), (16, 1000)]:
            x = random(m, k + 1, dtype=token, offset=1)[:, :k]
            w = random(n, k + 2, dtype=weight, offset=1)[:, :k]
            b, res = random(n), random(m, n, dtype=weight)
            y, check = guarded(m, n, dtype=token)
            expected = F.gelu(x.double() @ w.double().T + b.double()) + res.double()
            numbers = few_numbers(m, n, k, x, w, 32, F32, 2, weight, y)
            scratch = 4 * m * (ceil_div(k, 32) * 32 + 32)
            kernels.run(
                f"few_rows_{NAME[weight]}",
                [x, w, None, b, None, None, res, y],
                numbers,
                ceil_div(n, 32),
                scratch,
            )
            check()
            assert_close(y, expected, token, k, f"m={m} n={n} k={k}")


def test_few_rows_gated(kernels):
    torch.manual_seed(7)
    m, n, k = 3, 50, 100
    x, w, up, y = random(m, k), random(n, k), random(n, k), torch.empty(m, n)
    expected = F.silu(x.double() @ w.double().T) * (x.double() @ up.double().T)
    numbers = few_numbers(m, n, k, x, w, 16, None, 4, None, y)
    kernels.run(
        "few_rows_f32",
        [x, w, up, None, None, None, None, y],
        numbers,
        ceil_div(n, 16),
        4 * m * (128 + 32),
    )
    assert_close(y, expected, F32, k * (1 + 5 * k**0.5))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_not_finite_propagates(kernels, bad):
    """A bad token or weight reaches exactly the outputs it reaches in torch."""
    torch.manual_seed(8)
    m, n, k = 18, 30, 37
    for activation, function in enumerate(ACTIVATIONS):
        x, w, y = random(m, k), random(n, k), torch.empty(m, n)
        x[17, 36], w[29, 0] = bad, bad
        expected = function(x.double() @ w.double().T)
        numbers = [m, n, k, k, 48, 2, activation, 0, 0, 0, 0, 0, ROW[F32], n, k * 16]
        kernels.run(
            "linear_f32_f32",
            [to_panels(x, F32), w, None, None, None, None, None, y],
            numbers,
            1,
            linear_scratch(k, 2, False),
        )
        torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4, equal_nan=True)
        kernels.run(
            "few_rows_f32",
            [x, w, None, None, None, None, None, y],
            few_numbers(m, n, k, x, w, 32, None, activation, None, y),
            1,
            4 * m * 96,
        )
        torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4, equal_nan=True)
