"""`python -m benchmarks random_programs`: random programs through a front door, against eager.

Values (the bits, where no rounding is free), dtypes, shapes, strides, memory shared, writes to
inputs and exceptions. A program that differs is made small and printed as a script.
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
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
    parser.add_argument("--json", help="also write the result to this file")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    kinds: Counter[str] = Counter()
    nodes: Counter[str] = Counter()
    declined: Counter[str] = Counter()
    differing: list[dict[str, Any]] = []
    seeds = range(options.seed, options.seed + options.count)
    for seed in track(seeds, description="programs", console=Console(stderr=True)):
        program = seeded(seed)
        found = judge(program, options.door, options.target)
        kinds[found.kind] += 1
        nodes.update(native=found.native, aten=found.aten)
        if found.declined:
            declined[found.declined.partition(";")[0]] += 1
        if found.difference:
            small = shrink(program, lambda p: differs(p, options), 40)
            script = small.script(options.door, options.target)
            differing.append({"seed": seed, "difference": found.difference, "script": script})
            print(f"# seed {seed}: {found.difference}\n{script}\n", flush=True)
    total = nodes["native"] + nodes["aten"]
    share = nodes["native"] / total if total else 0.0
    print(
        f"{options.count} programs from seed {options.seed} through {options.door} "
        f"({options.target}): {kinds['native']} equal and all native, "
        f"{kinds['fallback']} equal with some ops as torch runs them, "
        f"{kinds['differs']} differ; {share:.1%} of all nodes native"
    )
    if options.json:
        result = {"kinds": dict(kinds), "native_share": share, "differing": differing}
        write_json(options.json, result | {"declined": dict(declined.most_common())})
    return 1 if differing else 0


def differs(program: Any, options: argparse.Namespace) -> bool:
    """Whether a simpler program differs too."""
    return bool(judge(program, options.door, options.target).difference)
