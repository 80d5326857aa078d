"""Killed, forked, interrupted, starved, and for hours: what infopt does when things go wrong.

    python -m benchmarks robustness --kills 1000 --forks 100 --interrupts 200

Every figure is a count of outcomes; anything but "right" among readers and children is a finding,
and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from typing import Any

import torch

from benchmarks.report import wide_console, write_json
from benchmarks.robust_busy import busy
from benchmarks.robust_forks import forks
from benchmarks.robust_interrupts import interrupts
from benchmarks.robust_kills import cache_kills, model_kills, save_kills
from benchmarks.robust_soak import soak
from benchmarks.robust_subject import subject

console = wide_console()


def main(arguments: list[str]) -> int:
    """Run what was asked for; 1 if anything was wrong."""
    args = _parser().parse_args(arguments)
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)  # as a parent of forks should be; forks() sets its own
    torch.compile(subject(0), backend="infopt")(torch.randn(40, 32))  # imports everything
    torch._dynamo.reset()
    generator = random.Random(args.seed)
    results: dict[str, Any] = {}
    parts = (
        ("cache writers killed", args.kills, lambda n: cache_kills(n, generator)),
        ("compiling models killed", args.model_kills, lambda n: model_kills(n, generator)),
        ("saving killed", args.save_kills, lambda n: save_kills(n, generator)),
        ("interrupted", args.interrupts, lambda n: _interrupts(n, generator)),
        ("forks", args.forks, forks),
        ("busy cores", args.busy_rounds, busy),
        ("soak", args.soak_minutes, lambda minutes: soak(minutes, args.seed)),
    )
    for name, count, part in parts:
        if count:
            begin = time.monotonic()
            results[name] = part(count)
            _show(name, results[name], time.monotonic() - begin)
    if args.output:
        write_json(args.output, results)
    bad = sum(_bad(result) for result in results.values())
    console.print(f"wrong outcomes: {bad}")
    return 1 if bad else 0


def _interrupts(count: int, generator: random.Random) -> dict[str, Any]:
    found, delays = interrupts(count, generator)
    ordered = sorted(delays) or [0.0]
    late = sum(d > 1.0 for d in ordered)
    return {
        "outcomes": found,
        "seconds to surface": {
            "median": ordered[len(ordered) // 2],
            "max": ordered[-1],
            "over 1 s": late,
        },
    }


def _bad(result: Any) -> int:
    """Outcomes of readers, children and next calls that are not right; orphans, files left."""
    if not isinstance(result, Counter):
        return sum(_bad(part) for part in result.values()) if isinstance(result, dict) else 0
    fine = ("right", "reader right", "next call right", "interrupted", "the call was over")
    return sum(
        count
        for name, count in result.items()
        if name not in fine and not name.startswith(("writer ", "new path"))
    )


def _show(name: str, result: Any, seconds: float) -> None:
    console.print(f"[bold]{name}[/bold] ({seconds:.0f} s)")
    parts = result.items() if isinstance(result, dict) and not isinstance(result, Counter) else ()
    for part, counts in parts or [("", result)]:
        if not isinstance(counts, dict):  # the samples behind a figure
            continue
        text = ", ".join(
            f"{k}: {v:.3g}" if isinstance(v, float) else f"{k}: {v}" for k, v in counts.items()
        )
        console.print(f"  {part + ': ' if part else ''}{text}", highlight=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks robustness", description=__doc__)
    for name, count, what in (
        ("kills", 20, "rounds of three writers of one cache killed, then two readers"),
        ("model-kills", 2, "compiles of a model killed"),
        ("save-kills", 10, "savings of an artifact killed"),
        ("interrupts", 5, "first calls interrupted"),
        ("forks", 5, "children of each kind"),
        ("busy-rounds", 20, "calls of each arm, idle and beside a busy process"),
    ):
        parser.add_argument(f"--{name}", type=int, default=count, help=f"{what} (default {count})")
    parser.add_argument("--soak-minutes", type=float, default=0.2, help="of mixed load")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", metavar="FILE", help="write the result as JSON")
    return parser
