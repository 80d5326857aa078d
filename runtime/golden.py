"""Golden vectors: stored calls and their results, compared with what this machine computes."""

from __future__ import annotations

from typing import Any

import torch

# Relative RMS error that another machine, level or the reference kernels may have: the same
# mathematics in another order of rounding, see infopt.compiler.accuracy.Exact.
LIMITS = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.bfloat16: 3e-2,
    torch.float16: 4e-3,
    torch.complex64: 1e-4,
    torch.complex128: 1e-10,
}


def difference(expected: Any, found: Any, limit: float | None = None) -> str | None:
    """How `found` differs from the stored result beyond rounding, None where it does not.

    limit: relative RMS error allowed instead of that of LIMITS.
    """
    if not isinstance(expected, torch.Tensor):
        same = type(expected) is type(found) and (expected == found or expected != expected)
        return None if same else f"expected {expected!r}, found {found!r}"
    if not isinstance(found, torch.Tensor):
        return f"expected a tensor, found {type(found).__name__}"
    if expected.dtype != found.dtype or expected.shape != found.shape:
        return (
            f"expected {expected.dtype} {tuple(expected.shape)}, "
            f"found {found.dtype} {tuple(found.shape)}"
        )
    if expected.dtype not in LIMITS:
        count = int((expected != found).sum())
        return f"{count} of {expected.numel()} values differ" if count else None
    wide = torch.complex128 if expected.is_complex() else torch.float64
    a, b = expected.to(wide), found.to(wide)
    special = ~torch.isfinite(a) | ~torch.isfinite(b)
    odd = special & ~((a == b) | (a.isnan() & b.isnan()))
    if count := int(odd.sum()):
        return f"{count} of {a.numel()} values are infinite or not numbers in one of the two"
    a, b = a[~special], b[~special]
    if not a.numel():
        return None
    limit = LIMITS[expected.dtype] if limit is None else limit
    relative, worst = _distance(a, b)
    # one wrong value among very many hardly moves the mean
    if relative <= limit and worst <= 30 * limit:
        return None
    return (
        f"off by {relative:.2e} (relative RMS), limit {limit:.0e}; the largest difference is "
        f"{float((a - b).abs().max()):.3g} among values up to {float(a.abs().max()):.3g}"
    )


def _distance(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """RMS of the difference over RMS of `a`; largest difference over the largest of `a`."""
    error = (a - b).abs()
    size, largest = float(a.abs().square().mean().sqrt()), float(a.abs().max())
    if size == 0:
        return float(error.max()), float(error.max())
    return float(error.square().mean().sqrt()) / size, float(error.max()) / largest


def limit_for(native: Any, reference: Any) -> float | None:
    """The limit of one output: four times what native kernels and torch calls differ in, where
    that is beyond mere rounding (a program permitted to compute in bf16)."""
    if not isinstance(native, torch.Tensor) or native.dtype not in LIMITS:
        return None
    wide = torch.complex128 if native.is_complex() else torch.float64
    a, b = native.to(wide), reference.to(wide)
    finite = torch.isfinite(a) & torch.isfinite(b)
    if not finite.any():
        return None
    relative, worst = _distance(a[finite], b[finite])
    limit = 4 * max(relative, worst / 30)
    return limit if limit > LIMITS[native.dtype] else None
