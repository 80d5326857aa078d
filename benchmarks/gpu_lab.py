"""Where GPU kernels are timed: as the tuner times them (codegen/gpu_tuning/clock.py)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.report import spread
from infopt.codegen.gpu_tuning.clock import Arm, Clock, copies_of
from infopt.codegen.gpu_tuning.workers import workers
from infopt.codegen.load_gpu import gpu_program, lower_for_gpu
from infopt.compiler.graph import Graph
from infopt.compiler.target import Target
from infopt.runtime.cuda_device import CudaDevice
from infopt.runtime.device import Device
from infopt.runtime.device_program import DeviceProgram


@dataclass
class Lab:
    """A device to measure on.

    deadline  by time.perf_counter; what does not fit before it is left out
    tiny      sizes for trying the logic
    tune      how thoroughly infopt's schedules are measured before its programs are (Options.tune)
    schedules of the programs made so far, by what they are for
    """

    device: Device
    target: Target
    clock: Clock
    deadline: float
    tiny: bool = False
    rounds: int = 7
    tune: int = 1
    schedules: dict[str, str] = field(default_factory=dict)
    ceilings: dict[str, float] = field(default_factory=dict)

    @property
    def where(self) -> torch.device:
        return self.device.where

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.perf_counter()

    def program(self, graph: Graph) -> DeviceProgram:
        made = gpu_program(lower_for_gpu(graph, self.target), self.device)
        assert isinstance(made, DeviceProgram)
        return made

    def compile(self, graphs: Sequence[Graph]) -> None:
        """Compile the kernels of graphs side by side, so that `program` finds them."""
        if not isinstance(self.device, CudaDevice):
            return
        lowered = [lower_for_gpu(graph, self.target) for graph in graphs]
        texts = {text.name: text for of in lowered for text in of.kernels}
        workers().compiled(list(texts.values()), self.target.level)

    def copies(self, bytes: int) -> int:
        """How many copies of operands of so many bytes are cold together."""
        return 2 if self.tiny else copies_of(bytes, self.target)

    def measure(self, arms: Mapping[str, Arm], copies: int) -> dict[str, dict[str, Any]]:
        """Median, least and spread of every arm; an arm that fails says why."""
        working: dict[str, Arm] = {}
        found: dict[str, dict[str, Any]] = {}
        for name, arm in arms.items():
            try:
                arm(0)
                working[name] = arm
            except Exception as error:
                found[name] = {"failure": f"{type(error).__name__}: {error}"[:300]}
        times = self.clock.rounds(working, copies, self.rounds)
        return found | {name: spread(seconds) for name, seconds in times.items()}
