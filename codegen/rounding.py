"""Integers for a weight that are chosen for what it multiplies, not each for itself.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(2023), with the factors of groups fixed beforehand, so that columns can be taken in the order of
what they matter.
"""

from __future__ import annotations

from functools import cached_property

import torch

from infopt.codegen.formats import Encoded, Integers

_BLOCK = 128  # columns whose corrections are applied to the rest in one product
_CLIPPING = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # shares of the extreme value that may be kept


class Moments:
    """What was seen of the inputs [..., K] of a linear layer over `rows` rows.

    sum: of x xᵀ, [K, K]. total: of x, [K].
    """

    def __init__(self, k: int) -> None:
        self.rows, self.sum, self.total = 0, torch.zeros(k, k), torch.zeros(k)

    def add(self, x: torch.Tensor) -> None:
        """Rows with NaN or infinities say nothing and are left out."""
        rows = x.reshape(-1, x.shape[-1]).float()
        rows = rows[rows.isfinite().all(-1)]
        self.rows += len(rows)
        self.sum.addmm_(rows.T, rows)
        self.total += rows.sum(0)

    def through(self, a: torch.Tensor) -> Moments:
        """What a layer reads that follows x -> a x, a [R, K]."""
        made, product = Moments(len(a)), a.double()
        made.rows, made.total = self.rows, (product @ self.total.double()).float()
        made.sum = (product @ self.sum.double() @ product.T).float()
        return made

    @cached_property
    def order(self) -> torch.Tensor:
        """Columns, the largest inputs first."""
        return torch.argsort(self.sum.diagonal(), descending=True, stable=True)

    @cached_property
    def corrections(self) -> torch.Tensor:
        """[K, K] upper triangular U with UᵀU = (the moments, in that order, damped)^-1.

        Damping keeps rounding from fitting the noise of few rows: with one row per column it is a
        tenth of the mean diagonal, with ten or more it is a hundredth, as in the paper.
        """
        k = len(self.order)
        ordered = self.sum[self.order][:, self.order]
        mean = ordered.diagonal().mean().clamp_min(1e-30)
        share = min(max(0.1 * k / max(self.rows, 1), 0.01), 0.5)
        damped = ordered + torch.eye(k) * (share * mean)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        return torch.linalg.cholesky(inverse, upper=True)


def rounded_for(codec: Integers, weight: torch.Tensor, moments: Moments) -> Encoded:
    """Integers of a weight [N, K] such that its products with the inputs seen move least.

    Factors are those that make the error of each group least, weighted by the size of its inputs.
    Then columns are rounded one by one; what rounding one did to the products is taken back, as
    far as can be, by the columns still to come.
    """
    n, k = weight.shape
    scales = _factors(codec, weight.float(), moments.sum.diagonal())
    spread = scales.float().repeat_interleave(codec.group or k, 1)[:, :k]
    order, upper = moments.order, moments.corrections
    rest = weight.float().T[order].contiguous()  # [K, N]: what is worked on lies together
    factors = torch.where(spread == 0, torch.ones_like(spread), spread).T[order].contiguous()
    integers = torch.empty(k, n, dtype=torch.int8)
    for first in range(0, k, _BLOCK):
        last = min(first + _BLOCK, k)
        errors = torch.empty(last - first, n)
        for i in range(first, last):
            nearest = (rest[i] / factors[i]).round_().clamp_(codec.low, codec.high)
            integers[order[i]] = nearest.to(torch.int8)
            error = errors[i - first] = (rest[i] - nearest * factors[i]) / upper[i, i]
            rest[i + 1 : last].addr_(upper[i, i + 1 : last], error, alpha=-1)
        rest[last:].addmm_(upper[first:last, last:].T, errors, alpha=-1)
    return codec.pack(integers.T, scales)


def _factors(codec: Integers, weight: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """[N, groups]: of the factors that keep a share of each group's extreme, the best; sizes: the
    sum of squares of each column's inputs."""
    importance, grouped = codec.grouped(sizes[None]), codec.grouped(weight)

    def error(scales: torch.Tensor) -> torch.Tensor:
        found = codec.grouped(codec.nearest(weight, scales).float()) * scales.float()[..., None]
        return ((found - grouped).square() * importance).sum(-1)

    usual = best = codec.factors(weight)
    least = error(best)
    for share in _CLIPPING:
        scales = (usual.float() * share).to(codec.scale_dtype)
        found = error(scales)
        best, least = torch.where(found < least, scales, best), torch.minimum(found, least)
    return best
