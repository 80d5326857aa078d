"""`python -m benchmarks memory`: peak resident memory of a process that builds, compiles and calls
a model.

Each arm runs in a fresh process with empty caches; what matters is the ratio to eager. The arm
dynamo is torch.compile with backend="eager": what torch.compile itself needs. infopt-artifact loads
what another process has compiled and saved (with --dtype bf16: by compute="bf16").
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

WORKLOADS = ("minilm-32x128", "bert-1x128", "bert-8x384")
ARMS = ("eager", "dynamo", "infopt", "infopt-offline", ARTIFACT, "inductor")
CALLS = 3


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory", description=__doc__)
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    console = wide_console()
    rows: list[dict[str, Any]] = []
    for workload in WORKLOADS:
        for name in ARMS:
            with console.status(f"{workload} {name}"):
                rows.append(peak(workload, name, options.dtype, options.threads))
    eager = {row["workload"]: row.get("peak") for row in rows if row["arm"] == "eager"}
    drawn = Table(title=f"peak resident memory, {options.dtype}")
    for heading in ("workload", "arm", "MiB", "of eager"):
        drawn.add_column(heading, justify="left" if heading in ("workload", "arm") else "right")
    for row in rows:
        if "failure" in row or not eager[row["workload"]]:
            drawn.add_row(row["workload"], row["arm"], row.get("failure", "no eager figure"))
            continue
        row["ratio"] = row["peak"] / eager[row["workload"]]
        drawn.add_row(
            row["workload"], row["arm"], f"{row['peak'] / 2**20:.0f}", f"{row['ratio']:.0%}"
        )
    console.print(drawn)
    if options.json:
        write_json(options.json, {"rows": rows})
    return 0 if not any("failure" in row for row in rows) else 1


def peak(workload: str, name: str, dtype: str, threads: int) -> dict[str, Any]:
    """Peak bytes after the first call and a few more."""
    row: dict[str, Any] = {"workload": workload, "arm": name}
    with (
        tempfile.TemporaryDirectory() as folder,
        Child("benchmarks.encoder_arm", caches(folder)) as child,
    ):
        try:
            first_call(child, folder, workload=workload, name=name, dtype=dtype, threads=threads)
            child.ask(do="run", count=CALLS)
            return row | child.ask(do="memory")
        except ChildFailed as failure:
            return row | {"failure": failure.reason}
