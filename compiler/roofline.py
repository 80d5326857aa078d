"""Where a program's operations lie under a machine's limits, as a drawing in SVG.

The roofline model (Williams, Waterman and Patterson, 2009): an operation of intensity I flop per
byte reaches at most min(peak, I * bandwidth). Work, traffic and time are the cost model's estimates
(cost.py) at the sizes seen; the limits are the target's.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from infopt.compiler.cost import compute_dtype, cost_of, seconds
from infopt.compiler.graph import Graph, Node
from infopt.compiler.target import Target
from infopt.compiler.types import dtype_name, hint

_WIDTH, _HEIGHT = 720, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 30, 48


@dataclass(frozen=True)
class Point:
    """All nodes of one op and result type: flop and bytes of one of them, seconds of all.

    bound: what limits it: "compute", "memory", or "start" (the cost of starting a step)
    """

    name: str
    dtype: str
    count: int
    flops: float
    bytes: float
    seconds: float
    bound: str

    @property
    def intensity(self) -> float:
        """Flop per byte."""
        return self.flops / self.bytes

    @property
    def gflops(self) -> float:
        """Estimated GFLOP/s."""
        return self.flops * self.count / self.seconds / 1e9


def points_of(graph: Graph, target: Target) -> list[Point]:
    """The operations of a graph, those that take longest first; views and leaves are none."""
    groups: dict[tuple[str, str], list[Node]] = defaultdict(list)
    for node in graph.nodes():
        cost = cost_of(node)
        if hint(cost.bytes, graph.dims) > 0 and hint(cost.flops, graph.dims) > 0:
            groups[node.op.name, str(node.type)].append(node)
    found = []
    for nodes in groups.values():
        cost = cost_of(nodes[0])
        flops, traffic = (float(hint(c, graph.dims)) for c in (cost.flops, cost.bytes))
        dtype = dtype_name(compute_dtype(nodes[0]))
        each = seconds(cost, target, nodes[0], graph.dims)
        work, move = flops / (target.peak_of(dtype) * 1e9), traffic / (target.bandwidth * 1e9)
        bound = "start" if target.launch_cost > max(work, move) else "memory"
        bound = "compute" if bound == "memory" and work > move else bound
        name = nodes[0].op.name.removeprefix("aten.").removesuffix(".default")
        found.append(Point(name, dtype, len(nodes), flops, traffic, each * len(nodes), bound))
    return sorted(found, key=lambda p: -p.seconds)


def roofline(points: Sequence[Point], target: Target) -> str:
    """The drawing: roofs of the dtypes used, and one disc per point, its area its time."""
    if not points:
        return ""
    axes = _Axes(points, target)
    dtypes = list(dict.fromkeys(p.dtype for p in points if p.dtype in target.peak)) or ["f32"]
    total = sum(p.seconds for p in points)
    parts = [axes.grid(), *(_roof(axes, target, d) for d in dtypes)]
    for p in points:
        x, y = axes.x(p.intensity), axes.y(p.gflops)
        radius = 4 + 18 * math.sqrt(p.seconds / total)
        parts.append(
            f'<circle class="{p.bound}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">'
            f"<title>{escape(describe(p))}</title></circle>"
        )
    label = "Roofline: estimated GFLOP/s over flop per byte, one disc per operation"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        + "".join(parts)
        + "</svg>"
    )


def describe(p: Point) -> str:
    """One point in words."""
    return (
        f"{p.count} x {p.name} in {p.dtype}: {p.intensity:.3g} flop/byte, "
        f"{p.gflops:.3g} GFLOP/s, {p.seconds * 1e6:.3g} us, limited by {p.bound}"
    )


class _Axes:
    """Logarithmic axes that hold all points and roofs."""

    def __init__(self, points: Sequence[Point], target: Target) -> None:
        ridge = max(target.peak.values()) / target.bandwidth
        xs = [p.intensity for p in points] + [ridge]
        ys = [p.gflops for p in points] + [max(target.peak_of(p.dtype) for p in points)]
        self.x0, self.x1 = _decades(min(xs), max(xs))
        self.y0, self.y1 = _decades(min(ys), max(ys))

    def x(self, value: float) -> float:
        share = (math.log10(value) - self.x0) / (self.x1 - self.x0)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (math.log10(value) - self.y0) / (self.y1 - self.y0)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def grid(self) -> str:
        bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
        parts = []
        for e in range(self.x0, self.x1 + 1):
            x = self.x(10.0**e)
            parts.append(f'<path class="grid" d="M{x:.1f} {_TOP}V{bottom}"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" class="mid">{10.0**e:g}</text>')
        for e in range(self.y0, self.y1 + 1):
            y = self.y(10.0**e)
            parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
            parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" class="end">{10.0**e:g}</text>')
        middle = (_LEFT + right) / 2
        parts.append(f'<text x="{middle}" y="{_HEIGHT - 8}" class="mid">flop per byte</text>')
        parts.append('<text x="8" y="14">GFLOP/s</text>')
        return "".join(parts)


def _roof(axes: _Axes, target: Target, dtype: str) -> str:
    peak = target.peak_of(dtype)
    low, high = 10.0**axes.x0, 10.0**axes.x1
    start = max(low, 10.0**axes.y0 / target.bandwidth)
    ridge = peak / target.bandwidth
    corners = [(start, start * target.bandwidth), (ridge, peak), (high, peak)]
    path = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in corners)
    text = f"{dtype} {peak:.0f} GFLOP/s"
    return (
        f'<polyline class="roof" points="{path}"/>'
        f'<text x="{axes.x(high) - 4:.1f}" y="{axes.y(peak) - 6:.1f}" class="end">{text}</text>'
    )


def _decades(low: float, high: float) -> tuple[int, int]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return first, max(last, first + 1)
