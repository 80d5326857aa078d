"""Weights kept in groups: which groups stay, how they lie in memory, what the others leave behind.

A weight [N, K] is cut into blocks of `rows` rows, a block into groups of `width` columns. Every
block keeps as many groups, of columns of its own (Zhang et al., "SparseByteNN", 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from infopt.codegen.weight_formats.rounding import Moments


@dataclass(frozen=True)
class GroupForm:
    """rows x width: the size of a group."""

    rows: int
    width: int

    def counts(self, n: int, k: int) -> tuple[int, int]:
        """(blocks, groups in a block) of a weight [n, k]; the last ones may be part empty."""
        return -(-n // self.rows), -(-k // self.width)

    def scores(self, weight: torch.Tensor, spread: torch.Tensor | None = None) -> torch.Tensor:
        """f64 [blocks, groups]: the squares of a group's weights, each times the spread [K] of what
        it multiplies: what the results lose without it (Sun et al., "Wanda", 2024)."""
        squares = weight.double().square()
        if spread is not None:
            squares = squares * spread.double()
        return self._cut(squares).sum((2, 3))

    def packed(self, weight: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """[blocks, kept, rows, width]: the weights of the groups that stay."""
        cut = self._cut(weight)
        index = columns.long()[:, :, None, None].expand(-1, -1, *cut.shape[2:])
        return cut.gather(1, index).contiguous()

    def _cut(self, weight: torch.Tensor) -> torch.Tensor:
        """[blocks, groups, rows, width] of [N, K], with zeros where it ends."""
        n, k = weight.shape
        blocks, groups = self.counts(n, k)
        whole = F.pad(weight, (0, groups * self.width - k, 0, blocks * self.rows - n))
        return whole.reshape(blocks, self.rows, groups, self.width).transpose(1, 2)


def largest(scores: torch.Tensor, kept: int) -> torch.Tensor:
    """int32 [blocks, kept]: the groups of the largest scores in each block, in order."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    return order[:, :kept].sort(1).values.int()


def dense_weight(values: torch.Tensor, columns: torch.Tensor, n: int, k: int) -> torch.Tensor:
    """[n, k]: the weight that groups stand for, 0 where none is kept."""
    blocks, _, rows, width = values.shape
    index = columns.long()[:, :, None, None].expand(values.shape)
    groups = -(-k // width)
    whole = values.new_zeros(blocks, groups, rows, width).scatter(1, index, values)
    return whole.transpose(1, 2).reshape(blocks * rows, groups * width)[:n, :k]


def fitted(
    weight: torch.Tensor, columns: torch.Tensor, form: GroupForm, moments: Moments
) -> tuple[torch.Tensor, torch.Tensor]:
    """([N, K] with zeros where no group is kept, what a bias [N] gains), f32: of all such weights
    those whose results are nearest to the weight's on the inputs seen (least squares).

    Damping keeps few rows from being fitted too well, as for rounding (weight_formats/rounding.py).
    """
    n, k = weight.shape
    mean = moments.total / max(moments.rows, 1)
    spread = moments.sum / max(moments.rows, 1) - mean.outer(mean)
    share = min(max(0.1 * k / max(moments.rows, 1), 0.01), 0.5)
    spread.diagonal().add_(spread.diagonal().mean().clamp_min(1e-30) * share)
    given, result = weight.float(), torch.zeros(n, k)
    for block, groups in enumerate(columns.long()):
        rows = slice(block * form.rows, (block + 1) * form.rows)
        kept = (groups[:, None] * form.width + torch.arange(form.width)).flatten()
        kept = kept[kept < k]
        seen = spread[kept]
        factor = torch.linalg.cholesky(seen[:, kept])
        result[rows, kept] = torch.cholesky_solve(seen @ given[rows].T, factor).T
    return result, (given - result) @ mean
