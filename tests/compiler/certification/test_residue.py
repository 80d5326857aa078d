"""Arithmetic modulo the primes against Python's integers and fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from infopt.compiler.certification.residue import (
    HUGE,
    G,
    P,
    Q,
    bilinear,
    inverse,
    mixed,
    number,
    numbers,
    power,
)

X = torch.randint(0, P, (5, 7), generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, P, (7, 3), generator=torch.Generator().manual_seed(1))


def test_the_primes() -> None:
    assert P == 2 * Q + 1
    for n in (P, Q):
        assert all(n % d for d in range(2, math.isqrt(n) + 1))
    assert pow(G, Q, P) == 1 and G != 1


@pytest.mark.parametrize("prime", [P, Q])
@pytest.mark.parametrize("value", [0.5, -3.0, 1 / 3, 0.044715, 1e-5, 1e-12, 0.0, 123456.0, 1 / 768])
def test_numbers_are_the_fractions_they_were_written_for(value: float, prime: int) -> None:
    near = Fraction(value).limit_denominator(1000)
    exact = near if math.isclose(near, value, rel_tol=1e-7) else Fraction(f"{value:.7g}")
    assert number(value, prime) * exact.denominator % prime == exact.numerator % prime
    assert number(float(torch.tensor(value)), prime) == number(value, prime)  # rounded to f32


@pytest.mark.parametrize("prime", [P, Q])
@pytest.mark.parametrize("n", [2, 8, 12, 80, 128, 5 / 7])
def test_roots(n: float, prime: int) -> None:
    root = number(math.sqrt(n), prime)
    assert root * root % prime == number(n, prime)
    assert root * number(1 / math.sqrt(n), prime) % prime == 1
    assert number(-math.sqrt(n), prime) == prime - root


def test_infinities() -> None:
    assert number(math.inf, P) == number(2 * HUGE, P) != number(math.nan, P)
    assert number(-math.inf, P) == number(torch.finfo(torch.float32).min, P)
    assert (number(math.inf, P) + number(-math.inf, P)) % P == 0


def test_tensors_of_numbers() -> None:
    values = torch.tensor([[0.5, math.nan], [-math.inf, 2.0]])
    expected = [[number(float(v), P) for v in row] for row in values]
    assert numbers(values, P).tolist() == expected
    assert numbers(torch.tensor([-1, 3]), P).tolist() == [P - 1, 3]
    assert numbers(torch.zeros(0, 2), P).shape == (0, 2)


def test_powers_and_inverses() -> None:
    assert power(X, 5, P).tolist() == [[pow(v, 5, P) for v in row] for row in X.tolist()]
    exponents = X % Q
    found = power(torch.full_like(X, G), exponents, P)
    assert found.tolist() == [[pow(G, v, P) for v in row] for row in exponents.tolist()]
    assert inverse(torch.tensor([0, 1, 2]), P).tolist() == [0, 1, (P + 1) // 2]


@pytest.mark.parametrize("prime", [P, Q])
def test_products_of_matrices(prime: int) -> None:
    a, b = X % prime, Y % prime
    rows, columns = a.tolist(), b.t().tolist()
    expected = [
        [sum(p * q for p, q in zip(r, c, strict=True)) % prime for c in columns] for r in rows
    ]
    assert bilinear(torch.mm, a, b, prime).tolist() == expected


def test_random_functions() -> None:
    assert torch.equal(mixed(3, X), mixed(3, X.clone()))
    assert mixed(3, X).unique().numel() == X.numel()
    for other in (mixed(4, X), mixed(3, X + 1), mixed(3, X, X), mixed(3, X.roll(1))):
        assert not (other == mixed(3, X)).any()
    assert int(mixed(3, X).min()) >= 0
    assert not torch.equal(mixed(3, X, X + 1), mixed(3, X + 1, X))
