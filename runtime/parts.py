"""A program of open sizes, run on parts of its inputs so that a call keeps a limit on memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from infopt.runtime.errors import OverBudget
from infopt.runtime.lifetime import arena_bytes
from infopt.runtime.plan import Plan

_PANEL = 16  # rows that kernels take at once: parts are multiples of it where they can be
_REMEMBERED = 4096  # calls' sizes whose parts are known


@dataclass(frozen=True)
class Parts:
    """What may be cut, and why: every input in `inputs` and every result has the size `dim` of the
    plan, or a multiple of it, as its first dimension, and its parts depend on their own part only.

    limit  bytes of a call beside inputs, weights and results, the threads' scratch aside
    """

    dim: int
    inputs: tuple[int, ...]
    limit: int
    _known: dict[tuple[int, ...], int] = field(default_factory=dict, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        return {"dim": self.dim, "inputs": list(self.inputs), "limit": self.limit}

    @classmethod
    def from_json(cls, record: Mapping[str, Any], plan: Plan) -> Parts:
        """Raises KeyError, TypeError and ValueError for what does not fit the plan."""
        made = cls(int(record["dim"]), tuple(map(int, record["inputs"])), int(record["limit"]))
        fits = 0 <= made.dim < len(plan.dims) and all(
            0 <= i < len(plan.inputs) for i in made.inputs
        )
        if not fits:
            raise ValueError(f"{record} does not fit the plan")
        return made

    def of_call(self, plan: Plan, sizes: Sequence[int]) -> int:
        """How much of the dim one part takes in a call of these sizes: all of it, or the least
        number of parts, each as long as the others but the last. Raises OverBudget."""

        def needed(part: int) -> int:
            return arena_bytes(plan, [part if i == self.dim else n for i, n in enumerate(sizes)])

        whole = sizes[self.dim]
        if whole == 0 or needed(whole) <= self.limit:
            return whole
        least = max(1, plan.dims[self.dim].lo)
        unit = _PANEL if least <= _PANEL < whole and needed(_PANEL) <= self.limit else least
        if needed(unit) > self.limit:
            raise OverBudget(
                f"max_activations={self.limit}: {unit} of {whole} {plan.dims[self.dim].name}, the "
                f"fewest that a call takes, need {needed(unit)} bytes beside inputs, weights and "
                f"results, all of them {needed(whole)}"
            )
        fits, fails = 1, -(-whole // unit)
        while fails - fits > 1:
            middle = (fits + fails) // 2
            if needed(middle * unit) <= self.limit:
                fits = middle
            else:
                fails = middle
        count = -(-whole // (fits * unit))
        return -(-whole // (count * unit)) * unit

    def run(
        self, plan: Plan, call: Callable[[list[Any]], list[Any]], inputs: list[Any]
    ) -> list[Any]:
        """The outputs of a call, part after part."""
        sizes = tuple(_size(inputs, dim) for dim in plan.dims)
        whole, part = sizes[self.dim], self._known.get(sizes)
        if part is None:
            if len(self._known) == _REMEMBERED:
                self._known.clear()
            # The sum over all buffers costs as much as many a call.
            part = self._known[sizes] = self.of_call(plan, sizes)
        if part == whole:
            return call(inputs)
        least, found = max(1, plan.dims[self.dim].lo), []
        for first in range(0, whole, part):
            end = min(first + part, whole)
            begin = min(first, end - least)  # a last part may be too short to be a call
            given = list(inputs)
            for i in self.inputs:
                each = inputs[i].shape[0] // whole
                given[i] = inputs[i][begin * each : end * each]
            made = call(given)
            known = [(first - begin) * y.shape[0] // (end - begin) for y in made]
            found.append([y[n:] for y, n in zip(made, known, strict=True)])
        return [torch.cat(pieces) for pieces in zip(*found, strict=True)]


def _size(inputs: Sequence[Any], dim: Any) -> int:
    value = inputs[dim.input]
    return int(value) if dim.axis is None else int(value.shape[dim.axis])
