"""Candidates compiled side by side and timed in turns on a device; what fails says why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from infopt.codegen.alone import random_operand
from infopt.codegen.gpu_tuning.clock import Arm, Clock, copies_of
from infopt.codegen.gpu_tuning.workers import workers
from infopt.codegen.interpreted_device import InterpretedDevice
from infopt.codegen.launches import KernelText
from infopt.codegen.load_gpu import lower_for_gpu, program_of, with_code
from infopt.codegen.lower import Lowered
from infopt.codegen.triton_compile import Compiled
from infopt.compiler.graph import Graph
from infopt.compiler.target import Target
from infopt.runtime.device import Device
from infopt.runtime.device_program import DeviceProgram


@dataclass(frozen=True)
class Timed:
    """seconds: the median of one call, inf where it failed; noise: the median
    distance of the rounds from it; failure: why there is no time."""

    seconds: float
    noise: float = 0.0
    failure: str = ""

    @classmethod
    def failed(cls, why: object) -> Timed:
        text = str(why).strip().partition("\n")[0]
        if isinstance(why, Exception) and type(why).__name__ not in text:
            text = f"{type(why).__name__}: {text}"
        return cls(math.inf, failure=text[:200])


@dataclass(frozen=True)
class Bench:
    """A device with what times calls on it."""

    device: Device
    clock: Clock
    target: Target

    def timed(
        self, graph: Graph, schedules: Sequence[Mapping[str, Any]], rounds: int
    ) -> list[Timed]:
        """A graph of one node with each schedule, in turns, operands cold."""
        lowered = [lower_for_gpu(graph, self.target, lambda n, e, s=s: s) for s in schedules]
        found: dict[int, Timed] = {}
        programs: dict[int, DeviceProgram] = {}
        for number, made in enumerate(self._programs(lowered)):
            if isinstance(made, Timed):
                found[number] = made
            else:
                programs[number] = made
        with self.device.current():
            operands = [n.tensor_type for n in graph.inputs]
            copies = copies_of(sum(int(t.nbytes) for t in operands), self.target)
            first = [random_operand(t).to(self.device.where) for t in operands]
            inputs = [first, *([x.clone() for x in first] for _ in range(copies - 1))]
            found |= self._rounds(programs, inputs, rounds)
        return [found[number] for number in range(len(schedules))]

    def _programs(self, lowered: Sequence[Lowered]) -> list[DeviceProgram | Timed]:
        """The programs, kernels that several share compiled once."""
        texts = {text.name: text for of in lowered for text in of.kernels}
        code = self._code(list(texts.values()))
        made: list[DeviceProgram | Timed] = []
        for of in lowered:
            failures = [code[t.name] for t in of.kernels if isinstance(code[t.name], str)]
            if failures:
                made.append(Timed.failed(failures[0]))
                continue
            try:
                made.append(self._program(of, code))
            except Exception as error:  # the driver refuses its code
                made.append(Timed.failed(error))
        return made

    def _code(self, texts: Sequence[KernelText]) -> dict[str, Any]:
        """Machine code of every kernel by name, or why there is none."""
        if isinstance(self.device, InterpretedDevice):
            return self.device.take(texts)
        made: dict[str, Any] = {}
        for text, found in zip(texts, workers().compiled(texts, self.target.level), strict=True):
            if isinstance(found, Compiled) and found.resources.spills:
                found = f"{text.launch.entry} spills {found.resources.spills} bytes"
            made[text.name] = found
        return made

    def _program(self, lowered: Lowered, code: Mapping[str, Any]) -> DeviceProgram:
        own = {text.name: code[text.name] for text in lowered.kernels}
        plan = lowered.plan
        if not isinstance(self.device, InterpretedDevice):
            plan, own = with_code(lowered, list(own.values()))
        return program_of(plan, lowered, self.device, own, record=False)

    def _rounds(
        self,
        programs: Mapping[int, DeviceProgram],
        inputs: Sequence[list[torch.Tensor]],
        rounds: int,
    ) -> dict[int, Timed]:
        found: dict[int, Timed] = {}
        arms: dict[str, Arm] = {}
        for number, program in programs.items():
            try:
                program(inputs[0])
                self.device.synchronize()
                arms[str(number)] = partial(_call, program, inputs)
            except Exception as error:
                found[number] = Timed.failed(error)
        try:
            times = self.clock.rounds(arms, len(inputs), rounds)
        except Exception:  # one of them: each for itself, to find which
            times = {}
            for name, arm in arms.items():
                try:
                    times |= self.clock.rounds({name: arm}, len(inputs), rounds)
                except Exception as error:
                    found[int(name)] = Timed.failed(error)
        return found | {int(name): _timed(seconds) for name, seconds in times.items()}


def _call(program: DeviceProgram, inputs: Sequence[list[torch.Tensor]], copy: int) -> Any:
    return program(inputs[copy])


def _timed(seconds: Sequence[float]) -> Timed:
    middle = median(seconds)
    return Timed(middle, median(abs(s - middle) for s in seconds))
