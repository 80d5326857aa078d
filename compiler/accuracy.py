"""How far a result may be from another one, and how far it is.

Exact is "the same mathematics in another order of rounding". For a dtype with rounding step eps
and an expected tensor with root mean square R, a result e' of e is accepted when

    every  |e' - e| <= a eps (|e| + R)      and      rms(e' - e) <= b eps R

with a, b = 64, 16 for f32 and f64, and 8, 2 for f16 and bf16 (whose few bits leave one rounding
visible). Where that fails and a float64 run of the same program is at hand, a result is still
accepted when rmse(fp64, result) <= 2 rmse(fp64, expected) (3 for f16, bf16 or under 1000
elements), the rule of torch's own benchmark suites. NaN and infinities must be in the same
places; integers and bools must be equal.

A result may be all cancellation (a row of equal values without its mean): then nothing of it is
left to measure rounding by, and both bounds grow by four times what it moves by when arguments do
by half a step of the dtype that kernels calculate in (`Moved`, Higham's backward error). For a
result that depends on its arguments smoothly that is far less than the bounds are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

_NARROW = (torch.float16, torch.bfloat16)
METRICS = ("max_abs", "max_rel", "rms_rel", "cosine")


@dataclass(frozen=True)
class Error:
    """The distance of two tensors, over the places where both are finite.

    max_abs  largest |a - e|;   max_rel  the same divided by the largest |e|
    rms_rel  rms(a - e) / rms(e);   cosine  1 - cosine similarity, 0 where equal
    pattern  what differs in shape, dtype, NaN or infinities; empty where nothing does
    """

    max_abs: float = 0.0
    max_rel: float = 0.0
    rms_rel: float = 0.0
    cosine: float = 0.0
    pattern: str = ""

    def __str__(self) -> str:
        if self.pattern:
            return self.pattern
        return f"max {self.max_abs:.3g}, rms {self.rms_rel:.3g} of the result's"


@dataclass(frozen=True)
class Moved:
    """How far a result moved with its arguments, at most and on the whole."""

    largest: float = 0.0
    rms: float = 0.0

    @classmethod
    def between(cls, result: torch.Tensor, others: Sequence[torch.Tensor]) -> Moved:
        """Over the places where all are finite. others: the result for arguments that moved."""
        apart = torch.stack([_wide(o) - _wide(result) for o in others])
        apart = apart[:, torch.isfinite(apart).all(0)]
        return cls(apart.abs().max().item(), _rms(apart)) if apart.numel() else cls()


class Accuracy(Protocol):
    """A contract: may `actual` stand for `expected`?"""

    def accepts(
        self, expected: torch.Tensor, actual: torch.Tensor, reference64: torch.Tensor | None = None
    ) -> str | None:
        """None, or the reason it may not."""

    def describe(self, expected: torch.Tensor, actual: torch.Tensor) -> str:
        """The measured difference as text for reports; "" where there is none."""


class _Described:
    def describe(self, expected: torch.Tensor, actual: torch.Tensor) -> str:
        """The measured difference as text for reports; "" where there is none."""
        error = compare(expected, actual)
        return str(error) if error.max_abs or error.pattern else ""


def compare(expected: torch.Tensor, actual: torch.Tensor) -> Error:
    """The distance between two tensors; differing shapes, dtypes or NaN places are the pattern."""
    pattern = _pattern(expected, actual)
    if pattern:
        return Error(math.inf, math.inf, math.inf, math.inf, pattern)
    e, a = _wide(expected), _wide(actual)
    finite = torch.isfinite(e)
    e, a = e[finite], a[finite]
    if e.numel() == 0:
        return Error()
    difference = (a - e).abs()
    scale, size = e.abs().max().item(), _rms(e)
    product = torch.linalg.vector_norm(e) * torch.linalg.vector_norm(a)
    cosine = 1.0 - (e @ a / product).item() if product > 0 else float(_rms(a) != size)
    return Error(
        max_abs=difference.max().item(),
        max_rel=_ratio(difference.max().item(), scale),
        rms_rel=_ratio(_rms(difference), size),
        cosine=max(cosine, 0.0),
    )


@dataclass(frozen=True)
class Exact(_Described):
    """The same value but for the order of rounding (see the module's text)."""

    def accepts(
        self,
        expected: torch.Tensor,
        actual: torch.Tensor,
        reference64: torch.Tensor | None = None,
        moved: Moved = Moved(),
    ) -> str | None:
        pattern = _pattern(expected, actual)
        if pattern:
            return pattern
        if torch.equal(expected, actual) or expected.numel() == 0:
            return None
        if not expected.is_floating_point():
            wrong = int((expected != actual).sum())
            return f"{wrong} of {expected.numel()} {expected.dtype} elements differ"
        e, a = _wide(expected), _wide(actual)
        finite = torch.isfinite(e)
        e, a = e[finite], a[finite]
        eps = torch.finfo(expected.dtype).eps
        largest, typical = (8, 2) if expected.dtype in _NARROW else (64, 16)
        rms, difference = _rms(e), (a - e).abs()
        tiny = torch.finfo(expected.dtype).tiny
        bound = largest * eps * (e.abs() + rms) + tiny + 4 * moved.largest
        worst = (difference / bound).max().item() if e.numel() else 0.0
        mean = _rms(difference) / (typical * eps * rms + tiny + 4 * moved.rms)
        if worst <= 1 and mean <= 1:
            return None
        if reference64 is not None and _as_near(expected, actual, reference64):
            return None
        return (
            f"{compare(expected, actual)}: {max(worst, mean):.3g} times what rounding explains "
            f"in {expected.dtype}"
        )


@dataclass(frozen=True)
class Close(_Described):
    """|a - e| <= atol + rtol |e| for every element."""

    rtol: float
    atol: float

    def accepts(
        self, expected: torch.Tensor, actual: torch.Tensor, reference64: torch.Tensor | None = None
    ) -> str | None:
        pattern = _pattern(expected, actual)
        if pattern:
            return pattern
        e, a = _wide(expected), _wide(actual)
        close = torch.isclose(a, e, rtol=self.rtol, atol=self.atol, equal_nan=True)
        if close.all():
            return None
        wrong = int((~close).sum())
        return f"{wrong} of {e.numel()} elements outside {self}; {compare(expected, actual)}"


@dataclass(frozen=True)
class Bounded(_Described):
    """One metric of Error stays at or under a limit."""

    metric: str
    limit: float

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"metric {self.metric!r}: expected one of {', '.join(METRICS)}")

    def accepts(
        self, expected: torch.Tensor, actual: torch.Tensor, reference64: torch.Tensor | None = None
    ) -> str | None:
        error = compare(expected, actual)
        if error.pattern:
            return error.pattern
        found = getattr(error, self.metric)
        if found <= self.limit:
            return None
        return f"{self.metric} is {found:.3g}, the limit is {self.limit:.3g}"


