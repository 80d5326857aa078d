"""The memory of a batch of which each sequence has an adapter: chosen once, kept with the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from infopt.runtime.adapters import Chosen
from infopt.runtime.decoding.memory import Memory

SLOTS_AT = 4  # of a decoder's inputs, the one that has the sequences' slot numbers


class AdaptedMemory:
    """Another memory, and which adapter has made each sequence's keys and values."""

    def __init__(self, own: Memory, chosen: Chosen, where: torch.device) -> None:
        self.own, self.chosen, self._where = own, chosen, where
        self._slots = chosen.slots().to(where)

    @property
    def stores(self) -> list[Tensor]:
        return self.own.stores

    @property
    def bytes(self) -> int:
        return self.own.bytes

    def run(self, program: Any, given: list[Tensor], starts: Tensor, ends: Tensor) -> list[Tensor]:
        inputs = [*given[:SLOTS_AT], self._slots, *given[SLOTS_AT:]]
        return self.own.run(program, inputs, starts, ends)

    def pick(self, rows: Sequence[int]) -> AdaptedMemory:
        return AdaptedMemory(self.own.pick(rows), self.chosen.pick(rows), self._where)

    def join(self, others: Sequence[AdaptedMemory]) -> AdaptedMemory:
        chosen = [a for memory in (self, *others) for a in memory.chosen.adapters]
        own = self.own.join([memory.own for memory in others])
        return AdaptedMemory(own, Chosen(tuple(chosen)), self._where)
