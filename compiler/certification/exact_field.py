"""Ops over exact arithmetic that are sums, products and quotients: those of a field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from infopt.compiler.certification.exact_tensor import (
    Residue,
    aten,
    declared,
    dtype_of,
    lifted,
    uninterpreted,
)
from infopt.compiler.certification.residue import P, Q, bilinear, inverse, number, power


def _each(
    func: Any, args: tuple, given: dict, real: torch.Tensor, of: Callable[..., torch.Tensor]
) -> Residue:
    """of(prime, *parts) modulo both primes."""
    values = [lifted(a) for a in args]
    dtype = dtype_of(func, args, given)
    p = of(P, *(v.p for v in values)) % P
    if any(v.q is None for v in values):
        return Residue(real, p, None, dtype)
    return Residue(real, p, of(Q, *(v.q for v in values)) % Q, dtype)


@declared("add", "sub", "rsub")
def _sum_of_two(func: Any, a: Any, b: Any, *, alpha: Any = 1) -> Any:
    sign = 1 if func.overloadpacket is aten.add else -1
    if func.overloadpacket is aten.rsub:
        x, y = lifted(b), lifted(a)
    else:
        x, y = lifted(a), lifted(b)
    dtype = dtype_of(func, (a, b), {"alpha": alpha})
    scales = [number(float(alpha), prime) * sign for prime in (P, Q)]
    real = x.value + y.value * alpha * sign
    q = None if x.q is None or y.q is None else (x.q + y.q * scales[1]) % Q
    return Residue(real, (x.p + y.p * scales[0]) % P, q, dtype)


@declared("mul")
def _mul(func: Any, a: Any, b: Any) -> Any:
    real = lifted(a).value * lifted(b).value
    return _each(func, (a, b), {}, real, lambda prime, x, y: x * y)


@declared("div")
def _div(func: Any, a: Any, b: Any, *, rounding_mode: Any = None) -> Any:
    if rounding_mode is not None:
        kept = {"rounding_mode": rounding_mode}
        return uninterpreted(func, dtype_of(func, (a, b), kept), (a, b), kept)
    real = lifted(a).value / lifted(b).value
    return _each(func, (a, b), {}, real, lambda prime, x, y: x * inverse(y, prime))


@declared("reciprocal")
def _reciprocal(func: Any, x: Any) -> Any:
    return _each(func, (x,), {}, 1 / x.value, lambda prime, v: inverse(v, prime))


@declared("neg")
def _neg(func: Any, x: Residue) -> Any:
    return _each(func, (x,), {}, -x.value, lambda prime, v: -v)


@declared("square")
def _square(func: Any, x: Residue) -> Any:
    return _each(func, (x,), {}, x.value.square(), lambda prime, v: v * v)


@declared("pow")
def _pow(func: Any, x: Any, exponent: Any) -> Any:
    if not isinstance(exponent, int | float) or not isinstance(x, Residue):
        return uninterpreted(func, dtype_of(func, (x, exponent), {}), (x, exponent), {})
    if exponent == int(exponent) and abs(exponent) < 64:
        n = int(abs(exponent))
        made = _each(func, (x, exponent), {}, x.value**n, lambda prime, v, _: power(v, n, prime))
        return made if exponent >= 0 else torch.reciprocal(made)
    if abs(exponent) == 0.5:
        return torch.sqrt(x) if exponent > 0 else torch.rsqrt(x)
    return uninterpreted(func, x.dtype, (x, exponent), {})


@declared("rsqrt")
def _rsqrt(func: Any, x: Residue) -> Any:
    return torch.reciprocal(torch.sqrt(x))


@declared("addcmul")
def _addcmul(func: Any, x: Any, a: Any, b: Any, *, value: float = 1) -> Any:
    return x + a * b * value


@declared("addcdiv")
def _addcdiv(func: Any, x: Any, a: Any, b: Any, *, value: float = 1) -> Any:
    return x + a / b * value


@declared("sum", "mean", "cumsum")
def _reduced(func: Any, x: Residue, *args: Any, dtype: Any = None, **given: Any) -> Any:
    total = aten.sum if func.overloadpacket is aten.mean else func.overloadpacket
    if args and args[0] is None:  # of all dims
        args = (list(range(x.dim())), *args[1:])
    real = func(x.value, *args, **given)
    count = x.numel() // max(real.numel(), 1) if total is aten.sum else 1
    made_dtype = dtype or x.dtype
    mean = func.overloadpacket is aten.mean

    def of(prime: int, v: torch.Tensor) -> torch.Tensor:
        whole = total(v, *args, **given) % prime
        return whole * pow(max(count, 1), -1, prime) % prime if mean else whole

    q = None if x.q is None else of(Q, x.q)
    return Residue(real, of(P, x.p), q, made_dtype)


def _product(func: Any, a: Any, b: Any, apply: Callable) -> Residue:
    x, y = lifted(a), lifted(b)
    p = bilinear(apply, x.p, y.p, P)
    q = None if x.q is None or y.q is None else bilinear(apply, x.q, y.q, Q)
    return Residue(apply(x.value, y.value), p, q, torch.promote_types(x.dtype, y.dtype))


@declared("mm", "bmm", "mv", "dot", "matmul")
def _matmul(func: Any, a: Any, b: Any) -> Any:
    return _product(func, a, b, func.overloadpacket)


@declared("addmm", "addmv", "baddbmm")
def _addmm(func: Any, c: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    return c * beta + torch.matmul(a, b) * alpha


@declared("convolution")
def _convolution(func: Any, x: Any, w: Any, bias: Any, *rest: Any) -> Any:
    made = _product(func, x, w, lambda a, b: func(a, b, None, *rest))
    return made if bias is None else made + bias.reshape(-1, *[1] * (x.dim() - 2))
