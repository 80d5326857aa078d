"""Choosing kernels' schedules by measuring them in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infopt.codegen.kernel import Emitter
from infopt.codegen.schedules import Database, Measured, key_of, usual
from infopt.codegen.timing import schedule_seconds
from infopt.compiler.graph import Node
from infopt.compiler.target import Target
from infopt.compiler.types import Dim

ROUNDS = {1: 5, 2: 25}  # turns of each schedule, by effort
_NOISE = 0.02  # a schedule must gain more than this share to be taken


class Tuner:
    """The schedule of each node: from the database, else measured now and remembered.

    effort   0: only what the database knows. 1 or 2: measure what it does not know as well
    measured how many nodes were measured
    """

    def __init__(
        self, database: Database, effort: int, target: Target, dims: tuple[Dim, ...]
    ) -> None:
        self.database, self.effort = database, effort
        self.target, self.dims = target, dims
        self.measured = 0

    def __call__(self, node: Node, emitter: Emitter) -> Mapping[str, Any]:
        schedules = list(emitter.schedules())
        if len(schedules) == 1:
            return schedules[0]
        key = key_of(node, self.target, self.dims)
        known = self.database.entries.get(key)
        if known is None or known.effort < self.effort:
            if self.effort == 0:
                return usual(node, emitter)
            known = self.database.entries[key] = self._measure(node, schedules)
        # a schedule of another version's space is no schedule
        return known.schedule if known.schedule in schedules else schedules[0]

    def _measure(self, node: Node, schedules: list[dict[str, Any]]) -> Measured:
        rounds = ROUNDS[self.effort]
        seconds = schedule_seconds(node, schedules, self.target, self.dims, rounds)
        best = min(range(len(schedules)), key=seconds.__getitem__)
        if seconds[best] > seconds[0] * (1 - _NOISE):
            best = 0
        self.measured += 1
        return Measured(schedules[best], seconds[best], seconds[0], self.effort)
