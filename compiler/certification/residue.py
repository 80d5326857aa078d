"""Arithmetic modulo a prime, on int64 tensors: where a rounding error cannot hide a wrong rewrite.

Two programs that are equal as rational functions are equal modulo every prime; two that are not
differ at a random point with probability 1 - degree / P (Schwartz 1980, Zippel 1979). P = 2 Q + 1
are both prime, so exp(x) = G ** (x mod Q) mod P keeps exp(a + b) = exp(a) exp(b) where a value is
known modulo both (the finite fields of Mirage, Wu et al. 2024). 2, 3, 5 and 7 are squares modulo
both, so 1 / sqrt(d) has a value whose square is 1 / d for the sizes d that programs have.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import cache

import torch

P, Q = 2147471759, 1073735879
G = 4  # of order Q modulo P
_ROOTS = {
    P: {2: 883863956, 3: 718553530, 5: 101801926, 7: 848994863},
    Q: {2: 245419349, 3: 151409964, 5: 497700284, 7: 72836849},
}
HUGE = 1e30  # masks write the lowest number of a dtype for minus infinity
_CODES = {"inf": 1_000_003, "nan": 1_000_033}


@cache
def number(value: float, prime: int) -> int:
    """A number of a program: the fraction, or root of a fraction, that it was written for.

    Otherwise its first seven digits, as two programs may write the same constant differently.
    """
    if math.isnan(value):
        return _CODES["nan"]
    if abs(value) > HUGE:
        return _CODES["inf"] if value > 0 else prime - _CODES["inf"]
    exact = Fraction(value)
    parts = round(1 / exact) if 1 / 65536 <= abs(value) < 1 else 1
    for near in (exact.limit_denominator(256), Fraction(1, parts)):
        if abs(near - exact) <= abs(exact) / 10**7:
            return _fraction(near, prime)
    square = Fraction(value * value).limit_denominator(4096)
    if abs(float(square) - value * value) <= 2e-7 * value * value:
        roots = [_root(n, prime) for n in square.as_integer_ratio()]
        if all(r is not None for r in roots):
            found = roots[0] * pow(roots[1], -1, prime)  # type: ignore[operator,arg-type]
            return found % prime if value > 0 else -found % prime
    return _fraction(Fraction(format(value, ".7g")), prime)


def _fraction(value: Fraction, prime: int) -> int:
    return value.numerator * pow(value.denominator, -1, prime) % prime


def _root(value: int, prime: int) -> int | None:
    """The product of the roots of its prime factors; None where one is beyond 7."""
    result, rest = 1, value
    for factor, root in _ROOTS[prime].items():
        while rest % factor == 0:
            rest //= factor
            result = result * root % prime
    return result if rest == 1 else None


def numbers(values: torch.Tensor, prime: int) -> torch.Tensor:
    """`number` of every element of a tensor of any dtype."""
    if not values.is_floating_point():
        return values.to(torch.int64) % prime
    wide = values.to(torch.float64)
    distinct, where = torch.unique(torch.nan_to_num(wide, nan=math.nan), return_inverse=True)
    table = torch.tensor([number(v, prime) for v in distinct.tolist()], dtype=torch.int64)
    return table[where] if wide.numel() else torch.zeros(wide.shape, dtype=torch.int64)


def power(base: torch.Tensor, exponent: torch.Tensor | int, prime: int) -> torch.Tensor:
    """base ** exponent by squaring, exponent at least 0."""
    left = torch.as_tensor(exponent)
    result, square = torch.ones_like(base + left), base % prime
    while bool((left > 0).any()):
        result = torch.where(left % 2 == 1, result * square % prime, result)
        square = square * square % prime
        left = left // 2
    return result


def inverse(value: torch.Tensor, prime: int) -> torch.Tensor:
    """1 / value; 0 for 0, as no field has it."""
    return power(value, prime - 2, prime)


Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def bilinear(product: Product, a: torch.Tensor, b: torch.Tensor, prime: int) -> torch.Tensor:
    """A product of matrices, or a convolution, in halves of 16 bits: sums of up to 2**20 terms are
    exact in float64."""
    parts = [(v % 65536, v // 65536) for v in (a, b)]
    (a0, a1), (b0, b1) = [tuple(h.to(torch.float64) for h in pair) for pair in parts]

    def whole(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return product(x, y).to(torch.int64) % prime

    middle = (whole(a0, b1) + whole(a1, b0)) % prime
    high = whole(a1, b1) * 65536 % prime
    return (whole(a0, b0) + (middle + high) % prime * 65536) % prime


def mixed(seed: int, *values: torch.Tensor) -> torch.Tensor:
    """A random function of its arguments, the same for the same seed: 0 <= result < 2**62."""
    state = torch.tensor(seed % (1 << 62), dtype=torch.int64)
    for value in values:
        state = _scrambled(state ^ (value * 0x1E3779B97F4A7C15))
    return _scrambled(state) >> 1 & ((1 << 62) - 1)


def _scrambled(x: torch.Tensor) -> torch.Tensor:
    """The mixing of splitmix64 (Steele, Lea and Flood 2014), in wrapping int64."""
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31 & (1 << 33) - 1)
