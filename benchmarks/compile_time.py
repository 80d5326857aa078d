"""`python -m benchmarks compile_time`: seconds from a module to its first result, in fresh
processes.

Cold: empty caches. Warm: the same question in a second process over the caches the first one
filled. The deep-2 and deep-48 encoders differ in depth only. The arm dynamo is torch.compile with
backend="eager": what torch.compile itself needs, its imports included. infopt-artifact is the time
from the file that another process saved, the same cold and warm.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

from rich.table import Table

from benchmarks.encoders import caches
from benchmarks.first_call import ARTIFACT, first_call
from benchmarks.process import Child, ChildFailed
from benchmarks.report import wide_console, write_json

WORKLOADS = ("bert-1x128", "deep-2", "deep-48")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks compile_time", description=__doc__)
    parser.add_argument("--json", help="also write the rows to this file")
    every = f"dynamo,infopt,infopt-offline,{ARTIFACT},inductor"
    parser.add_argument("--arms", default=every, help="which to measure")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--repeats", type=int, default=2, help="fresh processes per number; the least counts"
    )
    options = parser.parse_args(arguments)
    console = wide_console()
    rows = []
    for name in options.arms.split(","):
        for workload in WORKLOADS:
            with console.status(f"{name} {workload}"):
                rows.append(first_calls(name, workload, options.threads, options.repeats))
    drawn = Table(title="first call, seconds")
    for heading in ("arm", "workload", "cold", "warm"):
        drawn.add_column(heading, justify="left" if heading in ("arm", "workload") else "right")
    for row in rows:
        shown = (
            [row["failure"]] if "failure" in row else [f"{row[k]:.2f}" for k in ("cold", "warm")]
        )
        drawn.add_row(row["arm"], row["workload"], *shown)
    console.print(drawn)
    growth = depth_cost(rows)
    for name, seconds in growth.items():
        console.print(f"{name}: 48 layers take {seconds:.2f} s longer than 2, cold")
    if options.json:
        write_json(options.json, {"rows": rows, "depth_cost": growth})
    return 0 if not any("failure" in row for row in rows) else 1


def first_calls(name: str, workload: str, threads: int, repeats: int) -> dict[str, Any]:
    """The least cold and the least warm first call over fresh processes."""
    question = {"workload": workload, "name": name, "dtype": "fp32", "threads": threads}
    cold, warm = [], []
    try:
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as folder:
                for seconds in (cold, warm):
                    with Child("benchmarks.encoder_arm", caches(folder)) as child:
                        seconds.append(first_call(child, folder, **question))
    except ChildFailed as failure:
        return {"arm": name, "workload": workload, "failure": failure.reason}
    return {"arm": name, "workload": workload, "cold": min(cold), "warm": min(warm)}


def depth_cost(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds that 46 more layers add to a cold first call, by arm."""
    cold = {(row["arm"], row["workload"]): row["cold"] for row in rows if "cold" in row}
    return {
        name: cold[name, "deep-48"] - cold[name, "deep-2"]
        for name, workload in cold
        if workload == "deep-48" and (name, "deep-2") in cold
    }
