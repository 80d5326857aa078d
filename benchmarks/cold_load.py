"""`python -m benchmarks.cold_load ARTIFACT verified|unverified`: one load in a fresh process.

Prints, as JSON, seconds from this module's start: until infopt is imported, until the artifact is
loaded, and until it has answered.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

MOMENTS = ("import", "load", "answer")


def cold_load(path: Path, arm: str, *, drop: bool) -> dict[str, float]:
    """Seconds of each step in a process of its own; drop: the files leave the page cache first,
    so that they come from the disk."""
    if drop:
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.is_file():
                _drop(file)
    command = [sys.executable, "-m", "benchmarks.cold_load", str(path), arm]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(answer.stdout)


@contextmanager
def unverified() -> Iterator[None]:
    """Loads trust every file."""
    from infopt.runtime import folder

    class Trusting(folder.Verification):
        def __init__(self, files: Mapping[str, folder.OpenFile], chunk: int) -> None:
            self.files, self.chunk = files, chunk

        def check(self, name: str, expected: Sequence[str], first: int = 0, last: int = -1) -> None:
            pass

        def close(self) -> None:
            pass

    with mock.patch.object(folder, "Verification", Trusting):
        yield


def _drop(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # what is not written yet stays in memory
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def main(path: str, arm: str) -> None:
    begin = time.perf_counter()
    import infopt
    from infopt.runtime import loading

    assert loading  # and torch with it

    imported = time.perf_counter()
    with unverified() if arm == "unverified" else nullcontext():
        program = infopt.load(path)
    loaded = time.perf_counter()
    program.check_golden()
    moments = (imported, loaded, time.perf_counter())
    steps = zip(MOMENTS, moments, (begin, *moments), strict=False)
    print(json.dumps({name: end - start for name, end, start in steps}))


if __name__ == "__main__":
    main(*sys.argv[1:])
