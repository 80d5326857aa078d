"""`python -m benchmarks random_programs`: random programs through a front door, against eager.

Values (the bits, where no rounding is free), dtypes, shapes, strides, memory shared, writes to
inputs and exceptions. A program that differs is made small and printed as a script. With --log, a
line per seed is kept, and a run with the same log goes on where the last one stopped; delete the
lines of programs that are to run again.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from benchmarks.report import write_json
from tests.conformance.program_check import DOORS, judge
from tests.conformance.program_draw import seeded
from tests.conformance.program_shrink import shrink


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks random_programs", description=__doc__
    )
    parser.add_argument("--count", type=int, default=2000, help="how many programs")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the first one")
    parser.add_argument("--door", choices=DOORS, default=DOORS[0])
    parser.add_argument("--target", default="native", help="with infopt.compile: cpu:avx2 ..")
    parser.add_argument("--log", help="one line per program, to go on from")
    parser.add_argument("--json", help="also write the result to this file")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    seeds = range(options.seed, options.seed + options.count)
    known = logged(Path(options.log)) if options.log else {}
    rows = [
        known.get(seed) or examine(seed, options)
        for seed in track(seeds, description="programs", console=Console(stderr=True))
    ]
    result = summary(rows)
    print(
        f"{options.count} programs from seed {options.seed} through {options.door} "
        f"({options.target}): {result['native']} equal and all native, "
        f"{result['fallback']} equal with some ops as torch runs them, "
        f"{len(result['differing'])} differ; {result['native_share']:.1%} of all nodes native"
    )
    if options.json:
        asked = {k: getattr(options, k) for k in ("count", "seed", "door", "target")}
        write_json(options.json, asked | result)
    return 1 if result["differing"] else 0


def logged(log: Path) -> dict[int, dict[str, Any]]:
    """What the log holds, by seed."""
    lines = log.read_text().splitlines() if log.exists() else []
    return {row["seed"]: row for row in map(json.loads, lines)}


def examine(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One program's row; a difference is shrunk and printed."""
    program = seeded(seed)
    found = judge(program, options.door, options.target)
    row = {"seed": seed, "kind": found.kind, "native": found.native, "aten": found.aten}
    if found.declined:
        row["declined"] = found.declined.partition(";")[0]
    if found.difference:
        small = shrink(program, lambda p: differs(p, options), 40)
        script = small.script(options.door, options.target)
        row |= {"difference": found.difference, "script": script}
        print(f"# seed {seed}: {found.difference}\n{script}\n", flush=True)
    if options.log:
        with Path(options.log).open("a") as file:
            file.write(json.dumps(row) + "\n")
    return row


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    kinds = Counter(row["kind"] for row in rows)
    native, aten = (sum(row[k] for row in rows) for k in ("native", "aten"))
    kept = ("seed", "difference", "script")
    return {
        "native": kinds["native"],
        "fallback": kinds["fallback"],
        "native_share": native / (native + aten) if native + aten else 0.0,
        "differing": [{k: r[k] for k in kept} for r in rows if r["kind"] == "differs"],
        "declined": dict(Counter(r["declined"] for r in rows if "declined" in r).most_common()),
    }


def differs(program: Any, options: argparse.Namespace) -> bool:
    """Whether a simpler program differs too."""
    return bool(judge(program, options.door, options.target).difference)
