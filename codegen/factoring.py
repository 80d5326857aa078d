"""A matrix as the product of two thin ones, chosen for what it multiplies.

For outputs y = W x the best W' of rank r, in the mean of |W' x - W x|^2 over the inputs seen, keeps
y's principal components: W' = U Uᵀ W, where the columns of U are the leading eigenvectors of
W C Wᵀ and C is the mean of x xᵀ (the optimum of SVD-LLM, Wang et al. 2024, and of ASVD, Yuan et al.
2023, without their square roots). With C = I that is the plain SVD (Eckart and Young 1936).
Where a bias can take up what is lost of the mean input, C is the covariance.

B = U has columns of equal size and A = Uᵀ W carries the singular values in its rows, so that both
keep their accuracy in formats with one factor per row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from infopt.codegen.weight_formats.rounding import Moments

_LEAST = 1e-12  # of the largest eigenvalue: below, directions are noise of rounding


@dataclass(frozen=True)
class Factors:
    """W [N, K] ~ b [N, r] a [r, K]; shift f64 [N]: what to add to a bias; error: of y, relative."""

    a: torch.Tensor
    b: torch.Tensor
    shift: torch.Tensor | None
    error: float


class Factoring:
    """The factors of one matrix [N, K] for any rank: the spectrum is computed once.

    moments  what is known of its inputs, None: nothing, all directions alike
    centred  whether a bias can be changed to make up for what is lost of the mean input
    """

    def __init__(
        self, weight: torch.Tensor, moments: Moments | None = None, centred: bool = False
    ) -> None:
        self.dtype, self.weight = weight.dtype, weight.double()
        self.moments = moments if moments is not None and moments.rows else None
        self.centred = centred and self.moments is not None

    def __call__(self, rank: int) -> Factors:
        """The best factors of at most this rank."""
        u = self.spectrum[1][:, :rank]
        a = u.T @ self.weight
        shift = None
        if self.centred:
            shift = self.weight @ self._mean - u @ (a @ self._mean)
        return Factors(a.to(self.dtype), u.to(self.dtype), shift, self.error(rank))

    def error(self, rank: int) -> float:
        """The relative RMS error of outputs for inputs like those seen."""
        return (float(self.spectrum[0][rank:].sum()) / self._power) ** 0.5

    def rank_for(self, energy: float) -> int:
        """The least rank that keeps this share of the outputs' power, at least 1."""
        values = self.spectrum[0]
        lost = values.sum() - values.cumsum(0)
        return min(int((lost > (1 - energy) * self._power).sum()) + 1, len(values))

    @cached_property
    def spectrum(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Eigenvalues of W C Wᵀ, largest first, and their vectors [N, n], n <= min(N, K)."""
        root = self._root
        scaled = self.weight if root is None else self.weight @ root
        n, k = scaled.shape
        values, vectors = torch.linalg.eigh(scaled @ scaled.T if n <= k else scaled.T @ scaled)
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        rank = max(1, int((values > _LEAST * values[0]).sum()))
        values, vectors = values[:rank], vectors[:, :rank]
        if n > k:
            vectors = scaled @ vectors / values.clamp_min(1e-300).sqrt()
        return values, vectors

    @cached_property
    def _mean(self) -> torch.Tensor:
        assert self.moments is not None
        return self.moments.total.double() / self.moments.rows

    @cached_property
    def _spread(self) -> torch.Tensor | None:
        """C: the mean of x xᵀ, or the covariance where a bias has the rest (a large mean would hide
        that all else is lost). Shrunk towards equal directions, the more the fewer rows there are
        per column, or factors would fit the rows seen and no others."""
        if self.moments is None:
            return None
        c = self.moments.sum.double() / self.moments.rows
        if self.centred:
            c = c - torch.outer(self._mean, self._mean)
        share = min(max(0.1 * len(c) / self.moments.rows, 0.01), 0.5)
        mean = c.diagonal().mean().clamp_min(1e-30)
        return (1 - share) * c + torch.eye(len(c), dtype=c.dtype) * (share * mean)

    @cached_property
    def _root(self) -> torch.Tensor | None:
        """L with L Lᵀ = C."""
        return None if self._spread is None else torch.linalg.cholesky(self._spread)

    @cached_property
    def _power(self) -> float:
        """The mean of |W x|^2 that errors are relative to."""
        product = self.weight if self._spread is None else self.weight @ self._spread
        return max(float((product * self.weight).sum()), 1e-300)
