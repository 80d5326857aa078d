"""Integers chosen for the inputs that a weight multiplies."""

from __future__ import annotations

import pytest
import torch

from infopt.codegen.weight_formats.formats import FORMATS
from infopt.codegen.weight_formats.rounding import Moments, rounded_for

N, K = 24, 200  # the last group is not whole


@pytest.fixture
def weight():
    torch.manual_seed(0)
    return torch.randn(N, K)


def seen(x):
    moments = Moments(x.shape[-1])
    moments.add(x)
    return moments


def correlated(rows):
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(K // 5, K, generator=generator)
    return torch.randn(rows, K // 5) @ mixing + 0.1 * torch.randn(rows, K)


@pytest.mark.parametrize("name", FORMATS)
def test_products_move_less_than_with_the_nearest_integers(weight, name):
    codec, x, other = FORMATS[name], correlated(2000), correlated(500)

    def error(encoded):
        return (other @ (codec.decode(*encoded, K) - weight).T).norm()

    assert error(rounded_for(codec, weight, seen(x))[0]) < 0.7 * error(codec.encode(weight))


@pytest.mark.parametrize("name", ["int8", "int4-g32", "lut3"])
def test_what_is_a_grid_already_stays(name):
    codec = FORMATS[name]
    torch.manual_seed(2)
    grid = codec.decode(*codec.encode(torch.randn(N, K)), K)
    found, _ = rounded_for(codec, grid, seen(torch.randn(50, K)))
    torch.testing.assert_close(codec.decode(*found, K), grid, rtol=1e-2, atol=1e-5)


def test_rows_that_are_not_finite_and_columns_without_input_say_nothing(weight):
    codec = FORMATS["int4-g64"]
    x = correlated(300)
    x[:, 7] = 0
    wrong = torch.cat([x, torch.full((1, K), float("nan")), torch.full((1, K), float("inf"))])
    a, b = (rounded_for(codec, weight, seen(v))[0] for v in (x, wrong))
    assert torch.equal(a.values, b.values) and torch.equal(a.scales, b.scales)
    dead = codec.decode(*a, K)[:, 7] - weight[:, 7]
    assert dead.abs().max() < 0.3 * weight.abs().max()  # rounded all the same, or cut


def test_the_same_inputs_give_the_same_integers(weight):
    x = correlated(300)
    for name in ("int8-g32", "lut4"):
        a, b = (rounded_for(FORMATS[name], weight, seen(x))[0] for _ in range(2))
        assert torch.equal(a.values, b.values)


@pytest.mark.parametrize("name", ["int4-g64", "lut3"])
def test_what_is_kept_elsewhere_costs_nothing(weight, name):
    """The others have better factors, and nothing is taken back for what loses nothing."""
    codec, x, other = FORMATS[name], correlated(2000), correlated(500)
    weight[torch.rand(N, K) < 0.01] *= 12
    kept = weight.abs() > 5

    def error(encoded, wanted=None):
        found = codec.decode(*encoded, K)
        if wanted is not None:
            found = torch.where(kept, wanted, found)
        return (other @ (found - weight).T).norm()

    plain, _ = rounded_for(codec, weight, seen(x))
    assert error(*rounded_for(codec, weight, seen(x), kept)) < 0.7 * error(plain)


def test_moments_of_what_follows_a_product():
    torch.manual_seed(4)
    x, a = torch.randn(50, 24) + 1, torch.randn(6, 24)
    before, direct = Moments(24), Moments(6)
    before.add(x)
    direct.add(x @ a.T)
    found = before.through(a)
    assert found.rows == 50
    torch.testing.assert_close(found.sum, direct.sum, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.total, direct.total, rtol=1e-4, atol=1e-3)
