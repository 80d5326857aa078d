"""The memory of a state's keys and values: what a step reads and writes beside its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Memory(Protocol):
    """Of so many sequences. stores: the tensors that hold it; bytes: how much of them is theirs."""

    @property
    def stores(self) -> list[Tensor]: ...

    @property
    def bytes(self) -> int: ...

    def run(self, program: Any, given: list[Tensor], starts: Tensor, ends: Tensor) -> list[Tensor]:
        """The results for ids, starts, counts, picks and perhaps positions; the new tokens are in
        the cache then. starts, ends: int64 [B] on the CPU, what is in the cache before and then."""

    def pick(self, rows: Sequence[int]) -> Memory:
        """The same of these sequences, each as often as it is named, to go on separately."""

    def join(self, others: Sequence[Any]) -> Memory:
        """Of all sequences, these first. This and the others are not used any more."""


class OwnMemory:
    """Stores [B, ...] with room for every token that may come."""

    def __init__(self, stores: list[Tensor]) -> None:
        self.stores = stores

    @property
    def bytes(self) -> int:
        return sum(s.nbytes for s in self.stores)

    def run(self, program: Any, given: list[Tensor], starts: Tensor, ends: Tensor) -> list[Tensor]:
        made: list[Tensor] = program.run([*given, *self.stores])
        return made

    def pick(self, rows: Sequence[int]) -> OwnMemory:
        index = torch.tensor(rows)
        return OwnMemory([store[index] for store in self.stores])

    def join(self, others: Sequence[OwnMemory]) -> OwnMemory:
        of_all = zip(self.stores, *(m.stores for m in others), strict=True)
        return OwnMemory([torch.cat(parts) for parts in of_all])
