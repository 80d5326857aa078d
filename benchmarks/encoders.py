"""`python -m benchmarks encoders`: real encoders on this machine, infopt against every peer that is
installed.

Each arm lives in a process of its own; all are alive at once and run in turns, A B C A B C, while
the others sleep. Every output is compared with float32 eager. Times are seconds of one call; `of
limit` is the least time the machine's measured ceilings allow over the median.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from contextlib import ExitStack
from typing import Any

from rich.table import Table

from benchmarks.arm import Arm
from benchmarks.arms import ARMS
from benchmarks.limits import Limits, measure
from benchmarks.process import Child, ChildFailed, busy_process
from benchmarks.report import spread, wide_console, write_json
from benchmarks.workloads import Workload, workloads

TURN_SECONDS = 0.25
BYTES = {"fp32": 4, "bf16": 2, "int8": 1}


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    console = wide_console()
    limits = measure(options.threads)
    shown = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in limits.peak.items())
    reads = ", ".join(f"{size} MiB {rate / 1e9:.0f} GB/s" for size, rate in limits.read.items())
    console.print(
        f"limits on {options.threads} threads ({limits.measured_by}): {shown}; reads {reads}"
    )
    cells = []
    for workload in workloads().values():
        if workload.model not in options.models and workload.name not in options.models:
            continue
        for dtype in options.dtypes:
            arms = [a for a in ARMS if a.dtype == dtype and a.available]
            arms = [a for a in arms if not options.arms or a.name in options.arms]
            with console.status(f"{workload.name} {dtype}"):
                cell = measure_cell(workload, dtype, arms, limits, options)
            cells.append(cell)
            console.print(table(cell))
            result = {"limits": vars(limits), "threads": options.threads, "cells": cells}
            if options.json:  # after every cell: a full run takes long
                write_json(options.json, result | score(cells))
    console.print(last_line(score(cells)))
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""

    def names(text: str) -> list[str]:
        return [name.strip() for name in text.split(",") if name.strip()]

    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    parser = argparse.ArgumentParser(prog="python -m benchmarks encoders", description=__doc__)
    parser.add_argument("--json", help="also write everything to this file")
    parser.add_argument("--models", type=names, default=["minilm", "bert", "vit"])
    parser.add_argument("--dtypes", type=names, default=["fp32", "bf16"])
    parser.add_argument("--arms", type=names, default=[], help="these arms only")
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--rounds", type=int, default=12, help="turns of every arm")
    parser.add_argument(
        "--quick", action="store_true", help="4 turns, no second process for warm first calls"
    )
    parser.add_argument(
        "--busy", action="store_true", help="every turn again, beside a process that never sleeps"
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.dtypes) - set(BYTES):
        parser.error(f"unknown dtypes {sorted(unknown)}: known are {sorted(BYTES)}")
    if unknown := set(options.models) - {
        n for w in workloads().values() for n in (w.model, w.name)
    }:
        parser.error(f"unknown models {sorted(unknown)}: known are {', '.join(workloads())}")
    if unknown := set(options.arms) - {a.name for a in ARMS}:
        parser.error(f"unknown arms {sorted(unknown)}: known are {sorted({a.name for a in ARMS})}")
    return options


def measure_cell(
    workload: Workload, dtype: str, arms: list[Arm], limits: Limits, options: argparse.Namespace
) -> dict[str, Any]:
    """All arms of one workload in one precision; an arm that fails keeps its error in the cell."""
    least = limits.seconds(workload.flops(), workload.weight_bytes(BYTES[dtype]), dtype)
    rows: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        reference = f"{folder}/reference.pt"
        with Child("benchmarks.encoder_arm") as child:
            child.ask(do="reference", workload=workload.name, path=reference)
        alive: dict[str, Child] = {}
        for arm in arms:
            question = {
                "do": "prepare",
                "workload": workload.name,
                "name": arm.name,
                "dtype": dtype,
                "threads": options.threads,
                "reference": reference,
            }
            fresh = caches(f"{folder}/{arm.name}")
            child = stack.enter_context(Child("benchmarks.encoder_arm", fresh))
            try:
                answer = child.ask(**question)
                rows[arm.name] = {
                    "first_cold": answer["first"],
                    "error": answer["error"],
                    "own": arm.own,
                }
                rows[arm.name] |= child.ask(do="memory")
                if not options.quick:
                    with Child("benchmarks.encoder_arm", fresh) as second:
                        rows[arm.name]["first_warm"] = second.ask(**question)["first"]
                alive[arm.name] = child
            except ChildFailed as failure:
                rows[arm.name] = {"failure": failure.reason, "own": arm.own}
        idle, busy = take_turns(alive, 4 if options.quick else options.rounds, options.busy)
        for name, seconds in idle.items():
            rows[name] |= spread(seconds) | {"calls": len(seconds)}
            if options.busy:
                rows[name]["busy"] = spread(busy[name])
    compare(rows, least)
    return {"workload": workload.name, "dtype": dtype, "least_seconds": least, "arms": rows}


def caches(folder: str) -> dict[str, str]:
    """Environment of an arm whose caches are empty."""
    return {
        "INFOPT_CACHE": f"{folder}/infopt",
        "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
        "TRITON_CACHE_DIR": f"{folder}/triton",
    }


Times = dict[str, list[float]]


def take_turns(alive: dict[str, Child], rounds: int, with_busy: bool) -> tuple[Times, Times]:
    """Seconds of every arm's calls, and of those beside a busy process where `with_busy` asks for
    them. Every arm runs for about TURN_SECONDS, then the next one; the order turns round after each
    pass.
    """
    counts = {}
    for name, child in alive.items():
        once = min(child.ask(do="run", count=2)["seconds"])
        counts[name] = max(1, min(200, round(TURN_SECONDS / once)))
    idle: Times = {name: [] for name in alive}
    busy: Times = {name: [] for name in alive}
    for turn in range(rounds):
        order = list(alive) if turn % 2 == 0 else list(reversed(alive))
        for name in order:
            idle[name] += alive[name].ask(do="run", count=counts[name])["seconds"]
        if with_busy:
            with busy_process():
                for name in order:
                    busy[name] += alive[name].ask(do="run", count=counts[name])["seconds"]
    return idle, busy


def compare(rows: dict[str, dict[str, Any]], least: float) -> None:
    """Add to every arm its ratio to the best peer's median and its fraction of the limit."""
    peers = [row["median"] for row in rows.values() if "median" in row and not row["own"]]
    for row in rows.values():
        if "median" in row:
            row["of_limit"] = least / row["median"]
            if peers:
                row["ratio"] = row["median"] / min(peers)


