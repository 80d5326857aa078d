"""What the GPU kernels of an artifact take of a multiprocessor, from its plans."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from infopt.compiler.target_gpu import ROWS, Gpu
from infopt.runtime.gpu_levels import GPU_LEVELS
from infopt.runtime.loading import read_plan
from infopt.runtime.manifest import Manifest
from infopt.runtime.plan import DeviceKernel, LaunchStep

HEADER = ("level", "kernel", "launches", "threads", "registers", "spills", "shared", "occupancy")
_ALLOCATED = 8  # registers of a thread come in such portions
_RESERVED = 1 << 10  # bytes of shared memory that every block takes besides its own


@dataclass(frozen=True)
class KernelRow:
    """registers of a thread; spills: bytes of a thread; shared: bytes of a block; occupancy: the
    share of a multiprocessor's threads that can be resident, an estimate."""

    level: str
    kernel: str
    launches: int
    threads: int
    registers: int
    spills: int
    shared: int
    occupancy: float

    def cells(self) -> list[str]:
        """As text, in the order of HEADER."""
        *plain, occupancy = asdict(self).values()
        return [*map(str, plain), f"{occupancy:.0%}"]


def kernel_table(path: Path, manifest: Manifest) -> list[KernelRow]:
    """One row per kernel of every program for a GPU, those launched most first."""
    rows: list[KernelRow] = []
    for entry in manifest.variants:
        if entry.level not in GPU_LEVELS:
            continue
        plan = read_plan(path, entry)
        gpu = next(row for row in ROWS.values() if row.arch == entry.level)
        steps = [s.device_kernel for s in plan.steps if isinstance(s, LaunchStep)]
        found = [_row(entry.level, k, steps.count(i), gpu) for i, k in enumerate(plan.kernels)]
        rows += sorted(found, key=lambda r: -r.launches)
    return rows


def _row(level: str, kernel: DeviceKernel, launches: int, gpu: Gpu) -> KernelRow:
    return KernelRow(
        level,
        kernel.entry,
        launches,
        kernel.threads,
        kernel.registers,
        kernel.spills,
        kernel.shared,
        occupancy(kernel, gpu),
    )


def occupancy(kernel: DeviceKernel, gpu: Gpu) -> float:
    """The share of a multiprocessor's threads that may be resident at once."""
    registers = -(-max(1, kernel.registers) // _ALLOCATED) * _ALLOCATED
    blocks = min(
        gpu.blocks,
        gpu.threads // kernel.threads,
        gpu.registers // (registers * kernel.threads),
    )
    if kernel.shared:
        blocks = min(blocks, (gpu.shared + _RESERVED) // (kernel.shared + _RESERVED))
    return max(0, blocks) * kernel.threads / gpu.threads
