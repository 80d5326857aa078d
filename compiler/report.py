"""What was done to a program and why: the one record that every decision goes into."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from infopt.compiler.dump import diff
from infopt.compiler.graph import Graph
from infopt.compiler.page import page
from infopt.compiler.target import Target


@dataclass(frozen=True)
class Site:
    """One place where a pass applied, or declined with a reason.

    gain: predicted seconds per call on the target; None where nobody asked
    """

    where: str
    applied: bool
    reason: str = ""
    gain: float | None = None


@dataclass
class PassReport:
    """One run of one pass.

    key: the content hash of the pass; error: the measured difference on the sample inputs as
    text, "" where not measured; measured: seconds per call that it saves, timed with and
    without it; noise: half the width of the middle half of those times
    milliseconds: what the pass itself took, verification included
    """

    name: str
    stage: str
    contract: str
    nodes_before: int = 0
    nodes_after: int = 0
    sites: list[Site] = field(default_factory=list)
    error: str = ""
    milliseconds: float = 0.0
    key: str = ""
    measured: float | None = None
    noise: float | None = None

    @property
    def applied(self) -> list[Site]:
        return [s for s in self.sites if s.applied]

    @property
    def declined(self) -> list[Site]:
        return [s for s in self.sites if not s.applied]

    @property
    def gain(self) -> float:
        """Predicted seconds per call, summed over the applied sites."""
        return sum(s.gain or 0.0 for s in self.applied)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ScheduleChoice:
    """Which schedule a kernel of a GPU runs with.

    source   "usual", "model" (estimated from the GPU's limits), "database" (measured before) or
             "measured" (just now); why: in words
    seconds  of one call with it, measured or estimated, None where nobody asked; usual: the same of
             the usual schedule
    """

    schedule: Mapping[str, Any]
    source: str
    why: str
    seconds: float | None = None
    usual: float | None = None

    def __str__(self) -> str:
        options = ", ".join(f"{name} {value}" for name, value in self.schedule.items())
        line = f"{options} ({self.source}: {self.why}"
        if self.seconds is not None:
            of = "estimated " if self.source == "model" else ""
            line += f"; {of}{self.seconds * 1e6:.1f} us"
            line += f", usual {self.usual * 1e6:.1f} us" if self.usual is not None else ""
        return line + ")"


@dataclass(frozen=True, eq=False)
class Step:
    """What one pass did: the graphs before and after it, without the values of large constants.

    entry: its place in Report.passes
    """

    name: str
    entry: int
    before: Graph
    after: Graph

    def diff(self) -> str:
        """What changed, as text."""
        return diff(self.before, self.after)


@dataclass(frozen=True)
class FrontierPoint:
    """One point of the trade between error and cost: all layers' formats together.

    predicted_error  of the results, relative; measured_error: the same end to end, where checked
    seconds          of the layers in one call, None where the objective is not time
    bytes            of their weights
    formats          how many layers have each format
    """

    predicted_error: float
    measured_error: float | None
    seconds: float | None
    bytes: int
    formats: dict[str, int]


@dataclass
class Report:
    """Everything infopt decided about one program.

    passes      one entry per pass, in order
    fallbacks   operator -> why it runs as torch runs it, with how often
    declined    the reason why the whole program runs as torch runs it, "" if it does not
    memory      bytes: weights, arena at the sizes seen, and what else the plan knows
    phases      seconds of trace, passes, lower, build
    times       kernel -> seconds of one call, after Compiled.profile
    schedules   of a GPU's kernels with several: kernel and sizes -> the choice and its reason
    frontier    what other error budgets would buy; one point, the chosen one, has a measured error
    machine, graph, history
                the target, the final graph, and what each pass that changed something did; for
                pages and diffs, no part of the JSON
    """

    passes: list[PassReport] = field(default_factory=list)
    fallbacks: dict[str, str] = field(default_factory=dict)
    declined: str = ""
    memory: dict[str, int] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    native_nodes: int = 0
    aten_nodes: int = 0
    kernels: dict[str, int] = field(default_factory=dict)
    target: str = ""
    notes: list[str] = field(default_factory=list)
    times: dict[str, float] = field(default_factory=dict)
    schedules: dict[str, ScheduleChoice] = field(default_factory=dict)
    frontier: list[FrontierPoint] = field(default_factory=list)
    machine: Target | None = field(default=None, repr=False, compare=False)
    graph: Graph | None = field(default=None, repr=False, compare=False)
    history: list[Step] = field(default_factory=list, repr=False, compare=False)

    @property
    def native_share(self) -> float:
        """Share of the operations that run in infopt's own kernels; 1 for an empty graph."""
        total = self.native_nodes + self.aten_nodes
        return self.native_nodes / total if total else float(not self.declined)

    def find(self, name: str) -> PassReport:
        """The entry of one pass; KeyError lists the passes there are."""
        for entry in self.passes:
            if entry.name == name:
                return entry
        raise KeyError(f"no pass {name!r} ran, only {[p.name for p in self.passes]}")

    def to_json(self) -> dict[str, Any]:
        plain = [f.name for f in fields(self) if f.compare]
        data = {name: getattr(self, name) for name in plain}
        data["passes"] = [entry.to_json() for entry in self.passes]
        data["schedules"] = {what: asdict(choice) for what, choice in self.schedules.items()}
        data["frontier"] = [asdict(point) for point in self.frontier]
        data["native_share"] = self.native_share
        return data

    def html(self, path: str | Path, title: str = "infopt") -> Path:
        """Write a page that shows all of it: one file, readable without a network."""
        file = Path(path)
        file.write_text(page([self], title), encoding="utf-8")
        return file

    def json(self) -> str:
        return json.dumps(self.to_json(), indent=1)

    def __str__(self) -> str:
        lines = [f"target {self.target}"]
        if self.declined:
            lines.append(f"runs as torch runs it: {self.declined}")
        total = self.native_nodes + self.aten_nodes
        lines.append(f"native {self.native_nodes} of {total} operations ({self.native_share:.0%})")
        for op, reason in sorted(self.fallbacks.items()):
            lines.append(f"  torch runs {op}: {reason}")
        for entry in self.passes:
            lines.append(pass_line(entry))
        if self.frontier:
            lines += frontier_lines(self.frontier)
        for what, choice in sorted(self.schedules.items()):
            lines.append(f"schedule {what}: {choice}")
        for name, count in sorted(self.memory.items()):
            lines.append(f"memory {name}: {count / 2**20:.1f} MiB")
        if self.phases:
            spent = ", ".join(f"{k} {v:.2f} s" for k, v in self.phases.items())
            lines.append(f"compiled in {sum(self.phases.values()):.2f} s: {spent}")
        return "\n".join(lines + self.notes)


def pass_line(entry: PassReport) -> str:
    """One pass in one line."""
    line = f"{entry.stage.lower():9} {entry.name:24} {len(entry.applied):4} applied"
    line += f" {len(entry.declined):4} declined {entry.milliseconds:7.1f} ms"
    if entry.gain:
        line += f"  gain {entry.gain * 1e6:.1f} us"
    if entry.measured is not None:
        line += f"  measured {measured_text(entry)}"
    return line + (f"  error {entry.error}" if entry.error else "")


def frontier_lines(points: list[FrontierPoint]) -> list[str]:
    """The trade between error and cost as a table; the chosen point is marked."""
    lines = ["error budget, predicted; > is the chosen point with its measured error"]
    for p in points:
        mark = " " if p.measured_error is None else ">"
        found = "" if p.measured_error is None else f" (measured {p.measured_error:.2e})"
        time = "" if p.seconds is None else f" {p.seconds * 1e3:9.3f} ms"
        formats = ", ".join(f"{count} {name}" for name, count in sorted(p.formats.items()))
        size = f"{p.bytes / 2**20:8.1f} MiB"
        lines.append(f"{mark} error {p.predicted_error:.2e}{found}{time} {size}: {formats}")
    return lines


def measured_text(entry: PassReport) -> str:
    """The measured gain with its noise."""
    return f"{(entry.measured or 0.0) * 1e6:.2f} us +- {(entry.noise or 0.0) * 1e6:.2f} us"


def explanation(entry: PassReport) -> str:
    """Where one pass applied, and where not and why: what `infopt.explain` prints."""
    lines = [f"{entry.name} ({entry.stage.lower()}, {entry.contract})"]
    if entry.error:
        lines.append(f"  error {entry.error}")
    if entry.measured is not None:
        lines.append(f"  measured gain {measured_text(entry)}")
    for site in entry.sites:
        gain = "" if site.gain is None else f", gain {site.gain * 1e6:.2f} us"
        reason = f": {site.reason}" if site.reason else ""
        verdict = f"{'applied' if site.applied else 'declined'}{gain}{reason}"
        lines.append(f"  {site.where}: {verdict}")
    if not entry.sites:
        lines.append("  found nothing to do")
    return "\n".join(lines)
