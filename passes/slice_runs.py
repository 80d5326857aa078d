"""f(x) -> cat(f(slice 0), f(slice 1), ...) for runs of ops that treat an axis' parts apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from infopt.codegen.lower import lower
from infopt.compiler.cost import graph_seconds
from infopt.compiler.errors import BadOption, UnreachableBudget
from infopt.compiler.graph import Graph, Stage
from infopt.compiler.pipeline import Pass, PassContext
from infopt.passes.slicing import Run, batch_runs, row_runs, sliced

_COUNTS = (2, 4, 8, 16, 32)
_LEAST_ROWS = 16  # one token panel: fewer are computed by other kernels, to other bits


@dataclass(frozen=True)
class SliceRuns(Pass):
    """f(x) -> cat(f(slice 0), f(slice 1), ...), so that only slices of what is between exist

    Exact: slices of rows (MLPs, norms) or of the batch (nearly everything) are computed as they
    are without. Of all ways that keep the limit the one with the least estimated time is taken;
    weights are read once per slice (mini-sequences of MOM, 2025; feature slicing of Streamlined
    Inference, 2024).

    limit  bytes that a call may use beside inputs, weights and results; None: as few as there are
    """

    name: ClassVar[str] = "slice-runs"
    stage: ClassVar[Stage] = Stage.LAYOUT

    limit: int | None = None

    def __post_init__(self) -> None:
        limit = self.limit
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool)):
            raise BadOption(f"max_activations: expected bytes or None, found {limit!r}")
        if limit is not None and limit <= 0:
            raise BadOption(f"max_activations: expected a number above 0, found {limit}")

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        if graph.dims or graph.updates:
            what = "open sizes" if graph.dims else "writes to its inputs"
            return self._kept(graph, ctx, f"slices need sizes that are fixed: the graph has {what}")
        before = _arena(graph, ctx)
        if self.limit is not None and before <= self.limit:
            ctx.site("graph", False, f"it uses {before} bytes, the limit is {self.limit}")
            return graph
        ways = []
        for runs, count in _ways(graph):
            made = sliced(graph, runs, count, replace(ctx, limit=None))
            seconds = graph_seconds(made, ctx.target) - graph_seconds(graph, ctx.target)
            ways.append((seconds, count, runs, made))
        ways.sort(key=lambda way: way[0])
        best, least = None, before
        for seconds, count, runs, made in ways:
            used = _arena(made, ctx)
            if used < least:
                best, least = (seconds, count, runs), used
            if self.limit is not None and used <= self.limit:
                break
        if self.limit is not None and least > self.limit:
            raise UnreachableBudget(
                f"max_activations={self.limit}: a call needs {least} bytes beside inputs, weights "
                f"and results with slices, {before} without; smaller inputs need less"
            )
        if best is None:
            return self._kept(graph, ctx, f"no slices use less than {before} bytes")
        seconds, count, runs = best
        for run in runs:
            each = seconds / len(runs)
            told = f"{run} in {count} slices: {before} bytes -> {least} for the graph"
            ctx.site(run.first, True, told, -each)
        return sliced(graph, runs, count, ctx)

    def _kept(self, graph: Graph, ctx: PassContext, reason: str) -> Graph:
        if self.limit is not None:
            raise UnreachableBudget(f"max_activations={self.limit}: {reason}")
        ctx.site("graph", False, reason)
        return graph


def _ways(graph: Graph) -> Iterator[tuple[list[Run], int]]:
    """Runs, and into how many slices to cut them."""
    for found in (row_runs(graph), batch_runs(graph)):
        for count in _COUNTS:
            runs = [r for r in found if r.axis.count // count * r.rows_of_part >= _LEAST_ROWS]
            if runs:
                yield runs, count


def _arena(graph: Graph, ctx: PassContext) -> int:
    """Bytes of the call's own memory, the threads' scratch aside."""
    return lower(graph, ctx.target).arena_bytes
