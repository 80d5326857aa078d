"""What a compiled causal model is made for: sizes, and the stores of its cache."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from infopt.runtime.decoding.compaction import Compaction
from infopt.runtime.decoding.pages import PagePool
from infopt.runtime.door import CPU
from infopt.runtime.plan_check import dtype_of


@dataclass(frozen=True)
class CausalSpec:
    """What a compiled causal model is made for.

    stores: of every store of the cache, its sizes behind the batch, its dtype's name, and what it
        starts with
    group: with every so many tokens the cache changes how it keeps them, and guesses end before;
        0: never
    chunk: the most tokens of one call; longer prompts are cut. None: any number
    page: the stores' sizes are those of a page of so many tokens, and all sequences have theirs in
        one pool; 0: each sequence has stores of its own
    positions: how many the model has, where they are an input of the program; 0: they follow from
        what is in the cache
    compact: how prompts are cut; None: they are not
    """

    vocabulary: int
    max_length: int
    batch: int
    stores: tuple[tuple[tuple[int, ...], str, float], ...]
    group: int = 0
    chunk: int | None = None
    page: int = 0
    positions: int = 0
    compact: Compaction | None = None

    def to_json(self) -> dict[str, Any]:
        stores = [
            {"shape": list(s), "dtype": dtype, "fill": fill} for s, dtype, fill in self.stores
        ]
        return {
            "vocabulary": self.vocabulary,
            "max_length": self.max_length,
            "batch": self.batch,
            "stores": stores,
            "group": self.group,
            "chunk": self.chunk,
            "page": self.page,
            "positions": self.positions,
            "compact": self.compact and self.compact.to_json(),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> CausalSpec:
        stores = tuple((tuple(s["shape"]), str(s["dtype"]), s["fill"]) for s in record["stores"])
        sizes = (record["vocabulary"], record["max_length"], record["batch"])
        compact = record.get("compact")
        return cls(
            *sizes,
            stores,
            record["group"],
            record["chunk"],
            record.get("page", 0),
            record.get("positions", 0),
            Compaction.from_json(compact) if compact is not None else None,
        )

    def empty(self, sequences: int, where: torch.device = CPU) -> list[Tensor]:
        """The stores of so many sequences without a token."""
        made = []
        for shape, name, fill in self.stores:
            dtype, sizes = dtype_of(name, "stores"), (sequences, *shape)
            # memory of zeros is touched as tokens come
            zeros = partial(torch.full, fill_value=fill) if fill else torch.zeros
            made.append(zeros(sizes, dtype=dtype, device=where))
        return made

    @property
    def most(self) -> int:
        """The most tokens of one call."""
        return min(self.max_length, self.chunk or self.max_length)

    @property
    def cache_bytes(self) -> int:
        """Of a full batch of texts of max_length."""
        pieces = self.batch * (-(-self.max_length // self.page) if self.page else 1)
        sizes = [
            math.prod(shape) * dtype_of(name, "stores").itemsize for shape, name, _ in self.stores
        ]
        return pieces * sum(sizes)

    def pool(self, where: torch.device = CPU) -> PagePool:
        """Pages for a batch of full sequences; more are made where more texts are kept."""
        kinds = [
            (heads, width, dtype_of(name, "stores")) for (heads, _, width), name, _ in self.stores
        ]
        return PagePool(kinds, self.page, self.batch * -(-self.max_length // self.page), where)
