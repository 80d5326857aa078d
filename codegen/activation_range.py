"""What layers read, seen on calibration inputs: ranges for all rows, and factors of columns."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from infopt.codegen.weight_formats.formats import Integers
from infopt.compiler.integer_weight import rounded_rows

_KEPT = 512  # rows of each sample that choices are judged on
_STRENGTHS = (0.5, 0.6, 0.7, 0.8, 0.9)


class ActivationRange:
    """Rows [..., K] seen. low, high: the extremes of each column, [K]."""

    def __init__(self, k: int) -> None:
        self.low, self.high = torch.zeros(k), torch.zeros(k)
        self._rows: list[torch.Tensor] = []

    def add(self, x: torch.Tensor) -> None:
        """Rows with NaN or infinities say nothing and are left out."""
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        rows = rows[rows.isfinite().all(-1)]
        if len(rows):
            self.low = torch.minimum(self.low, rows.amin(0))
            self.high = torch.maximum(self.high, rows.amax(0))
            self._rows.append(rows[:: -(-len(rows) // _KEPT)].clone())

    @property
    def seen(self) -> bool:
        return bool((self.high > self.low).any())

    def step_and_zero(self, factors: torch.Tensor | None = None) -> tuple[float, int]:
        """Step and zero point that reach from the least to the largest value of x * factors."""
        low, high = self.low, self.high
        if factors is not None:
            low, high = low * factors, high * factors
        least, width = low.min().item(), (high.max() - low.min()).item()
        step = torch.tensor(max(width, 1e-30) / 255, dtype=torch.float32).item()
        return step, min(255, max(0, round(-least / step)))

    def rounding_error(
        self, weights: Sequence[torch.Tensor], factors: torch.Tensor | None, static: bool
    ) -> float:
        """What rounding rows to bytes moves products with the weights [N, K] by, relative to them;
        rows are multiplied by the factors [K] before, and weights divided."""
        rows = torch.cat(self._rows)
        scaled = rows if factors is None else rows * factors
        lost = rounded_rows(scaled, *self._rounding(factors, static)) - scaled
        lost = lost if factors is None else lost / factors
        moved = sum((lost @ w.float().T).square().sum().item() for w in weights)
        whole = sum((rows @ w.float().T).square().sum().item() for w in weights)
        return float(moved / whole) ** 0.5 if whole else 0.0

    def _rounding(self, factors: torch.Tensor | None, static: bool) -> tuple[str, float, int]:
        return ("int8-static" if static else "int8", *self.step_and_zero(factors))

    def smoothing(
        self, weights: Sequence[torch.Tensor], codec: Integers, static: bool
    ) -> torch.Tensor | None:
        """Factors [K] for columns of x, taken back in the weights [N, K], that make the error of
        the products least when rows and weights are rounded; None where none help.

        Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
        Language Models" (2023); the strength is chosen for each layer by the rows seen.
        """
        size = torch.maximum(self.high, -self.low)
        if not size.max() > 0:
            return None
        size = size.clamp_min(1e-4 * size.max().item())
        across = torch.stack([w.float().abs().amax(0) for w in weights]).amax(0)
        across = across.clamp_min(1e-4 * across.max().item()).clamp_min(1e-30)
        rows = torch.cat(self._rows)
        wanted = [rows @ w.float().T for w in weights]

        def error(factors: torch.Tensor | None) -> float:
            x = rows if factors is None else rows * factors
            x = rounded_rows(x, *self._rounding(factors, static))
            total = 0.0
            for w, want in zip(weights, wanted, strict=True):
                scaled = w.float() if factors is None else w.float() / factors
                found = x @ codec.decode(*codec.encode(scaled), w.shape[1]).float().T
                total += (found - want).square().sum().item()
            return total

        tried: list[torch.Tensor | None] = [None]
        for strength in _STRENGTHS:
            factors = across ** (1 - strength) / size**strength
            tried.append(factors / factors.log().mean().exp())
        return min(tried, key=error)
