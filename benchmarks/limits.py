"""The machine's own ceilings, measured in the run they are compared with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

_MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Operations per second by precision, and read bytes per second by working set in MiB."""

    peak: dict[str, float]
    read: dict[int, float]
    measured_by: str

    def bandwidth(self, working_set: float) -> float:
        """Read rate of the smallest measured working set that holds so many bytes."""
        fitting = [size for size in sorted(self.read) if size * _MEBIBYTE >= working_set]
        return self.read[fitting[0] if fitting else max(self.read)]

    def seconds(self, flops: float, weight_bytes: float, dtype: str) -> float:
        """The least time for that work: arithmetic or reading every weight once, whichever takes
        longer.
        """
        return max(flops / self.peak[dtype], weight_bytes / self.bandwidth(weight_bytes))


def measure(threads: int) -> Limits:
    """By a small C++ program, or by torch's own kernels where there is no compiler."""
    compiler = next(
        filter(None, map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++"))), None
    )
    if compiler is None:
        return _by_torch(threads)
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "limits"
        source = Path(__file__).with_name("limits.cpp")
        flags = ["-O3", "-march=native", "-std=c++17", "-ffp-contract=fast", "-pthread"]
        subprocess.run([compiler, *flags, str(source), "-o", str(program)], check=True)
        found = json.loads(subprocess.check_output([program, str(threads)]))
    # without instructions of their own bf16 and int8 run through fp32
    peak = {name: found[name] or found["fp32"] for name in ("fp32", "bf16", "int8")}
    return Limits(peak, {int(k): v for k, v in found["read"].items()}, "C++ program")


def _by_torch(threads: int) -> Limits:
    torch.set_num_threads(threads)
    peak = {
        name: _matmul_rate(dtype)
        for name, dtype in (("fp32", torch.float), ("bf16", torch.bfloat16))
    }
    peak["int8"] = peak["fp32"]
    return Limits(peak, {size: _sum_rate(size) for size in (64, 512)}, "torch matmul and sum")


def _matmul_rate(dtype: torch.dtype, n: int = 2048) -> float:
    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    return 2.0 * n**3 / _best(lambda: a @ b)


def _sum_rate(mebibytes: int) -> float:
    x = torch.ones(mebibytes * _MEBIBYTE // 4)
    return x.numel() * 4 / _best(x.sum)


def _best(call) -> float:
    call()
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
