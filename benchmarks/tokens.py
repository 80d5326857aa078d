"""`python -m benchmarks tokens`: what merging and dropping tokens buys, and what it costs.

ViT-base on 8 images with 30 % of the tokens left (random weights: its speed only), and the real
MiniLM on passages of 128 tokens, at several shares. Every way is timed in turn with all tokens,
which ran a moment before: least and median of the rounds. For MiniLM also the cosine to all tokens,
and the share of passages that keep their nearest neighbour. --plot draws cosine against speed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

import infopt
from benchmarks.quantization import nearest
from benchmarks.report import wide_console, write_json
from benchmarks.scatter import Series, scatter
from benchmarks.workloads import build_vit, full, random_images
from infopt.models.minilm import load_minilm

SHARES = (0.9, 0.75, 0.5, 0.35)
METHODS = (("merge", "states"), ("merge", "keys"), ("prune", "attention"), ("prune", "norm"))
JUDGED = 96  # passages


@torch.no_grad()
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks tokens", description=__doc__)
    parser.add_argument("--json", help="also write the rows here, over those of the same ways")
    parser.add_argument("--plot", help="write cosine against speed to this SVG file")
    parser.add_argument("--rounds", type=int, default=9, help="timed calls of every way")
    parser.add_argument("--only", choices=[*CASES], help="one of the workloads")
    parser.add_argument("--shares", default=SHARES, type=shares, help="of tokens left, MiniLM")
    options = parser.parse_args(arguments)
    console, rows = wide_console(), []
    if options.json and Path(options.json).exists():
        rows = json.loads(Path(options.json).read_text(encoding="utf-8"))["rows"]
    for name, case in CASES.items():
        if options.only in (None, name):
            for row in case(options.rounds, options.shares):
                console.print(f"{name}: {row}")
                made = {"workload": name, **row}
                rows = [r for r in rows if not same(r, made)] + [made]
                if options.json:  # at once: a long run may be cut
                    write_json(options.json, {"rows": rows})
    rows.sort(key=lambda r: (list(CASES).index(r["workload"]), -r["keep"]))
    console.print(table(rows))
    if options.json:
        write_json(options.json, {"rows": rows})
    if options.plot:
        Path(options.plot).write_text(plot(rows), encoding="utf-8")
    return 0


def shares(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(",")))


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether both rows are of one way."""
    return all(one[key] == other[key] for key in ("workload", "keep", "way"))


def vision(rounds: int, _: tuple[float, ...]) -> Iterator[dict[str, Any]]:
    """ViT-base, 8 images, 30 % of the tokens left."""
    model, images = build_vit(), random_images(8)
    whole = infopt.compile(model, images)
    for method, score in METHODS:
        for schedule in ("even", "early"):
            asked = infopt.Tokens(0.3, method, score, schedule, limit=10.0)
            fewer = infopt.compile(model, images, tokens=asked)
            yield described(asked, fewer) | timed(whole, fewer, images, rounds)


def passages(batch: int) -> Callable[[int, tuple[float, ...]], Iterator[dict[str, Any]]]:
    """MiniLM on that many passages at once."""

    def run(rounds: int, shares: tuple[float, ...]) -> Iterator[dict[str, Any]]:
        model, texts = load_minilm(), full(JUDGED, 128)
        inputs = tuple(t[:batch] for t in texts)
        expected = model(*texts)
        whole = infopt.compile(model, inputs)
        for keep in shares:
            for method, score in METHODS:
                asked = infopt.Tokens(keep, method, score, limit=10.0)
                fewer = infopt.compile(model, inputs, tokens=asked)
                parts = zip(*(t.split(batch) for t in texts), strict=True)
                found = torch.cat([fewer(*part) for part in parts])
                yield (
                    described(asked, fewer)
                    | agreement(expected, found)
                    | timed(whole, fewer, inputs, rounds)
                )

    return run


CASES = {
    "vit-8": vision,
    "minilm-1x128": passages(1),
    "minilm-32x128": passages(32),
}


def described(asked: infopt.Tokens, compiled: Any) -> dict[str, Any]:
    entry = compiled.report.find("merge-tokens")
    declined = "" if entry.applied else entry.sites[0].reason
    return {
        "keep": asked.keep,
        "way": f"{asked.method} by {asked.judged_by}, {asked.schedule}",
        "declined": declined,
    }


def agreement(expected: Tensor, found: Tensor) -> dict[str, float]:
    cosine = torch.cosine_similarity(expected, found)
    return {
        "mean_cosine": cosine.mean().item(),
        "least_cosine": cosine.min().item(),
        "neighbours": (nearest(found) == nearest(expected)).double().mean().item(),
    }


def timed(whole: Any, fewer: Any, inputs: tuple[Tensor, ...], rounds: int) -> dict[str, float]:
    """Milliseconds of both, called in turn."""
    times: dict[str, list[float]] = {"all": [], "fewer": []}
    for _ in range(rounds + 1):
        for name, call in (("all", whole), ("fewer", fewer)):
            start = time.perf_counter()
            call(*inputs)
            times[name].append((time.perf_counter() - start) * 1e3)
    kept = {name: t[1:] for name, t in times.items()}  # the first call finds cold memory
    return {
        "all_least": min(kept["all"]),
        "fewer_least": min(kept["fewer"]),
        "all_median": median(kept["all"]),
        "fewer_median": median(kept["fewer"]),
        "faster": median(kept["all"]) / median(kept["fewer"]),
    }


def table(rows: list[dict[str, Any]]) -> Table:
    drawn = Table(title="Fewer tokens against all of them")
    for heading in ("workload", "left", "way"):
        drawn.add_column(heading)
    headings = ("all ms", "fewer ms", "faster", "mean cosine", "least", "neighbours")
    for heading in headings:
        drawn.add_column(heading, justify="right")
    for row in rows:
        judged = [f"{row[k]:.3f}" if k in row else "" for k in ("mean_cosine", "least_cosine")]
        judged.append(f"{row['neighbours']:.1%}" if "neighbours" in row else "")
        drawn.add_row(
            row["workload"],
            f"{row['keep']:.0%}",
            row["way"] + (" (declined)" if row["declined"] else ""),
            f"{row['all_median']:.2f}",
            f"{row['fewer_median']:.2f}",
            f"{row['faster']:.2f}",
            *judged,
        )
    return drawn


def plot(rows: list[dict[str, Any]]) -> str:
    """What 32 passages lose in cosine against speed, a line for every way."""
    chosen = [r for r in rows if r["workload"] == "minilm-32x128" and not r["declined"]]
    lines: dict[str, list[tuple[float, float, str]]] = {}
    for row in chosen:
        point = row["faster"], 1 - row["mean_cosine"], f"{row['keep']:.0%}"
        lines.setdefault(row["way"], []).append(point)
    series = [Series(way, points, joined=True) for way, points in lines.items()]
    return scatter(series, "times faster than with all tokens", "1 - mean cosine to all tokens")
