"""When does a compiled result count as equal to eager's? The rule of the public dashboards, in one
place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

SMALL = 1000
"""Below this many elements the root of the mean square is itself noisy."""


def as_exact_as(expected: Tensor, actual: Tensor, exact: Tensor) -> bool:
    """Is the error of `actual` against float64 at most 2 (small tensors, half types: 3) times that
    of `expected`?
    """
    finite = torch.isfinite(expected)
    if not torch.equal(finite, torch.isfinite(actual)):
        return False

    def rmse(value: Tensor) -> float:
        error = (value.double() - exact.detach().double())[finite]
        return error.square().mean().sqrt().item() if error.numel() else 0.0

    half = expected.dtype in (torch.float16, torch.bfloat16)
    factor = 3.0 if half or expected.numel() < SMALL else 2.0
    slack = {torch.float16: 1e-4, torch.bfloat16: 1.6e-3}.get(expected.dtype, 1e-6)
    return rmse(actual) <= factor * rmse(expected) + slack


def close(expected: Tensor, actual: Tensor, exact: Tensor | None = None) -> bool:
    """Integers equal; floats within assert_close's tolerances, or as exact as eager."""
    if expected.dtype != actual.dtype or expected.shape != actual.shape:
        return False
    floating = expected.is_floating_point() or expected.is_complex()
    if not floating:
        return torch.equal(expected, actual)
    try:
        torch.testing.assert_close(actual, expected, equal_nan=True)
    except AssertionError:
        return exact is not None and as_exact_as(expected, actual, exact)
    return True


def max_error(expected: Tensor, actual: Tensor) -> float:
    """Largest absolute difference; infinite where shapes or the places of non-finite numbers
    differ.
    """
    if expected.shape != actual.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    finite = torch.isfinite(expected.double())
    if not torch.equal(finite, torch.isfinite(actual.double())):
        return float("inf")
    difference = (expected.double() - actual.double())[finite]
    return difference.abs().max().item() if difference.numel() else 0.0


def relative_error(expected: Tensor, actual: Tensor) -> float:
    """|actual - expected| / |expected| in the Frobenius norm, computed in float64."""
    e, a = expected.double(), actual.double()
    return ((a - e).norm() / e.norm().clamp(min=1e-300)).item()


def tensors(result: Any) -> list[Tensor]:
    """The tensors of any nested output, in order."""
    return [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, Tensor)]