def _pattern(expected: torch.Tensor, actual: torch.Tensor) -> str:
    if expected.shape != actual.shape:
        return f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if expected.dtype != actual.dtype:
        return f"dtype {actual.dtype}, expected {expected.dtype}"
    if not expected.is_floating_point():
        return ""
    for name, test in (("NaN", torch.isnan), ("+inf", torch.isposinf), ("-inf", torch.isneginf)):
        e, a = test(expected), test(actual)
        if not torch.equal(e, a):
            where = tuple(torch.nonzero(e != a)[0].tolist())
            found, wanted = actual[where].item(), expected[where].item()
            return f"{name} in other places: at {where} {found}, expected {wanted}"
    return ""


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to(torch.float64)


def _rms(tensor: torch.Tensor) -> float:
    return math.sqrt(tensor.square().mean().item()) if tensor.numel() else 0.0


def _ratio(a: float, b: float) -> float:
    return a / b if b else (0.0 if a == 0 else math.inf)


def _as_near(expected: torch.Tensor, actual: torch.Tensor, reference64: torch.Tensor) -> bool:
    """rmse(fp64, actual) <= k rmse(fp64, expected), or within rounding where that is zero."""
    if reference64.shape != expected.shape:
        return False
    e, a, r = _wide(expected), _wide(actual), _wide(reference64)
    finite = torch.isfinite(e) & torch.isfinite(r)
    factor = 3 if expected.dtype in _NARROW or expected.numel() < 1000 else 2
    floor = torch.finfo(expected.dtype).eps * _rms(r[finite])
    return _rms((a - r)[finite]) <= factor * _rms((e - r)[finite]) + floor
