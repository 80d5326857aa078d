"""How kernels over rows cut them: whole rows in registers, or long ones in a loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from infopt.codegen.kernels.rows import ceil_div
from infopt.compiler.types import Size

LONGEST = 16384  # elements of a row that fit a block's registers
SHORT = 2048  # elements of a program: it takes several rows where they are shorter
LOOPED = 4096  # elements of a step through a long row
ROW_SPACE = {"warps": ("usual", 2, 4, 8, 16)}


@dataclass(frozen=True)
class RowBlocks:
    """rows: of a program; block: columns at once; whole: a row is one block."""

    rows: int
    block: int
    whole: bool
    warps: int

    def grid(self, count: Size) -> tuple[Size]:
        return (ceil_div(count, self.rows),)

    @property
    def constants(self) -> dict[str, Any]:
        return {"ROWS": self.rows, "BLOCK": self.block}


def row_blocks(width: Size, warps: int | str = "usual") -> RowBlocks:
    """For rows of a width; an open one is taken for long."""
    if isinstance(width, int) and width <= LONGEST:
        block = max(16, 1 << (width - 1).bit_length())
        found = RowBlocks(max(1, min(16, SHORT // block)), block, True, 4)
    else:
        found = RowBlocks(1, LOOPED, False, 8)
    if warps == "usual":
        elements = found.rows * found.block
        warps = 4 if elements <= 4096 else 8 if elements <= 8192 else 16
    return RowBlocks(found.rows, found.block, found.whole, int(warps))
