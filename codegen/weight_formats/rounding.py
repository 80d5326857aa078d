"""Integers for a weight that are chosen for what it multiplies, not each for itself.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(2023), with the factors of groups fixed beforehand, so that columns can be taken in the order of
what they matter.
"""

from __future__ import annotations

from functools import cached_property

import torch

from infopt.codegen.weight_formats.integers import Encoded, Integers

_BLOCK = 128  # columns whose corrections are applied to the rest in one product


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

    def of_scaled(self, factors: torch.Tensor) -> Moments:
        """What would have been seen of x * factors, factors [K]."""
        scaled = Moments(len(factors))
        scaled.rows, scaled.total = self.rows, self.total * factors
        scaled.sum = self.sum * factors[:, None] * factors
        return scaled

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


def rounded_for(
    codec: Integers, weight: torch.Tensor, moments: Moments, kept: torch.Tensor | None = None
) -> tuple[Encoded, torch.Tensor]:
    """Integers of a weight [N, K] such that its products with the inputs seen move least, and the
    matrix [N, K] that the columns before made each of them stand for.

    Factors, and tables where there are some, are those that make the error of each group least,
    weighted by the size of its inputs. Then columns are rounded one by one; what rounding one did
    to the products is taken back, as far as can be, by the columns still to come. Elements that
    are `kept`, bool [N, K], lose nothing: what is left of them is stored elsewhere.
    """
    n, k = weight.shape
    table, scales = codec.fitted(weight.float(), moments.sum.diagonal(), kept)
    spread = codec.divisors(scales).repeat_interleave(codec.group or k, 1)[:, :k]
    order, upper = moments.order, moments.corrections
    rest = weight.float().T[order].contiguous()  # [K, N]: what is worked on lies together
    factors = spread.T[order].contiguous()
    exact = None if kept is None else kept.T[order]
    integers = torch.empty(k, n, dtype=codec.level_dtype)
    for first in range(0, k, _BLOCK):
        last = min(first + _BLOCK, k)
        errors = torch.empty(last - first, n)
        for i in range(first, last):
            nearest = codec.level((rest[i] / factors[i])[:, None], table)[:, 0]
            integers[order[i]] = nearest
            error = (rest[i] - nearest * factors[i]) / upper[i, i]
            if exact is not None:
                error = error.masked_fill(exact[i], 0)
            errors[i - first] = error
            rest[i + 1 : last].addr_(upper[i, i + 1 : last], error, alpha=-1)
        rest[last:].addmm_(upper[first:last, last:].T, errors, alpha=-1)
    wanted = torch.empty(k, n).index_copy_(0, order, rest)
    return codec.pack(integers.T, scales, table), wanted.T
