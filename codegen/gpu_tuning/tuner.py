"""The schedule of each GPU kernel: measured here, measured on its like, or by the cost model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from infopt.codegen.gpu_tuning.candidates import Candidates, candidates, fits
from infopt.codegen.gpu_tuning.known import Found, Known, Place, what_of
from infopt.codegen.gpu_tuning.measuring import Bench, Timed
from infopt.codegen.kernel import Emitter
from infopt.codegen.schedules import Database, Measured, usual
from infopt.compiler.graph import Node
from infopt.compiler.report import ScheduleChoice
from infopt.compiler.target import Target
from infopt.compiler.types import Dim

ROUNDS = {1: 5, 2: 15}  # turns of each schedule, by effort
NOISE = 0.02  # a measured schedule must gain more than this share to be taken
MARGIN = 0.10  # and one that is only estimated, more than this


class GpuTuner:
    """As `Tuner` (codegen/tuner.py) is for CPUs, with a chain where nothing was measured here.

    bench    where candidates are measured, None where there is no GPU
    choices  what was decided for each kernel, by what its time depends on
    measured how many kernels were measured

    Schedules of a GPU sum in different orders, so a program keeps the usual ones where it was asked
    for rows that do not depend on their batch.
    """

    def __init__(
        self,
        database: Database,
        effort: int,
        target: Target,
        dims: tuple[Dim, ...],
        bench: Bench | None = None,
    ) -> None:
        self.database, self.known = database, Known(database)
        self.effort, self.target, self.dims, self.bench = effort, target, dims, bench
        self.place = Place.of(target, None if bench is None else bench.device)
        self.choices: dict[str, ScheduleChoice] = {}
        self.measured = 0

    def __call__(self, node: Node, emitter: Emitter) -> Mapping[str, Any]:
        schedules = list(emitter.schedules())
        if len(schedules) == 1:
            return schedules[0]
        what = what_of(node, self.dims)
        if what not in self.choices:
            self.choices[what] = self._chosen(node, emitter, schedules, what)
        return self.choices[what].schedule

    def _chosen(
        self, node: Node, emitter: Emitter, schedules: list[dict[str, Any]], what: str
    ) -> ScheduleChoice:
        if self.target.batch_invariant:
            return ScheduleChoice(usual(node, emitter), "usual", "rows must not depend on a batch")
        here = self.known.exact(what, self.place)
        if self.effort and self.bench and (here is None or here.effort < self.effort):
            found = candidates(node, emitter, self.target, self.dims)
            if len(found.kept) > 1:
                return self._measured(found, what, self.bench)
        near = self.known.nearest(what, self.place)
        # a schedule of another version's space is no schedule
        if near is not None and near.measured.schedule in schedules:
            schedule = near.measured.schedule
            if near.near == "here" or fits(node, emitter, self.target, self.dims, schedule):
                return _remembered(near)
        return _estimated(candidates(node, emitter, self.target, self.dims))

    def _measured(self, found: Candidates, what: str, bench: Bench) -> ScheduleChoice:
        schedules = [c.schedule for c in found.kept]
        times = bench.timed(found.graph, schedules, ROUNDS[self.effort])
        best = min(range(len(times)), key=lambda i: times[i].seconds)
        failed = _failures(times)
        if times[best].seconds == math.inf:
            return ScheduleChoice(schedules[0], "usual", f"none could be measured{failed}")
        noise = max(NOISE * times[0].seconds, times[0].noise, times[best].noise)
        if times[best].seconds > times[0].seconds - noise:
            best = 0
        self.measured += 1
        seconds, first = times[best].seconds, times[0].seconds
        # where the usual one failed, nothing is claimed against it
        first = seconds if first == math.inf else first
        entry = Measured(schedules[best], seconds, first, self.effort)
        self.known.add(what, self.place, entry)
        why = f"best of {len(times)} of {found.different} that differ{failed}"
        return ScheduleChoice(schedules[best], "measured", why, seconds, first)


def _remembered(found: Found) -> ScheduleChoice:
    entry, source = found.measured, f"measured on {found.place}"
    if found.near != "here":
        source += f", {found.near}"
    return ScheduleChoice(entry.schedule, "database", source, entry.seconds, entry.usual)


def _estimated(found: Candidates) -> ScheduleChoice:
    """The usual schedule, or one that the cost model finds clearly better."""
    first = found.kept[0]
    if len(found.kept) == 1:
        return ScheduleChoice(first.schedule, "usual", "the only one that runs at these sizes")
    estimates = [c.estimate for c in found.kept]
    if first.estimate is None or None in estimates:
        return ScheduleChoice(first.schedule, "usual", "nothing is known of this kernel's work")
    best = min(found.kept, key=lambda c: c.estimate.seconds if c.estimate else math.inf)
    assert best.estimate is not None
    seconds, at_first = best.estimate.seconds, first.estimate.seconds
    if seconds >= at_first * (1 - MARGIN):
        why = f"none of {found.different} is estimated to gain {MARGIN:.0%}"
        return ScheduleChoice(first.schedule, "usual", why)
    why = f"best estimate of {found.different} that differ"
    usual_seconds = at_first if at_first < math.inf else None
    return ScheduleChoice(best.schedule, "model", why, seconds, usual_seconds)


def _failures(times: list[Timed]) -> str:
    failed = [t.failure for t in times if t.failure]
    return f"; {len(failed)} failed, the first: {failed[0]}" if failed else ""
