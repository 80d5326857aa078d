"""One pass over an iteration space: which memory it reads and writes, and in which loops.

A region's loops are found from the strides of everything it touches: axes that lie without gaps
in all of it are one loop; the innermost loop is the one in which the first output is densest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from sympy import Max
from torch.utils._sympy.functions import FloorDiv

from infopt.codegen.plan_writer import Value
from infopt.codegen.sizes import Sizes, product, same_stride
from infopt.compiler.types import Size

TASK_ELEMENTS = 8192  # of one task where elements are cheap
HEAVY_TASK_ELEMENTS = 2048  # where each takes an exponential or so


@dataclass(frozen=True)
class Access:
    """One thing read or written: a tensor's memory, or (value None) the count `offset + i*stride`.

    strides: per axis of the region, in elements; 0 where the value does not change along it
    """

    value: Value | None
    dtype: torch.dtype
    offset: Size
    strides: tuple[Size, ...]


@dataclass
class Loops:
    """The loops of a region, outermost first, and every access's stride in each of them."""

    sizes: list[Size]
    strides: list[list[Size]]  # by access
    unit: int  # elements of one task
    numbers: list[Size] = field(default_factory=list)

    @property
    def inner(self) -> Size:
        return self.sizes[-1]

    @property
    def outer(self) -> list[Size]:
        return self.sizes[:-1]

    def pattern(self, access: int) -> str:
        """How an access moves: per outer loop 0 or s, then the inner one: 0, 1 or s."""
        *outer, inner = self.strides[access]
        last = "0" if inner == 0 else "1" if inner == 1 else "s"
        return "".join("0" if s == 0 else "s" for s in outer) + last

    def tasks(self) -> tuple[Size, Size]:
        """(elements or rows of one task, number of tasks)."""
        if not self.outer:
            return self.unit, ceil_div(self.inner, self.unit)
        rows = product(self.outer)
        per_task: Size
        if isinstance(self.inner, int):
            per_task = max(1, self.unit // max(1, self.inner))
        else:
            per_task = Max(1, FloorDiv(self.unit, Max(1, self.inner)))
        return per_task, ceil_div(rows, per_task)


def ceil_div(a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return -(-a // b)
    return FloorDiv(a + b - 1, b)


def find_loops(
    sizes: Sequence[Size],
    accesses: Sequence[Access],
    first_output: int,
    heavy: bool,
    evaluate: Sizes,
) -> Loops:
    """The fewest loops over the axes `sizes`, the densest innermost."""
    written = accesses[first_output].strides
    axes = sorted(range(len(sizes)), key=lambda d: -evaluate.hint(written[d]))
    merged_sizes: list[Size] = []
    merged: list[list[Size]] = [[] for _ in accesses]
    for d in axes:
        size = sizes[d]
        if merged_sizes and all(
            same_stride(m[-1], _times(a.strides[d], size))
            for m, a in zip(merged, accesses, strict=True)
        ):
            merged_sizes[-1] = product((merged_sizes[-1], size))
            for m, a in zip(merged, accesses, strict=True):
                m[-1] = a.strides[d]
        else:
            merged_sizes.append(size)
            for m, a in zip(merged, accesses, strict=True):
                m.append(a.strides[d])
    if not merged_sizes:  # a single element
        merged_sizes = [1]
        merged = [[0] for _ in accesses]
        merged[first_output] = [1]
    return Loops(merged_sizes, merged, HEAVY_TASK_ELEMENTS if heavy else TASK_ELEMENTS)


def _times(a: Size, b: Size) -> Size:
    return 0 if a == 0 else b if a == 1 else a * b
