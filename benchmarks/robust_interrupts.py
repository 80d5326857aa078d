"""Ctrl-C at random moments of a first call: how soon it surfaces, and what is left behind."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

import torch

from benchmarks.forking import outcome, start
from benchmarks.robust_subject import fresh_cache, subject


def interrupts(rounds: int, generator: random.Random) -> tuple[Counter[str], list[float]]:
    """What happened, and the seconds from the signal to KeyboardInterrupt in the caller."""
    found: Counter[str] = Counter()
    delays: list[float] = []
    longest = 1.0
    for number in range(rounds):
        with fresh_cache() as cache, tempfile.TemporaryDirectory() as temporary:
            reader, writer = os.pipe()
            pid = start(partial(_first_call, number, writer, temporary))
            os.close(writer)
            with os.fdopen(reader) as pipe:
                pipe.readline()  # the call begins
                begin = time.monotonic()
                time.sleep(generator.uniform(0.01, longest))
                sent = time.monotonic()
                os.kill(pid, signal.SIGINT)
                lines = dict(line.split() for line in pipe)
            found["next call " + outcome(pid)] += 1
            if "interrupted" in lines:
                found["interrupted"] += 1
                delays.append(float(lines["interrupted"]) - sent)
            else:
                found["the call was over" if "over" in lines else "lost"] += 1
                longest = max(0.2, 0.98 * min(longest, sent - begin))
            found["orphans"] += len(_processes_of(str(cache)))
            left = [p.name for p in cache.glob("native/.[no]*")] + os.listdir(temporary)
            found["files left"] += len(left)
    return found, delays


def _first_call(number: int, writer: int, temporary: str) -> bool:
    """Compile and call until interrupted; then again, and compare with eager."""
    os.environ["TMPDIR"] = tempfile.tempdir = temporary
    model, x = subject(number, 1 + number / 1000), torch.randn(40, 32)
    expected = model(x)
    compiled = torch.compile(model, backend="infopt", options={"strict": True})
    with os.fdopen(writer, "w") as pipe:
        try:
            pipe.write("begun\n")
            pipe.flush()
            compiled(x)
            pipe.write(f"over {time.monotonic()}\n")
            pipe.flush()
            time.sleep(5)
        except KeyboardInterrupt:
            pipe.write(f"interrupted {time.monotonic()}\n")
    return torch.allclose(compiled(x), expected, rtol=1e-4, atol=1e-4)


def _processes_of(marker: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found
