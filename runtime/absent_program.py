"""A program for a GPU that is not here: it can be read about and saved, not called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from infopt.runtime.errors import DeviceMissing
from infopt.runtime.expression import evaluate
from infopt.runtime.plan import Plan

CPU = torch.device("cpu")


class AbsentProgram:
    """Stands where a `DeviceProgram` would; a call raises DeviceMissing."""

    threads = 1
    where = CPU

    def __init__(self, plan: Plan, constants: Sequence[torch.Tensor], level: str) -> None:
        self.plan, self.constants, self.level = plan, list(constants), level

    def __call__(self, inputs: Sequence[Any], times: Any = None) -> NoReturn:
        raise DeviceMissing(
            f"this program is for a GPU {self.level}, and torch {torch.__version__} finds none on "
            "this machine: save it, and load it on one that has it"
        )

    profile = __call__

    def arena_bytes(self, dims: Sequence[int]) -> int:
        """Bytes of all temporary buffers at these sizes, as if none were used twice."""
        slots = evaluate(self.plan.expressions, dims)
        return sum(slots[b.bytes] for b in self.plan.buffers if b.kind == "arena")
