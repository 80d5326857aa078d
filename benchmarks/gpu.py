"""`python -m benchmarks gpu`: every GPU kernel checked, then timed against torch, within 9 minutes.

First each kernel is compared with its reference on random inputs, on this device; then the rows of
gpu_rows.py are measured, the most telling first, until the time is over. infopt's schedules are
measured as tune=1 does, and --tuning keeps what was found, for `infopt tuning merge`. Without a GPU
it says so and fails.
"""

from __future__ import annotations

import argparse
import datetime
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.gpu_check import check_kernels, without_cases
from benchmarks.gpu_lab import Lab
from benchmarks.gpu_rows import measure, rows
from benchmarks.report import wide_console, write_json
from infopt.codegen.gpu_tuning.clock import GraphClock
from infopt.codegen.schedules import TUNING, Database
from infopt.compiler.settings import Settings
from infopt.compiler.target import Target
from infopt.runtime.cuda_device import CudaDevice, find_gpus

MINUTES = 9.0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    parser.add_argument("--json", help="also write the results to this file")
    parser.add_argument("--tune", type=int, default=1, choices=(0, 1, 2), help="see Options.tune")
    parser.add_argument("--tuning", help="also write the schedules that were measured to this file")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all of it")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--no-check", action="store_true", help="leave the comparison out")
    options = parser.parse_args(arguments)
    console = wide_console()
    if not find_gpus():
        console.print(f"no GPU that torch {torch.__version__} can use: nothing was measured")
        return 1
    torch.manual_seed(0)
    deadline = time.perf_counter() + 60 * options.minutes
    lab = Lab(CudaDevice(), Target.of_gpu(), GraphClock(), deadline, tune=options.tune)
    result = run(lab, console, options.only, not options.no_check)
    if options.json:
        write_json(options.json, about(lab) | result)
    if options.tuning and (folder := Settings.from_environment().cache):
        Database(Database.load(folder / TUNING).entries, Path(options.tuning)).save()
    return 1 if any(r["error"] for r in result["checks"]) else 0


def run(lab: Lab, console: Console, only: str = "", check: bool = True) -> dict[str, Any]:
    """Checks, then rows, printed as they come."""
    checks = check_kernels(lab) if check else []
    wrong = [c for c in checks if c["error"]]
    console.print(f"{len(checks) - len(wrong)} of {len(checks)} cases equal their references")
    for c in wrong:
        console.print(f"  {c['kernel']}, {c['case']}: {c['error']}")
    found = []
    for row in rows():
        if only in row.name:
            found.append(measure(lab, row))
            console.print(line(found[-1]))
    console.print(table(found))
    return {"checks": checks, "without_cases": without_cases(lab), "rows": found}


def line(row: dict[str, Any]) -> str:
    """One row as it comes."""
    if "failure" in row:
        return f"{row['row']}: {row['failure']}"
    return f"{row['row']}: {row['score']:.2f} of {row['of']}, goal {row['goal']}"


def table(found: list[dict[str, Any]]) -> Table:
    """All rows: infopt's time, the others', the score and its goal."""
    drawn = Table(title="GPU")
    for heading in ("row", "infopt, µs", "others, µs", "score", "goal", "of"):
        drawn.add_column(heading, justify="left" if heading in ("row", "others, µs") else "right")
    for row in found:
        arms = row.get("arms", {})
        times = {n: a["median"] * 1e6 for n, a in arms.items() if "median" in a}
        own = f"{times.pop('infopt'):.1f}" if "infopt" in times else "–"
        others = ", ".join(f"{n} {t:.1f}" for n, t in times.items())
        score = f"{row['score']:.2f}" if "score" in row else row.get("failure", "")[:40]
        drawn.add_row(row["row"], own, others, score, f"{row['goal']:.2f}", row["of"])
    return drawn


def about(lab: Lab) -> dict[str, Any]:
    """The device and the versions that decide a number."""
    return {
        "date": datetime.date.today().isoformat(),
        "device": str(getattr(lab.device, "gpu", lab.device.arch)),
        "cuda": torch.version.cuda or torch.version.hip,
        "triton": version("triton"),
        "infopt": version("infopt"),
    }
