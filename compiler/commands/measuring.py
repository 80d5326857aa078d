"""What a pass saves, measured: the program without it against the program with it, in turn."""

from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import Any

import torch

from infopt.compiler.commands.timing import interleaved
from infopt.compiler.compiled import build
from infopt.compiler.errors import IllegalGraph
from infopt.compiler.graph import Graph, Stage
from infopt.compiler.options import Options
from infopt.compiler.pipeline import Pass, PassContext
from infopt.compiler.report import Report
from infopt.compiler.target import Target


def measure(
    report: Report,
    graph: Graph,
    sample: Sequence[Any],
    passes: Sequence[Pass],
    names: Collection[str],
    target: Target,
    seconds: float,
) -> None:
    """Fill in `measured` and `noise` of the named passes that applied somewhere.

    A note says where there is no program without the pass: later stages rely on canonical forms.
    """
    entries = [e for e in report.passes if e.name in names and e.applied]
    if not entries:
        return
    whole = _program(graph, passes, target, sample)
    for name in dict.fromkeys(e.name for e in entries):
        rest = [_idle(p) if p.name == name else p for p in passes]
        try:
            arms = {"without": _program(graph, rest, target, sample), "with": whole}
        except IllegalGraph as reason:
            report.notes.append(f"{name} is not measured: {reason}")
            continue
        timings = interleaved(arms, seconds)
        gain = timings["without"].median - timings["with"].median
        noise = max(t.spread * t.median / 2 for t in timings.values())
        for entry in entries:
            if entry.name == name:
                entry.measured, entry.noise = gain, noise


class _Idle(Pass):
    """x -> x, in the place of a pass: what comes after it still comes after something."""

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        return graph


@cache
def _idle_class(name: str, stage: Stage) -> type[Pass]:
    return type("Idle", (_Idle,), {"name": name, "stage": stage})


def _idle(p: Pass) -> Pass:
    return _idle_class(p.name, p.stage)()  # one class for a pass that comes twice


def _program(
    graph: Graph, passes: Sequence[Pass], target: Target, sample: Sequence[Any]
) -> Callable[[], Any]:
    built = build(graph, Options(passes=tuple(passes)), target, Report())
    inputs = [v.clone() if isinstance(v, torch.Tensor) else v for v in sample]
    return lambda: built.program(inputs)
