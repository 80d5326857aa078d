"""`python -m benchmarks zoo`: every architecture of the zoo, compiled with dynamic sizes, against
eager at two sizes.

Each architecture runs in a process of its own with a time limit. "native" says that all its nodes
ran in native kernels, "fallback" that some ran as torch runs them.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import time
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.report import wide_console, write_json
from infopt.compiler.dynamo import reports_of
from infopt.models import zoo
from infopt.models.agreement import close, max_error, tensors


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks zoo", description=__doc__)
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--only", action="append", help="this architecture only; may be repeated")
    parser.add_argument("--limit", type=int, help="the first N architectures only")
    parser.add_argument("--timeout", type=float, default=180, help="seconds per architecture")
    parser.add_argument("--backend", default="infopt", help="torch.compile backend to examine")
    options = parser.parse_args(arguments)
    names = [zoo.entry(n).name for n in options.only or zoo.ZOO][: options.limit]
    # forked from a process that has imported torch but started no threads: 5 s saved per
    # architecture
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "benchmarks.zoo"])
    rows: list[dict[str, Any]] = []
    for name in track(names, description="architectures", console=Console(stderr=True)):
        rows.append(examine_apart(context, name, options.backend, options.timeout))
        totals = count(rows)
        if options.json:  # after every architecture: a full run takes minutes
            write_json(options.json, {"backend": options.backend, "totals": totals, "rows": rows})
    show(rows, totals)
    return 0 if totals["differing"] == totals["failed"] == 0 else 1


def examine_apart(context: Any, name: str, backend: str, timeout: float) -> dict[str, Any]:
    """`examine` in a child; a crash or a time-out becomes an error row."""
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(theirs, name, backend))
    started = time.perf_counter()
    child.start()
    theirs.close()
    try:
        row = ours.recv() if ours.poll(timeout) else {"error": f"no answer in {timeout:.0f} s"}
    except EOFError:
        child.join()
        row = {"error": f"the process died with exit status {child.exitcode}"}
    child.kill()
    child.join()
    family = zoo.entry(name).family
    return {"name": name, "family": family, "seconds": time.perf_counter() - started} | row


def _child(answer: Connection, name: str, backend: str) -> None:
    torch.set_num_threads(min(2, torch.get_num_threads()))
    warnings.filterwarnings("ignore")
    try:
        row = examine(name, backend)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        row = {"error": f"{type(error).__name__}: {lines[0]}"[:400], "detail": str(error)[:4000]}
    answer.send(row)
    answer.close()


def examine(name: str, backend: str) -> dict[str, Any]:
    """Compile one architecture and compare it with eager at every size; what ran where is in the
    counters.
    """
    model = zoo.build(name)
    exact = copy.deepcopy(model).double()
    run = torch.compile(model, backend=backend, dynamic=True)
    row: dict[str, Any] = {"max_error": 0.0, "equal": True}
    with torch.no_grad():
        for size in zoo.SIZES:
            inputs = zoo.inputs(name, size)
            torch.manual_seed(0)  # one of them draws the patches it looks at
            expected = tensors(model(**inputs))
            torch.manual_seed(0)
            actual = tensors(run(**inputs))
            torch.manual_seed(0)
            row["equal"] &= len(expected) == len(actual)
            widened = _exact(exact, inputs, len(expected))
            for e, a, w in zip(expected, actual, widened, strict=False):
                row["equal"] &= close(e, a, w)
                row["max_error"] = max(row["max_error"], max_error(e, a))
    counters = torch._dynamo.utils.counters
    row["graphs"] = counters["stats"]["unique_graphs"]
    row["graph_breaks"] = sum(counters["graph_break"].values())
    row |= {key: int(value) for key, value in counters["infopt"].items() if isinstance(value, int)}
    row["left_to_torch"] = sorted({op for r in reports_of(run) for op in r.fallbacks})
    row["declined"] = sorted({r.declined for r in reports_of(run) if r.declined})
    native, aten = row.get("native_nodes", 0), row.get("aten_nodes", 0)
    row["native_share"] = native / (native + aten) if native + aten else 0.0
    return row


def _exact(model: torch.nn.Module, inputs: dict[str, torch.Tensor], count: int) -> list[Any]:
    wide = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    try:
        found: list[Any] = tensors(model(**wide))
    except RuntimeError:  # some models mix in float32 constants
        found = []
    return found if len(found) == count else [None] * count


def verdict(row: dict[str, Any]) -> str:
    """error, differs, native or fallback."""
    if "error" in row:
        return "error"
    if not row["equal"]:
        return "differs"
    whole = row["native_share"] == 1.0 and not row.get("eager_graphs", 0)
    return "native" if whole else "fallback"


def count(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many architectures ended in each verdict, and the native share over all nodes."""
    verdicts = [verdict(row) for row in rows]
    native = sum(row.get("native_nodes", 0) for row in rows)
    aten = sum(row.get("aten_nodes", 0) for row in rows)
    left = Counter(op for row in rows for op in row.get("left_to_torch", ()))
    declined = Counter(reason for row in rows for reason in row.get("declined", ()))
    return {
        "architectures": len(rows),
        "native": verdicts.count("native"),
        "fallback": verdicts.count("fallback"),
        "differing": verdicts.count("differs"),
        "failed": verdicts.count("error"),
        "native_share": native / (native + aten) if native + aten else 0.0,
        "left_to_torch": dict(left.most_common()),
        "declined": dict(declined.most_common()),
    }


def show(rows: list[dict[str, Any]], totals: dict[str, Any]) -> None:
    """The table and its last line."""
    table = Table(title="transformers architectures, dynamic sizes, against eager")
    for column in ("architecture", "family", "verdict", "max error", "graphs", "native", "s"):
        table.add_column(
            column, justify="left" if column in ("architecture", "family") else "right"
        )
    for row in rows:
        found = verdict(row)
        error = row["error"][:60] if found == "error" else f"{row['max_error']:.1e}"
        share = "" if found == "error" else f"{row['native_share']:.0%}"
        colour = {"error": "red", "differs": "red", "native": "green"}.get(found, "yellow")
        table.add_row(
            row["name"],
            row["family"],
            f"[{colour}]{found}[/]",
            error,
            str(row.get("graphs", "")),
            share,
            f"{row['seconds']:.1f}",
        )
    console = wide_console()
    console.print(table)
    console.print(
        f"{totals['architectures']} architectures: {totals['native']} equal and all native, "
        f"{totals['fallback']} equal with some nodes as torch runs them, "
        f"{totals['differing']} differ, "
        f"{totals['failed']} failed; {totals['native_share']:.1%} of all nodes native"
    )
    for title, counts in (
        ("operators left to torch", totals["left_to_torch"]),
        ("graphs left to torch", totals["declined"]),
    ):
        if counts:
            listed = ", ".join(f"{what} ({times})" for what, times in counts.items())
            console.print(f"{title}, in so many architectures: {listed}", soft_wrap=True)