def table(cell: dict[str, Any]) -> Table:
    """One workload in one precision."""
    title = f"{cell['workload']} {cell['dtype']}, limit {cell['least_seconds'] * 1e3:.2f} ms"
    drawn = Table(title=title)
    drawn.add_column("arm")
    headings: tuple[str, ...] = ("median ms", "min ms", "spread", "vs best peer", "of limit")
    shared = any("busy" in row for row in cell["arms"].values())
    headings += ("busy ms",) if shared else ()
    for heading in (*headings, "first cold s", "warm s", "peak MiB", "error"):
        drawn.add_column(heading, justify="right")
    for name, row in cell["arms"].items():
        if "failure" in row:
            drawn.add_row(name, f"[red]{row['failure'][:60]}[/]")
            continue
        ratio = row.get("ratio")
        colour = "white" if not row["own"] or ratio is None else "green" if ratio <= 1 else "red"
        drawn.add_row(
            name,
            f"{row['median'] * 1e3:.2f}",
            f"{row['min'] * 1e3:.2f}",
            f"{row['spread']:.0%}",
            "" if ratio is None else f"[{colour}]{ratio:.2f}[/]",
            f"{row['of_limit']:.0%}",
            *([beside(row)] if shared else []),
            f"{row['first_cold']:.2f}",
            f"{row['first_warm']:.2f}" if "first_warm" in row else "",
            f"{row['peak'] / 2**20:.0f}",
            f"{row['error']:.1e}",
        )
    return drawn


def beside(row: dict[str, Any]) -> str:
    """The median beside a busy process, and how many times that of the idle machine."""
    median = row["busy"]["median"]
    return f"{median * 1e3:.2f} ({median / row['median']:.2f}x)"


def score(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """In how many cells infopt's fastest arm is not slower than the best peer."""
    won, lost = [], []
    for cell in cells:
        ratios = [r["ratio"] for r in cell["arms"].values() if r["own"] and "ratio" in r]
        if ratios:
            name = f"{cell['workload']} {cell['dtype']}"
            (won if min(ratios) <= 1.0 else lost).append(name)
    return {"won": won, "lost": lost}


def last_line(result: dict[str, Any]) -> str:
    won, lost = result["won"], result["lost"]
    if not won and not lost:
        return "no cell has both an arm of infopt and a peer"
    behind = f": {', '.join(lost)}" if lost else ""
    return (
        f"fastest infopt arm against the best peer: {len(won)} cells won, {len(lost)} lost{behind}"
    )
