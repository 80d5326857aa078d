"""Weighted k-means of numbers, many rows at once: Lloyd's algorithm on sorted rows.

A cluster of numbers is a run of the sorted row, so its sums are differences of running sums: a
round looks at boundaries only, and what costs time is sorting once.
"""

from __future__ import annotations

import torch

_ROUNDS = 40


def centers(values: torch.Tensor, weights: torch.Tensor, count: int) -> torch.Tensor:
    """f32 [N, count], ascending: where the weighted squares of distances of the values of a row
    [N, K] to the nearest center are least, or nearly. weights >= 0, [N, K]. No randomness.

    The first centers are quantiles of density^(1/3), which is where those of a smooth density end
    (Panter and Dite 1951).
    """
    n, k = values.shape
    points, order = values.float().sort(dim=-1, stable=True)
    mass = weights.double().gather(-1, order)
    sums = [_running(mass), _running(mass * points), _running(mass * points.double().square())]
    gaps = points.double().diff(dim=-1, prepend=points[:, :1].double())
    spread = (gaps.square() * mass).pow(1 / 3).cumsum(-1)
    parts = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    first = torch.searchsorted(spread, spread[:, -1:] * parts).clamp(max=k - 1)
    found = points.gather(-1, first)
    ends = torch.zeros(n, 1, dtype=torch.int64), torch.full((n, 1), k)
    for _ in range(_ROUNDS):
        runs = torch.cat((ends[0], torch.searchsorted(points, boundaries(found)), ends[1]), -1)
        held, moment, squares = (s.gather(-1, runs).diff(dim=-1) for s in sums)
        means = moment / held.clamp_min(1e-300)
        moved = torch.where(held > 0, means.float(), found)
        moved = _filled(moved, held, squares - moment * means, points, runs).sort(-1).values
        if torch.equal(moved, found):
            break
        found = moved
    return found


def _filled(
    found: torch.Tensor,
    held: torch.Tensor,
    losses: torch.Tensor,
    points: torch.Tensor,
    runs: torch.Tensor,
) -> torch.Tensor:
    """Centers, in each row the first of those that hold nothing moved to where it helps most: to
    the end, the farther one, of the cluster that loses most."""
    empty, worst = (held == 0).int().argmax(-1, keepdim=True), losses.argmax(-1, keepdim=True)
    last = points.shape[1] - 1  # an empty run may begin behind it
    low = points.gather(-1, runs.gather(-1, worst).clamp(max=last))
    high = points.gather(-1, (runs.gather(-1, worst + 1) - 1).clamp_min(0))
    mean = found.gather(-1, worst)
    far = torch.where(high - mean > mean - low, high, low)
    helps = (held.gather(-1, empty) == 0) & (losses.gather(-1, worst) > 0)
    return found.scatter(-1, empty, torch.where(helps, far, found.gather(-1, empty)))


def boundaries(ascending: torch.Tensor) -> torch.Tensor:
    """[N, count - 1]: halfway between neighbouring centers."""
    return ((ascending[:, 1:] + ascending[:, :-1]) / 2).contiguous()


def _running(values: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(values.cumsum(-1), (1, 0))
