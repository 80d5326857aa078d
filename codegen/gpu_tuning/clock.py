"""Timing calls on a GPU: replays of a captured graph over rotating copies, arms in turn.

A graph holds one call for each copy of the operands, and the copies together are larger than the
second-level cache several times over, so every call finds it cold. What starting a call costs on
the processor is no part of it. Arms are timed in turns, so that clocks and neighbours meet all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from infopt.compiler.target import Target
from infopt.runtime.cuda_device import CudaDevice
from infopt.runtime.device import Device

COLD = 4  # times the second-level cache
MOST_COPIES = 64
Arm = Callable[[int], Any]  # runs with copy i of the operands


class Clock(Protocol):
    """Seconds of one call of each arm, one number per round; arms run over `copies` copies."""

    def rounds(
        self, arms: Mapping[str, Arm], copies: int, rounds: int
    ) -> dict[str, list[float]]: ...


def clock_of(device: Device | None) -> Clock | None:
    """What times calls on a device, None where none are worth timing: a device that stands for
    another has a `clock` of its own, if any."""
    if isinstance(device, CudaDevice):
        return GraphClock()
    return getattr(device, "clock", None)


def copies_of(bytes: int, target: Target) -> int:
    """How many copies of operands of so many bytes are cold together."""
    return max(2, min(MOST_COPIES, -(-COLD * target.caches[1] // max(1, bytes))))


class GraphClock:
    """Replays of CUDA graphs, timed by events."""

    def rounds(self, arms: Mapping[str, Arm], copies: int, rounds: int) -> dict[str, list[float]]:
        graphs = {name: self._captured(arm, copies) for name, arm in arms.items()}
        found: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(rounds):
            for name, graph in graphs.items():
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                graph.replay()
                end.record()
                end.synchronize()
                found[name].append(begin.elapsed_time(end) / 1e3 / copies)
        return found

    def _captured(self, arm: Arm, copies: int) -> torch.cuda.CUDAGraph:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            arm(0)  # what is done once: autotuning, handles, workspaces
            arm(copies - 1)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(copies):
                arm(i)
        graph.replay()
        torch.cuda.synchronize()
        return graph


class CallClock:
    """Plain calls by the processor's clock: for trying the logic without a GPU."""

    def rounds(self, arms: Mapping[str, Arm], copies: int, rounds: int) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(rounds):
            for name, arm in arms.items():
                begin = time.perf_counter()
                for i in range(copies):
                    arm(i)
                found[name].append((time.perf_counter() - begin) / copies)
        return found
