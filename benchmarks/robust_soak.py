"""Hours of mixed load in one process: every answer checked, memory and descriptors watched."""

from __future__ import annotations

import os
import random
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import infopt
from benchmarks.robust_subject import fresh_cache, subject
from infopt.codegen.build import build_cache

THREADS, SIZES, SALTS = 3, 12, 4


def soak(minutes: float, seed: int) -> dict[str, Any]:
    """Threads that call with changing sizes, beside compiling, saving, loading and pruning.

    Programs of infopt.compile only: torch.compile traces again at any call, torch's tracing is not
    for several threads at once, and where dynamo gives up it runs eager, which rounds otherwise.
    Slopes are least squares over the second half, when all caches are full.
    """
    stop, lock = threading.Event(), threading.Lock()
    found: Counter[str] = Counter()
    inputs = [torch.randn(7 + 31 * i, 32) for i in range(SIZES)]
    models = [subject(i, 1 + i / 8, aten=i % 2 == 1) for i in range(SALTS)]
    rows = torch.export.Dim("rows", min=1, max=4000)
    programs = [infopt.compile(m, (inputs[3],), dynamic_shapes=({0: rows},)) for m in models]
    golden = [[p(x).numpy().tobytes() for x in inputs] for p in programs]

    def record(right: bool) -> None:
        with lock:
            found["right" if right else "wrong"] += 1

    def call(index: int) -> None:
        torch.set_grad_enabled(False)  # of this thread: dynamo guards on it
        generator = random.Random(seed + index)
        while not stop.is_set():
            i, j = generator.randrange(SALTS), generator.randrange(SIZES)
            try:
                record(programs[i](inputs[j]).numpy().tobytes() == golden[i][j])
            except Exception as error:
                with lock:
                    found[f"failed: {type(error).__name__}"] += 1

    def churn() -> None:
        torch.set_grad_enabled(False)
        generator = random.Random(seed)
        with tempfile.TemporaryDirectory(prefix="robustness-") as folder:
            while not stop.is_set():
                i, j = generator.randrange(SALTS), generator.randrange(SIZES)
                program = infopt.compile(models[i], (inputs[j],))
                answer = program(inputs[j]).numpy().tobytes()
                program.save(Path(folder) / "artifact", overwrite=True)
                loaded = infopt.load(Path(folder) / "artifact")
                record(loaded(inputs[j]).numpy().tobytes() == answer)
                build_cache().prune(generator.choice([0, 1 << 30]))
                time.sleep(0.2)

    samples: list[tuple[float, float, int]] = []
    with fresh_cache():
        threads = [threading.Thread(target=call, args=(i,)) for i in range(THREADS)]
        threads.append(threading.Thread(target=churn))
        begin = time.monotonic()
        for thread in threads:
            thread.start()
        while time.monotonic() - begin < minutes * 60:
            time.sleep(min(5.0, minutes * 6))
            samples.append((time.monotonic() - begin, _rss(), len(os.listdir("/proc/self/fd"))))
        stop.set()
        for thread in threads:
            thread.join()
    late = samples[len(samples) // 2 :]
    hours = [s[0] / 3600 for s in late]
    return {
        "outcomes": found,
        "memory": {
            "first MiB": samples[0][1],
            "last MiB": samples[-1][1],
            "MiB per hour": _slope(hours, [s[1] for s in late]),
            "descriptors, first": samples[0][2],
            "descriptors, last": samples[-1][2],
        },
        "samples": samples,
    }


def _rss() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def _slope(x: list[float], y: list[float]) -> float:
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    square = sum((a - mean_x) ** 2 for a in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / square if square else 0.0
