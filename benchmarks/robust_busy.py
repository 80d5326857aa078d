"""Time of a call on an idle machine and beside processes that never sleep, arms in turn."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.process import busy_process
from benchmarks.report import spread
from infopt.codegen.parallel import CORES

BACKENDS = ("eager", "infopt", "inductor")


def busy(rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds per arm: idle, beside one busy process, and the ratio of the medians."""
    threads = torch.get_num_threads()
    torch.set_num_threads(CORES)
    try:
        layer = torch.nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True).eval()
        x = torch.randn(4, 64, 256)
        arms: dict[str, Any] = {}
        for backend in BACKENDS:
            arms[backend] = layer if backend == "eager" else torch.compile(layer, backend=backend)
            for _ in range(5):
                arms[backend](x)
        idle = _times(arms, x, rounds)
        with busy_process():
            loaded = _times(arms, x, rounds)
    finally:
        torch.set_num_threads(threads)
    found = {}
    for name in arms:
        quiet, shared = spread(idle[name])["median"], spread(loaded[name])["median"]
        found[name] = {"idle ms": 1e3 * quiet, "busy ms": 1e3 * shared, "ratio": shared / quiet}
    return found


def _times(arms: dict[str, Any], x: torch.Tensor, rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            begin = time.perf_counter()
            arm(x)
            times[name].append(time.perf_counter() - begin)
    return times
