"""What counts as equal to eager, and what does not."""

from __future__ import annotations

import torch

from infopt.models.agreement import close, max_error, relative_error, tensors


def test_integers_must_be_equal() -> None:
    one = torch.tensor([1, 2])
    assert close(one, one.clone())
    assert not close(one, one + 1)
    assert not close(one, one.float())


def test_floats_within_the_tolerance_of_the_dtype() -> None:
    x = torch.ones(4)
    assert close(x, x + 1e-6)
    assert not close(x, x + 1e-3)
    assert close(x.bfloat16(), (x + 1e-2).bfloat16())


def test_a_larger_difference_is_equal_where_it_is_no_less_exact() -> None:
    exact = torch.linspace(-1, 1, 2000, dtype=torch.float64)
    noise = torch.randn(2000, generator=torch.Generator().manual_seed(0)) * 1e-3
    eager, other = exact.float() + noise, exact.float() - noise
    assert not close(eager, other)
    assert close(eager, other, exact)
    assert not close(eager, exact.float() + 3 * noise, exact)


def test_places_of_non_finite_numbers_matter() -> None:
    x = torch.tensor([1.0, float("nan"), float("inf")])
    assert close(x, x.clone())
    assert not close(x, x.nan_to_num(), x.double())
    assert max_error(x, x.nan_to_num()) == float("inf")


def test_error_measures() -> None:
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])
    assert max_error(a, b) == 0.5
    assert abs(relative_error(a, b) - 0.1) < 1e-12
    assert max_error(a, b[:1]) == float("inf")
    assert tensors({"x": [a, 3], "y": (b,)}) == [a, b]
