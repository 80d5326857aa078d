"""A scatter plot as SVG: linear x, logarithmic y, every point named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760, 420, 70, 40, 150, 50
COLOURS = ("#d9730d", "#2f5fde", "#3f8f4f", "#8a4fbf")


@dataclass(frozen=True)
class Series:
    """Points (x, y, name) of one kind; joined: with a line between neighbours in x."""

    name: str
    points: Sequence[tuple[float, float, str]]
    joined: bool


def scatter(series: Sequence[Series], x_title: str, y_title: str) -> str:
    """One SVG file; y must be positive."""
    points = [p for s in series for p in s.points]
    xs, ys = [p[0] for p in points], [math.log10(p[1]) for p in points]
    x0, x1 = math.floor(min(xs)), math.ceil(max(xs))
    y0, y1 = math.floor(min(ys)), math.ceil(max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        up = (math.log10(y) - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)
        return LEFT + across, HEIGHT - BOTTOM - up

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for exponent in range(y0, y1 + 1):
        x, y = place(x0, 10.0**exponent)
        parts.append(f'<path d="M{x:.0f} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{x - 8:.0f}" y="{y + 4:.1f}" text-anchor="end">{10.0**exponent:g}</text>'
        )
    step = max(1, round((x1 - x0) / 8))
    for tick in range(x0, x1 + 1, step):
        x, y = place(tick, 10.0**y0)
        parts.append(f'<text x="{x:.1f}" y="{y + 16:.0f}" text-anchor="middle">{tick}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle:.0f}" y="{HEIGHT - 12}" text-anchor="middle">{escape(x_title)}</text>'
    )
    parts.append(
        f'<text transform="translate(18 {HEIGHT / 2:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_title)}</text>"
    )
    for index, (one, colour) in enumerate(zip(series, COLOURS, strict=False)):
        y = 16 + 14 * index
        parts.append(f'<circle cx="{LEFT}" cy="{y - 4}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{LEFT + 10}" y="{y}">{escape(one.name)}</text>')
        places = sorted(place(x, v) for x, v, _ in one.points)
        if one.joined:
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}"/>')
        for x_value, y_value, name in one.points:
            x, y = place(x_value, y_value)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
            parts.append(
                f'<text x="{x + 7:.1f}" y="{y + 4:.1f}" fill="{colour}">{escape(name)}</text>'
            )
    return "\n".join([*parts, "</svg>", ""])
