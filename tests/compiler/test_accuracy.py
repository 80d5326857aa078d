"""Accuracy contracts: what passes, what does not, and the reasons."""

import math

import pytest
import torch

from infopt.compiler.accuracy import Bounded, Close, Error, Exact, compare


def noisy(x: torch.Tensor, steps: float) -> torch.Tensor:
    return (x.double() * (1 + steps * torch.finfo(x.dtype).eps)).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_allows_rounding_only(dtype: torch.dtype) -> None:
    x = torch.randn(100, dtype=dtype)
    assert Exact().accepts(x, x.clone()) is None
    assert Exact().accepts(x, noisy(x, 4)) is None
    reason = Exact().accepts(x, noisy(x, 1000))
    assert reason is not None and "rounding" in reason


def test_exact_allows_another_order_of_a_long_sum() -> None:
    a, b = torch.randn(64, 3072), torch.randn(3072, 64)
    other = sum(a[:, i : i + 64] @ b[i : i + 64] for i in range(0, 3072, 64))
    assert Exact().accepts(a @ b, other) is None


def test_exact_in_bf16_sees_one_wrong_element() -> None:
    x = torch.randn(256).bfloat16()
    assert Exact().accepts(x, noisy(x, 1)) is None
    y = x.clone()
    y[17] += 1
    assert Exact().accepts(x, y) is not None


def test_exact_refuses_the_tanh_form_of_gelu() -> None:
    x = torch.randn(1000)
    gelu = torch.nn.functional.gelu
    assert Exact().accepts(gelu(x), gelu(x, approximate="tanh")) is not None
    assert Close(5e-3, 5e-3).accepts(gelu(x), gelu(x, approximate="tanh")) is None


def test_a_float64_reference_excuses_what_is_not_worse() -> None:
    exact = torch.randn(2000, dtype=torch.float64)
    expected = (exact + 1e-4 * torch.randn(2000)).float()
    actual = (exact + 1e-4 * torch.randn(2000)).float()
    assert Exact().accepts(expected, actual) is not None
    assert Exact().accepts(expected, actual, exact) is None
    assert Exact().accepts(expected, actual + 1e-3, exact) is not None


def test_integers_and_bools_are_equal_or_wrong() -> None:
    x = torch.arange(10)
    assert Exact().accepts(x, x.clone()) is None
    assert "1 of 10" in str(Exact().accepts(x, x.clone().index_fill(0, torch.tensor([3]), 7)))
    assert Exact().accepts(x > 5, x > 4) is not None


@pytest.mark.parametrize("contract", [Exact(), Close(1.0, 1.0), Bounded("max_abs", 1e9)])
def test_nan_infinities_shape_and_dtype_must_agree(contract) -> None:
    x = torch.tensor([1.0, math.nan, math.inf, -math.inf])
    assert contract.accepts(x, x.clone()) is None
    for wrong in (torch.tensor([math.nan, 1.0, math.inf, -math.inf]), x.abs(), torch.zeros(4)):
        assert "in other places" in str(contract.accepts(x, wrong))
    assert "shape" in str(contract.accepts(x, x[:2]))
    assert "dtype" in str(contract.accepts(x, x.double()))


def test_empty_and_zero_tensors() -> None:
    assert Exact().accepts(torch.zeros(0, 3), torch.zeros(0, 3)) is None
    assert Exact().accepts(torch.zeros(5), torch.zeros(5)) is None
    assert Exact().accepts(torch.zeros(5), torch.full((5,), 1e-3)) is not None
    assert compare(torch.zeros(0), torch.zeros(0)) == Error()


def test_compare_measures() -> None:
    e = torch.tensor([3.0, 4.0])
    error = compare(e, torch.tensor([3.0, 4.5]))
    assert error.max_abs == 0.5 and error.max_rel == 0.125
    assert error.rms_rel == pytest.approx(0.1) and 0 < error.cosine < 0.01
    assert compare(e, e) == Error() and Exact().describe(e, e) == ""
    assert "0.5" in Exact().describe(e, torch.tensor([3.0, 4.5]))


def test_bounded() -> None:
    e = torch.randn(50)
    assert Bounded("rms_rel", 0.02).accepts(e, e * 1.01) is None
    assert Bounded("rms_rel", 0.001).accepts(e, e * 1.01) == "rms_rel is 0.01, the limit is 0.001"
    with pytest.raises(ValueError, match="cosine"):
        Bounded("psnr", 1.0)
