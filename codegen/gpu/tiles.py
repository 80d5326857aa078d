"""Tiles of matrix products: their sizes, and which of them suits a product and a GPU."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from infopt.compiler.target import Target

_FORM = re.compile(r"(\d+)x(\d+)x(\d+) w(\d+) s(\d+)")


@dataclass(frozen=True)
class Tile:
    """A block of m x n results, made in steps of k; warps that share it, stages of loads.

    As text, which is how schedules name it: "128x256x64 w8 s3".
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int

    @classmethod
    def parse(cls, text: str) -> Tile:
        found = _FORM.fullmatch(text)
        if found is None:
            raise ValueError(f"tile {text!r}: expected the form '128x256x64 w8 s3'")
        return cls(*map(int, found.groups()))

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k} w{self.warps} s{self.stages}"

    def fitted(self, target: Target, row_bytes: int, others: int = 0) -> Tile:
        """With as many stages as fit the target's shared memory beside `others` bytes.

        row_bytes: of what is loaded for one element of k
        """
        stage = row_bytes * self.k
        # AMD's pipeline holds one stage fewer in shared memory than it counts
        spare = stage if target.arch.startswith("gfx") else 0
        most = (target.fast_memory + spare - others) // stage
        return replace(self, stages=max(1, min(self.stages, most)))


def power_of_two(size: int) -> int:
    """The least that a block may have: a power of two, 16 or more for a product."""
    return max(16, 1 << (size - 1).bit_length())
