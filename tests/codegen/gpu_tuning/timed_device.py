"""A GPU that computes nothing and takes as long as a rule says, for trying what measures it.

The timing model: a launch advances the device's time by rule(launch) seconds, times 1 + a share of
`noise` drawn evenly from [-1, 1] with a fixed seed; every tenth launch meets a neighbour and takes
ten times as long. `refused` says of which launches the driver refuses the code (out of resources),
`failing` which fail when they run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from types import SimpleNamespace

import torch

from infopt.codegen.gpu_tuning.clock import Arm
from infopt.codegen.interpreted_device import InterpretedDevice
from infopt.codegen.kernel import find_emitter
from infopt.codegen.launch import Launch
from infopt.compiler.graph import Node
from infopt.compiler.infer import Builder
from infopt.compiler.target import Target
from infopt.compiler.types import Dim, TensorType
from infopt.runtime.errors import LibraryError

SM90 = Target.parse("cuda:sm90")


class TimedDevice(InterpretedDevice):
    def __init__(
        self,
        rule: Callable[[Launch], float],
        noise: float = 0.0,
        refused: Callable[[Launch], bool] = lambda launch: False,
        failing: Callable[[Launch], bool] = lambda launch: False,
        name: str = "NVIDIA H200",
    ) -> None:
        super().__init__()
        self.rule, self.noise, self.refused, self.failing = rule, noise, refused, failing
        self.gpu = SimpleNamespace(name=name)
        self.now, self.count = 0.0, 0
        self.random = random.Random(0)
        self.clock = TimedClock(self)

    def load(self, kernel, code):
        if self.refused(self.texts[kernel.library].launch):
            raise LibraryError(f"{kernel.entry}: out of resources")
        return super().load(kernel, code)

    def _launch(self, function, *rest):
        _, launch = self._loaded[function - 1]
        if self.failing(launch):
            self.failure = RuntimeError("misaligned address")
            return 1
        self.count += 1
        seconds = self.rule(launch) * (1 + self.noise * self.random.uniform(-1, 1))
        self.now += seconds * (10 if self.count % 10 == 0 else 1)
        self.launched[launch.entry] += 1
        return 0


class TimedClock:
    """Reads the device's own time."""

    def __init__(self, device: TimedDevice) -> None:
        self.device = device

    def rounds(self, arms: Mapping[str, Arm], copies: int, rounds: int) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(rounds):
            for name, arm in arms.items():
                begin = self.device.now
                arm(0)
                found[name].append(self.device.now - begin)
        return found


def linear(m, n=256, k=512, dtype=torch.bfloat16, dims: tuple[Dim, ...] = ()):
    """A linear layer as a node, with its emitter for a GPU."""
    o = Builder(dims)
    x, w = (o.input(name, TensorType.dense(s, dtype)) for name, s in (("x", (m, k)), ("w", (n, k))))
    node: Node = o.linear(x, w)
    emitter, reason = find_emitter(node, SM90)
    assert emitter is not None, reason
    return node, emitter
