"""One choice for each item, least cost, under limits on sums: an integer program.

For every item i and choice c there are a cost, an error (errors of different items add in
squares) and bytes:

    minimise  sum cost[i, c]
    with      sum error[i, c]^2 <= max_error^2   and   sum bytes[i, c] <= max_bytes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infopt.compiler.errors import MissingLibrary, UnreachableBudget


@dataclass(frozen=True)
class Choice:
    """One way to do one item; what it means is the caller's."""

    cost: float
    error: float
    bytes: int


def allocate(
    items: Sequence[Sequence[Choice]], max_error: float, max_bytes: int | None = None
) -> list[int]:
    """The index of the chosen choice of each item.

    Raises UnreachableBudget where no assignment keeps the limits, and MissingLibrary without scipy.
    """
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array
    except ImportError:
        raise MissingLibrary(
            "a budget is kept by an integer program, and scipy, which solves it, is not installed; "
            'pip install "infopt[budget]", or name formats in the option weights'
        ) from None
    if not items:
        return []
    flat = [choice for choices in items for choice in choices]
    owner = np.repeat(np.arange(len(items)), [len(choices) for choices in items])
    member = csr_array((np.ones(len(flat)), (owner, np.arange(len(flat)))))
    squares = np.array([c.error**2 for c in flat])
    sizes = np.array([float(c.bytes) for c in flat])
    costs = np.array([c.cost for c in flat])
    limit = max(min(max_error, 1e6) ** 2, 1e-30)
    rules = [LinearConstraint(member, 1, 1), LinearConstraint(squares[None] / limit, ub=1)]
    if max_bytes is not None:
        rules.append(LinearConstraint(sizes[None] / max(max_bytes, 1), ub=1))
    # among choices of equal cost the one of the least error
    aims = costs / (costs.max() or 1.0) + 1e-6 * np.minimum(squares / limit, 1)
    # a thousandth is less than measured costs are known to, and much sooner proved than the least
    solved = milp(
        aims,
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, 1),
        constraints=rules,
        options={"mip_rel_gap": 1e-3, "time_limit": 10.0},
    )
    if solved.x is None:
        raise UnreachableBudget(_why(items, max_error, max_bytes))
    chosen, start = [], 0
    for choices in items:
        chosen.append(int(np.argmax(solved.x[start : start + len(choices)])))
        start += len(choices)
    return chosen


def _why(items: Sequence[Sequence[Choice]], max_error: float, max_bytes: int | None) -> str:
    least_error = sum(min(c.error for c in choices) ** 2 for choices in items) ** 0.5
    least_bytes = sum(min(c.bytes for c in choices) for choices in items)
    text = f"no choice of formats has an error of at most {max_error:.3g}"
    if max_bytes is not None:
        text += f" and {max_bytes} bytes of weights"
    return f"{text}; the least error there is is {least_error:.3g}, the least size {least_bytes}"
