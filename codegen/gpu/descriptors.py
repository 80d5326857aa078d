"""Tiles loaded by tensor descriptors: on sm90 and sm100 a unit (TMA) fetches blocks of a matrix.

A kernel makes its descriptors itself, in memory that its launch brings (`Launch.descriptors`). Made
by the host they would be arguments of 128 bytes, encoded anew by the driver at every call, for
addresses change, and frozen in a recording. Made by the kernel they cost each program about one
wait for memory, and nothing else of the launch changes: an artifact needs no further function of
the driver, and a recording replays.
"""

from __future__ import annotations

import sympy
import torch
from sympy import Le
from torch.utils._sympy.functions import Where

from infopt.codegen.launch import is_multiple
from infopt.compiler.target import Target
from infopt.compiler.types import Size

ARCHITECTURES = ("sm90", "sm100")
BYTES = 16  # a row begins at a multiple of these
MOST_ROWS = 2**31 - 1  # sizes and coordinates are of 32 bits


def describable(rows: Size, width: Size, stride: Size, dtype: torch.dtype, target: Target) -> bool:
    """Whether blocks of [rows, width] can be loaded so, rows `stride` elements apart and their
    elements beside each other. That the first begins at a multiple of 16 bytes is up to the launch.
    """
    if target.arch not in ARCHITECTURES or not (isinstance(width, int) and isinstance(stride, int)):
        return False
    few = not isinstance(rows, int) or rows <= MOST_ROWS
    # f32 is multiplied from registers, which loads by pointers fill as well
    narrow = dtype in (torch.float16, torch.bfloat16)
    return few and narrow and stride >= width and is_multiple(stride * dtype.itemsize, BYTES)


def grid_for(rows: Size, programs: Size) -> Size:
    """So many programs, and more than a launch can have, which is an error, where rows are more
    than a descriptor can count."""
    if isinstance(rows, int):
        return programs
    return Where(Le(rows, MOST_ROWS), programs, sympy.Integer(MOST_ROWS + 1))
