"""What every benchmark prints and writes: the machine, the versions, and JSON files."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
from rich.console import Console


def machine() -> dict[str, Any]:
    """The processor, its cores open to this process, and the versions that decide a number."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.system(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def wide_console() -> Console:
    """A console that keeps wide tables readable where the output is a file."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def write_json(path: str, result: dict[str, Any]) -> None:
    """Write the result with the machine it was measured on."""
    Path(path).write_text(json.dumps({"machine": machine()} | result, indent=1, default=str) + "\n")


def spread(samples: list[float]) -> dict[str, float]:
    """Median, least and relative spread (interquartile range over median) of seconds."""
    ordered = sorted(samples)
    n = len(ordered)
    median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    quartiles = ordered[(3 * n) // 4 if n > 1 else 0] - ordered[n // 4 if n > 1 else 0]
    return {"median": median, "min": ordered[0], "spread": quartiles / median if median else 0.0}
