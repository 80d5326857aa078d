"""Pages of one cache that all texts of a model share, and which of them are whose.

Texts with a common beginning have its pages in common: a page is copied when one of several owners
writes to it, and free again when nobody has it (PagedAttention, Kwon et al., 2023).
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from infopt.runtime.door import CPU


class PagePool:
    """stores: tensors [1, heads, pages * page, width]; more pages are made when none is free.

    kinds: of every store, (heads, width, dtype); page: tokens of one; pages: to begin with, memory
    that is touched as tokens come; where: the program's device. `turn` while the stores are read or
    written.
    """

    def __init__(
        self,
        kinds: Sequence[tuple[int, int, torch.dtype]],
        page: int,
        pages: int,
        where: torch.device = CPU,
    ) -> None:
        self.page, self.where, self.lock = page, where, threading.RLock()
        self.stores = [
            torch.zeros(1, h, pages * page, w, dtype=dtype, device=where) for h, w, dtype in kinds
        ]
        self._stream: Any = None  # of a GPU, the one that used the stores last
        self._owners = [0] * pages
        self._free = list(range(pages))  # a heap: neighbours in a text become neighbours here

    @property
    def used(self) -> int:
        """How many pages have an owner."""
        return len(self._owners) - len(self._free)

    @property
    def page_bytes(self) -> int:
        return sum(s.nbytes for s in self.stores) // len(self._owners)

    def take(self) -> int:
        """A page that was free."""
        if not self._free:
            self._grow()
        page = heapq.heappop(self._free)
        self._owners[page] = 1
        return page

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The stores are this caller's; work on a GPU comes after that of the turn before."""
        with self.lock:
            if self.where.type == "cuda":
                stream = torch.cuda.current_stream(self.where)
                if self._stream is not None and self._stream != stream:
                    stream.wait_stream(self._stream)
                self._stream = stream
            yield

    def share(self, pages: Sequence[int]) -> None:
        """One more owner of each."""
        with self.lock:
            for page in pages:
                self._owners[page] += 1

    def give_back(self, pages: Sequence[int]) -> None:
        """One owner less of each."""
        with self.lock:
            for page in pages:
                self._owners[page] -= 1
                if not self._owners[page]:
                    heapq.heappush(self._free, page)

    def alone(self, page: int) -> int:
        """The page, or where it has other owners too, a copy of it in its place."""
        if self._owners[page] == 1:
            return page
        made = self.take()
        for store in self.stores:
            pages = store.unflatten(2, (-1, self.page))
            pages[:, :, made] = pages[:, :, page]
        self.give_back([page])
        return made

    def _grow(self) -> None:
        """Half as many pages again. Programs write to the stores only under the lock."""
        before = len(self._owners)
        more = max(1, before // 2)
        for number, store in enumerate(self.stores):
            _, heads, rows, width = store.shape
            longer = store.new_zeros(1, heads, rows + more * self.page, width)
            longer[:, :, :rows] = store
            self.stores[number] = longer
        self._owners.extend([0] * more)
        self._free.extend(range(before, before + more))  # none was free: still a heap


class PagedMemory:
    """The pages of so many sequences: table int64 [B, pages], numbers of the pool's, in order."""

    def __init__(self, pool: PagePool, table: Tensor, pages: list[list[int]]) -> None:
        self.pool, self.table, self._pages = pool, table, pages
        self._there: Tensor | None = None  # the table on the program's device, while it is as here
        self._room = [0] * len(pages)  # before which token pages are there that nobody else has

    @classmethod
    def empty(cls, pool: PagePool, sequences: int, max_length: int) -> PagedMemory:
        table = torch.zeros(sequences, -(-max_length // pool.page), dtype=torch.int64)
        return cls(pool, table, [[] for _ in range(sequences)])

    @property
    def stores(self) -> list[Tensor]:
        return self.pool.stores

    @property
    def bytes(self) -> int:
        """Of different pages: what sequences have in common counts once."""
        return len({n for pages in self._pages for n in pages}) * self.pool.page_bytes

    def run(self, program: Any, given: list[Tensor], starts: Tensor, ends: Tensor) -> list[Tensor]:
        with self.pool.turn():
            self.make_room(starts, ends)
            if self._there is None:
                self._there = self.table.to(self.pool.where)
            made: list[Tensor] = program.run([*given, self._there, *self.pool.stores])
        return made

    def make_room(self, starts: Tensor, ends: Tensor) -> None:
        """Pages of its own for each sequence's new tokens."""
        size = self.pool.page
        for row, end in enumerate(ends.tolist()):
            start = int(starts[row]) if end > self._room[row] else end
            if start >= end:
                continue
            self._there = None
            pages, last = self._pages[row], (end - 1) // size
            for number in range(start // size, last + 1):
                if number < len(pages):
                    pages[number] = self.pool.alone(pages[number])
                else:
                    pages.append(self.pool.take())
                self.table[row, number] = pages[number]
            self._room[row] = (last + 1) * size

    def pick(self, rows: Sequence[int]) -> PagedMemory:
        pages = [list(self._pages[row]) for row in rows]
        self.pool.share([n for own in pages for n in own])
        self._room = [0] * len(self._room)
        return PagedMemory(self.pool, self.table[torch.tensor(rows)], pages)

    def join(self, others: Sequence[PagedMemory]) -> PagedMemory:
        of_all = [self, *others]
        pages = [own for memory in of_all for own in memory._pages]
        made = PagedMemory(self.pool, torch.cat([m.table for m in of_all]), pages)
        for memory in of_all:
            memory._pages = []
        return made

    def __del__(self) -> None:
        self.pool.give_back([n for own in self._pages for n in own])
