"""Bringing an arm to its first result in a child process; artifacts are made by another one."""

from __future__ import annotations

from pathlib import Path

from benchmarks.encoders import caches
from benchmarks.process import Child

ARTIFACT = "infopt-artifact"


def first_call(
    child: Child, folder: str, *, workload: str, name: str, dtype: str, threads: int
) -> float:
    """Seconds from the module (from the file, for an artifact) to the first result."""
    if name != ARTIFACT:
        question = {"workload": workload, "name": name, "dtype": dtype, "threads": threads}
        return child.ask(do="prepare", **question)["first"]
    path = Path(folder) / "artifact"
    if not path.exists():
        with Child("benchmarks.encoder_arm", caches(folder)) as other:
            other.ask(do="save", workload=workload, dtype=dtype, path=str(path))
    return child.ask(do="load", workload=workload, path=str(path), threads=threads)["first"]
