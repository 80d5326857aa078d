"""What entries kept beside a stored weight add to its products, on a GPU: a launch before them.

Sums are over a weight row's entries in their order. Many rows are turned first: what an entry
multiplies is a column of x, which then lies together.
"""

from __future__ import annotations

from typing import Any

import torch

from infopt.codegen.gpu.text import HEADER, launch
from infopt.codegen.kernels.linear import only_if
from infopt.codegen.kernels.rows import Rows, ceil_div
from infopt.codegen.launch import Launch, Pointer, Scratch, Work
from infopt.compiler.types import Size

_TILE = 64  # rows and columns that a program turns
_ROWS, _ENTRIES = 128, 8  # rows of turned x that a program multiplies, entries at once
_FEW_ENTRIES = 32

SOURCE = (
    HEADER
    + '''

@triton.jit
def turn_rows(x, turned, m, k, x_stride, BLOCK: tl.constexpr):
    """turned [k, m] of rows x [m, k]."""
    rows = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    columns = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    in_rows, in_columns = rows < m, columns < k
    tile = tl.load(x + rows[:, None] * x_stride + columns[None, :],
                   mask=in_rows[:, None] & in_columns[None, :], other=0.0)
    tl.store(turned + columns[:, None] * m + rows[None, :], tl.trans(tile),
             mask=in_columns[:, None] & in_rows[None, :])


@triton.jit
def entry_products(x, entries, rest, m, n, row_stride, column_stride, NARROW: tl.constexpr,
                   ROWS: tl.constexpr, ENTRIES: tl.constexpr):
    """rest[j, rows]: the entries of row j of a weight times columns of x, summed in f32. NARROW: x
    counts as bf16."""
    j = tl.program_id(0)
    rows = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    in_rows = rows < m
    x_at = x + rows[None, :] * row_stride
    begin = tl.load(entries + j)
    end = tl.load(entries + j + 1)
    acc = tl.zeros((ENTRIES, ROWS), dtype=tl.float32)
    for first in range(begin, end, ENTRIES):
        i = first + tl.arange(0, ENTRIES)
        inside = i < end
        entry = tl.load(entries + n + 1 + i, mask=inside, other=0)
        value = (entry & -65536).to(tl.float32, bitcast=True)
        column = (entry & 65535).to(tl.int64) * column_stride
        v = tl.load(x_at + column[:, None], mask=inside[:, None] & in_rows[None, :], other=0.0)
        if NARROW:
            v = v.to(tl.bfloat16)
        acc += value[:, None] * v.to(tl.float32)
    tl.store(rest + j.to(tl.int64) * m + rows, tl.sum(acc, axis=0), mask=in_rows)
'''
)


def rest_launches(
    x: Pointer,
    rows: Rows,
    n: Size,
    remainders: dict[str, tuple[Pointer, Size]],
    narrow: bool,
    few: Any,
    most: int,
) -> tuple[list[Launch], dict[str, Pointer]]:
    """The launches for remainders, and what they make: f32 [n, rows] by the remainders' names.

    remainders: each with its length; few: the condition that there are at most `most` rows.
    """
    m, k = rows.count, rows.width
    rest = {name: Pointer(Scratch(name, 4 * n * m), torch.float32) for name in remainders}
    turned = Pointer(Scratch("turned", x.dtype.itemsize * m * k), x.dtype)
    made = [_turned(x, turned, rows, ~few)]
    at_once = min(most, 1 << (m - 1).bit_length()) if isinstance(m, int) else most
    for condition, source, strides, block, entries, warps in (
        (few, x, (rows.stride, 1), at_once, _FEW_ENTRIES, 1),
        (~few, turned, (1, m), _ROWS, _ENTRIES, 4),
    ):
        for name, (remainder, length) in remainders.items():
            each = ceil_div(length - n - 1, n)  # entries of a row, in the mean
            found = launch(
                SOURCE,
                "entry_products",
                grid=(only_if(condition, n), ceil_div(m, block)),
                warps=warps,
                x=source,
                entries=remainder,
                rest=rest[name],
                **{"m": m, "n": n, "row_stride": strides[0], "column_stride": strides[1]},
                **{"NARROW": narrow, "ROWS": block, "ENTRIES": entries},
                work=Work(
                    steps=ceil_div(each, entries),
                    flops=0,
                    loads=entries * (4 + block * x.dtype.itemsize),
                    dtype="f32",
                    values=entries * block,
                    vector=4 * entries * block,
                    stores=4 * block,
                ),
            )
            made.append(found)
    return made, rest


def _turned(x: Pointer, turned: Pointer, rows: Rows, condition: Any) -> Launch:
    return launch(
        SOURCE,
        "turn_rows",
        grid=(only_if(condition, ceil_div(rows.count, _TILE)), ceil_div(rows.width, _TILE)),
        x=x,
        turned=turned,
        **{"m": rows.count, "k": rows.width, "x_stride": rows.stride},
        BLOCK=_TILE,
        work=Work(
            steps=1,
            flops=0,
            loads=_TILE * _TILE * x.dtype.itemsize,
            dtype="f32",
            values=_TILE * _TILE,
            stores=_TILE * _TILE * x.dtype.itemsize,
        ),
    )
