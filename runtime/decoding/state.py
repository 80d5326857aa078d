"""Where a batch of sequences stands, between two steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from infopt.runtime.decoding.adapted import AdaptedMemory
from infopt.runtime.decoding.memory import Memory
from infopt.runtime.decoding.places import Places
from infopt.runtime.errors import StaleState


class State:
    """Where a batch of sequences stands.

    logits   of each sequence's last token, [B, V]
    lengths  how many tokens of each sequence are in the cache; starts: the same, int64 [B]
    positions  int64 [B]: where each sequence's next token stands in its text, more than `starts`
             where prompts were cut
    places   the two on the program's device, where a step has left them

    Stepping hands the cache's memory on to the new state; the old one can only be read.
    """

    __slots__ = ("_memory", "lengths", "logits", "places", "positions", "starts")

    def __init__(
        self,
        memory: Memory,
        lengths: tuple[int, ...],
        starts: Tensor,
        logits: Tensor,
        positions: Tensor | None = None,
        places: Places | None = None,
    ) -> None:
        self._memory: Memory | None = memory
        self.starts, self.positions = starts, starts if positions is None else positions
        self.lengths, self.logits, self.places = lengths, logits, places

    def copy(self) -> State:
        """The same state with memory of its own: both may be stepped."""
        return self.pick(range(len(self.lengths)))

    @property
    def memory(self) -> Memory:
        """The cache. Raises StaleState."""
        if self._memory is None:
            raise StaleState("this state was stepped: use the state that the step gave, or copy()")
        return self._memory

    @property
    def stores(self) -> list[Tensor]:
        """The tensors that hold the cache. Raises StaleState."""
        return self.memory.stores

    @property
    def bytes(self) -> int:
        """Memory of the cache: what is reserved, of pages those that its texts have (what they
        have in common once). Raises StaleState."""
        return self.memory.bytes

    @property
    def adapters(self) -> tuple[str | None, ...]:
        """Which adapter each sequence has, None for the model alone. Raises StaleState."""
        memory = self.memory
        if isinstance(memory, AdaptedMemory):
            return memory.chosen.names
        return (None,) * len(self.lengths)

    def take(self) -> Memory:
        """The cache, which is no longer this state's. Raises StaleState."""
        memory, self._memory = self.memory, None
        return memory

    def pick(self, rows: Sequence[int]) -> State:
        """These sequences, with memory of their own; this state stays as it is."""
        lengths, index = tuple([self.lengths[row] for row in rows]), torch.tensor(rows)
        memory = self.memory.pick(rows)
        given = lengths, torch.tensor(lengths), self.logits[index], self.positions[index]
        return State(memory, *given)

    def __repr__(self) -> str:
        stale = ", stale" if self._memory is None else ""
        return (
            f"<infopt.State of {len(self.lengths)} sequences, {list(self.lengths)} tokens{stale}>"
        )
