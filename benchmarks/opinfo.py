"""`python -m benchmarks opinfo`: PyTorch's operator database through the backend.

Every op, every dtype it supports on a CPU, all samples and the inputs it must refuse, against
eager: values, dtype, shape, strides, aliasing, mutation, exceptions. Work is done in a child
process, so that a crash costs one op and is reported as such. Results are appended to --log, and a
run with the same log goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.report import wide_console, write_json

ERRORS = "error inputs"
PAIRS = 150  # of one child: what dynamo keeps makes each collection of garbage slower


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks opinfo", description=__doc__)
    parser.add_argument("--ops", default="", help="only these, comma-separated")
    parser.add_argument("--dtypes", default="", help="only these, as float32,int64")
    parser.add_argument("--samples", type=int, help="at most so many of an op and dtype")
    parser.add_argument("--shard", default="0/1", help="i/n: the i-th of n parts")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this time")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for one op and dtype")
    parser.add_argument("--log", default="opinfo.jsonl", help="one line per op and dtype")
    parser.add_argument("--json", help="also write the summary to this file")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        return work(options)
    console, log = wide_console(), Path(options.log)
    todo, began, first = keys(options), time.monotonic(), len(results(log))
    with console.status("operators") as status:
        while (left := [k for k in todo if k not in results(log)]) and minutes(began) < (
            options.minutes
        ):
            run_child(arguments, left, log, options, began, status, len(todo), first)
    found = {k: r for k, r in results(log).items() if k in set(todo)}
    total = summary(found)
    console.print(table(found, total))
    for key, result in found.items():
        for message in result["differing"]:
            console.print(f"[red]differs[/] {key}: {message}", highlight=False)
    missing = len(todo) - len(found)
    console.print(
        f"{total['samples']} samples: {total['native']} native, {total['fallback']} by torch, "
        f"{total['torch']} differ under dynamo alone, {total['differing']} differ; "
        f"{missing} of {len(todo)} pairs not run",
        highlight=False,
    )
    if options.json:
        counts = {
            k: f"{r['native']}/{r['fallback']}/{r['torch']}/{len(r['differing'])}"
            for k, r in found.items()
        }
        columns = "native/fallback/torch/differing"
        write_json(options.json, {"total": total, "missing": missing, columns: counts})
    return 1 if total["differing"] or missing else 0


def minutes(began: float) -> float:
    return (time.monotonic() - began) / 60


def keys(options: argparse.Namespace) -> list[str]:
    """ "op|dtype" of all that was asked for, in database order."""
    from tests.conformance.operators import database, name_of, pairs

    ops = [o for o in database() if not options.ops or o.name in options.ops.split(",")]
    found = [f"{name_of(op)}|{str(dtype)[6:]}" for op, dtype in pairs(ops)]
    wanted = set(options.dtypes.split(",")) if options.dtypes else None
    found = [k for k in found if wanted is None or k.split("|")[1] in wanted]
    if wanted is None:
        found += [f"{name_of(op)}|{ERRORS}" for op in ops if op.error_inputs_func is not None]
    part, parts = map(int, options.shard.split("/"))
    return found[part::parts]


def results(log: Path) -> dict[str, Any]:
    """What the log holds so far."""
    lines = log.read_text().splitlines() if log.exists() else []
    return {r.pop("key"): r for r in map(json.loads, lines)}


def run_child(
    arguments: list[str],
    left: list[str],
    log: Path,
    options: argparse.Namespace,
    began: float,
    status: Any,
    total: int,
    first: int,
) -> None:
    """One child until it ends, dies, hangs or time is up; who killed it is in the log."""
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks", "opinfo", *arguments, "--worker"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    done, changed = len(results(log)), time.monotonic()
    while child.poll() is None:
        time.sleep(1.0)
        if (now := len(results(log))) != done:
            done, changed = now, time.monotonic()
        pace = minutes(began) / max(1, done - first)
        status.update(f"{done} of {total} pairs, {pace * (total - done):.0f} minutes left")
        hung = time.monotonic() - changed > options.limit
        if hung or minutes(began) >= options.minutes:
            child.kill()
            child.wait()
            if hung:
                blame(log, left, f"no result in {options.limit:.0f} s")
            return
    if child.returncode:
        blame(log, left, f"the process died with status {child.returncode}")


def blame(log: Path, left: list[str], reason: str) -> None:
    """The first pair without a result is the one that was running."""
    known = results(log)
    culprit = next((k for k in left if k not in known), None)
    if culprit is not None:
        append(log, culprit, {"native": 0, "fallback": 0, "torch": 0, "differing": [reason]})


def append(log: Path, key: str, result: dict[str, Any]) -> None:
    with log.open("a") as file:
        file.write(json.dumps({"key": key, **result}) + "\n")


def work(options: argparse.Namespace) -> int:
    """The child: the next pairs that the log does not have."""
    import gc
    import logging

    import torch

    from tests.conformance import operators

    logging.disable(logging.WARNING)
    torch.set_num_threads(2)  # so that kernels do split their work
    log = Path(options.log)
    done, ops = results(log), {operators.name_of(op): op for op in operators.database()}
    gc.freeze()  # the database is a large heap, and each collection would walk all of it
    for key in [key for key in keys(options) if key not in done][:PAIRS]:
        name, kind = key.split("|")
        op = ops[name]
        if kind == ERRORS:
            calls = operators.error_samples(op)[: options.samples]
        else:
            calls = operators.samples(op, getattr(torch, kind), options.samples)
        with torch.no_grad():
            result = operators.check_op(op, calls, 1 if kind == ERRORS else 8)
        append(log, key, vars(result))
        gc.collect()
    return 0


def summary(found: dict[str, Any]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for result in found.values():
        counts = {k: result[k] for k in ("native", "fallback", "torch")}
        total.update(**counts, differing=len(result["differing"]))
        total["samples"] += sum(counts.values()) + len(result["differing"])
    return {k: total[k] for k in ("samples", "native", "fallback", "torch", "differing")}


def table(found: dict[str, Any], total: dict[str, int]) -> Table:
    drawn = Table(title="samples by dtype")
    columns = ("samples", "native", "fallback", "torch", "differing")
    for heading in ("dtype", *columns, "native share"):
        drawn.add_column(heading, justify="left" if heading == "dtype" else "right")
    by_dtype: dict[str, dict[str, Any]] = {}
    for key, result in found.items():
        by_dtype.setdefault(key.split("|")[1], {})[key] = result
    rows = {name: summary(part) for name, part in sorted(by_dtype.items())}
    for name, row in {**rows, "all": total}.items():
        share = f"{row['native'] / row['samples']:.1%}" if row["samples"] else "-"
        drawn.add_row(name, *(str(row[c]) for c in columns), share)
    return drawn
