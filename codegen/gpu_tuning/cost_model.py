"""How long launches take on a GPU, estimated from its limits: ranks schedules, measures nothing.

A program is turns of a loop that load, wait and multiply; blocks that fit a multiprocessor share
it, and programs run in waves. The roofline model (Williams, Waterman and Patterson, 2009) with the
occupancy rules of the CUDA programming guide, and Little's law for what is on its way: a block
cannot begin a turn before its loads, as many turns ahead as it has stages, are there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sympy

from infopt.codegen.launch import Launch, Work
from infopt.codegen.triton_compile import resident_blocks
from infopt.compiler.target import Target
from infopt.compiler.target_gpu import ROWS, Gpu
from infopt.compiler.types import substitute

# What datasheets do not say, taken as equal for all rows: they rank, they do not promise.
LATENCY = 0.75e-6  # seconds from a load to its data, on a busy GPU
SHARED_PER_CLOCK = 128  # bytes of shared memory that a multiprocessor reads or writes
CACHE_PER_CLOCK = 48  # bytes that it draws from the second cache (A100's white paper: 5120 of all)
ADDRESSES = 40  # registers of a thread beside the values that are kept
FEW_ADDRESSES = 24  # where descriptors know the addresses of operands
ISSUE = 0.25  # operations of a byte that a thread loads: 16 bytes an instruction, and its address
MOST_REGISTERS = 255  # of a thread; AMD's have 512, half of them for products


@dataclass(frozen=True)
class Estimate:
    """seconds of launches one after the other, or inf and the reason why they cannot run."""

    seconds: float
    reason: str = ""


def estimate(
    launches: Sequence[Launch],
    target: Target,
    bytes: int,
    sizes: Mapping[sympy.Symbol, int],
) -> Estimate | None:
    """The launches of one op that run at these sizes; None where one does not say what it does.

    bytes: read and written at least, with all caches cold.
    """
    gpu, busy, started = ROWS[target.name], 0.0, 0
    for launch in launches:
        grid = [substitute(g, sizes) for g in launch.grid]
        if 0 in grid:
            continue
        if launch.work is None:
            return None
        blocks = _resident(launch, launch.work, gpu)
        if isinstance(blocks, str):
            return Estimate(math.inf, f"{launch.entry}: {blocks}")
        busy += _busy(launch, launch.work, gpu, target, blocks, math.prod(grid), sizes)
        started += 1
    return Estimate(max(busy, bytes / (target.bandwidth * 1e9)) + started * target.launch_cost)


def _resident(launch: Launch, work: Work, gpu: Gpu) -> int | str:
    """Blocks on one multiprocessor at once, or why not even one."""
    threads = launch.warps * gpu.warp
    registers = (FEW_ADDRESSES if launch.descriptors else ADDRESSES) + -(-work.values // threads)
    most = MOST_REGISTERS if gpu.platform == "cuda" else 2 * MOST_REGISTERS
    if registers > most:
        return f"{registers} registers of a thread, there are {most}"
    # AMD's pipeline holds one stage fewer in shared memory than it counts
    stages = launch.stages if gpu.platform == "cuda" else max(1, launch.stages - 1)
    shared = stages * work.loads + work.held if work.flops else 0
    if shared > gpu.shared:
        return f"{shared} bytes of shared memory, there are {gpu.shared}"
    return max(1, resident_blocks(gpu, registers, shared, threads))


def _busy(
    launch: Launch,
    work: Work,
    gpu: Gpu,
    target: Target,
    blocks: int,
    programs: int,
    sizes: Mapping[sympy.Symbol, int],
) -> float:
    """Seconds of one launch without its start."""
    units = programs if work.units is None else substitute(work.units, sizes)
    each = -(-units // programs)  # of one program, which are run one after the other
    steps = max(1, substitute(work.steps, sizes)) * each

    # what is loaded first is waited for, and before it descriptors that are made
    begun = LATENCY * ((1 if work.flat else each) + (launch.descriptors > 0))

    def wave(count: int) -> float:
        at_once = -(-count // target.cores)
        turn = _turn(launch, work, gpu, target, at_once)
        stored = each * at_once * work.stores / (target.bandwidth * 1e9 / target.cores)
        return begun + steps * turn + stored

    whole, rest = divmod(programs, blocks * target.cores)
    return whole * wave(blocks * target.cores) + (wave(rest) if rest else 0.0)


def _turn(launch: Launch, work: Work, gpu: Gpu, target: Target, at_once: int) -> float:
    """Seconds of a turn of all blocks that a multiprocessor has at once."""
    clock = gpu.clock * 1e9
    products = at_once * work.flops / (target.peak_of(work.dtype) * 1e9 / target.cores)
    issued = 0.0 if launch.descriptors else ISSUE * work.loads
    others = at_once * (work.vector + issued) / (target.peak_of("f32") * 1e9 / target.cores)
    # one block multiplies or does the rest, two of them both
    arithmetic = products + others if at_once == 1 else max(products, others)
    shared = at_once * 2 * work.loads / (SHARED_PER_CLOCK * clock) if work.flops else 0.0
    cached = at_once * work.loads / (CACHE_PER_CLOCK * clock)
    waited = LATENCY / max(1, launch.stages - 1)
    return max(arithmetic, shared, cached, waited)
