"""Rows, by index, of a table in few bits on a GPU: only what is asked for is decoded.

An index that a table does not have gives a row of NaN: a kernel cannot raise. Entries kept beside
the table come after its rows, in a launch that writes those elements again.
"""

from __future__ import annotations

import torch

from infopt.codegen.gpu.row_blocks import row_blocks
from infopt.codegen.gpu.stored_source import DECODE
from infopt.codegen.gpu.text import HEADER, launch
from infopt.codegen.kernel import Config
from infopt.codegen.kernels.quantized_embedding import (
    TABLE_LAYOUTS,
    quantized_embedding,
    stored_rows_legal,
)
from infopt.codegen.kernels.rows import as_rows, ceil_div, row_stride
from infopt.codegen.launch import Launch, Pointer
from infopt.codegen.weight_formats.formats import stored_format
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType

_ENTRIES = 32  # of a row at once

SOURCE = (
    HEADER
    + DECODE
    + '''

@triton.jit
def number_of(row_at, columns, inside, LAYOUT: tl.constexpr):
    """The stored numbers at some columns of rows that begin at row_at, in f32."""
    place = columns // 64
    within = columns % 64
    if LAYOUT == 8:
        y = tl.load(row_at + columns, mask=inside, other=0)
    elif LAYOUT >= 43:
        y = float_of(tl.load(row_at + columns, mask=inside, other=0), LAYOUT, False)
    elif LAYOUT == 19:
        lane = within // 4
        at = row_at + 8 + place * 24
        codes = tl.load(at + lane, mask=inside, other=0).to(tl.int32)
        upper = tl.load(at + 16 + lane % 2 * 4 + lane // 4, mask=inside, other=0).to(tl.int32)
        codes |= (upper >> (lane // 2 % 2 * 4) & 15) << 8
        codes = codes >> (within % 4 * 3) & 7
        y = tl.load(row_at + codes, mask=inside, other=0).to(tl.int8)
    else:
        first: tl.constexpr = 16 if LAYOUT == 20 else 0
        packed = tl.load(row_at + first + place * 32 + within % 32, mask=inside, other=0)
        codes = packed.to(tl.int32) >> (within // 32 * 4) & 15
        if LAYOUT == 20:
            y = tl.load(row_at + codes, mask=inside, other=0).to(tl.int8)
        else:
            y = codes - 8
    return y.to(tl.float32)


@triton.jit
def decoded(values, scales, rows, columns, inside, value_stride, scale_stride,
            LAYOUT: tl.constexpr, GROUP: tl.constexpr):
    """A stored matrix at some rows and columns, in f32."""
    y = number_of(values + rows * value_stride, columns, inside, LAYOUT)
    at = scales + rows * scale_stride
    if GROUP > 0:
        at += columns // GROUP
    return y * tl.load(at + 0 * columns, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def stored_rows(ids, values, scales, out, count, height, width, value_stride, scale_stride,
                out_stride, LAYOUT: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
                BLOCK: tl.constexpr):
    """ROWS rows of the result, BLOCK columns of them."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    in_rows = rows < count
    asked = tl.load(ids + rows, mask=in_rows, other=0)
    there = in_rows & (asked >= 0) & (asked < height)
    asked = tl.where(there, asked, 0).to(tl.int64)[:, None]
    inside = there[:, None] & (columns < width)
    y = decoded(values, scales, asked, columns, inside, value_stride, scale_stride, LAYOUT, GROUP)
    y = tl.where(there[:, None], y, float("nan"))
    at = out + rows.to(tl.int64)[:, None] * out_stride + columns
    tl.store(at, y.to(out.dtype.element_ty), mask=in_rows[:, None] & (columns < width))


@triton.jit
def stored_entries(ids, values, scales, entries, out, height, value_stride, scale_stride,
                   out_stride, LAYOUT: tl.constexpr, GROUP: tl.constexpr, ENTRIES: tl.constexpr):
    """What a row of the table has beside its codes, added; a program is a row of the result."""
    row = tl.program_id(0).to(tl.int64)
    asked = tl.load(ids + row).to(tl.int64)
    there = (asked >= 0) & (asked < height)
    asked = tl.where(there, asked, 0)
    begin = tl.load(entries + asked)
    end = tl.where(there, tl.load(entries + asked + 1), begin)
    for first in range(begin, end, ENTRIES):
        i = first + tl.arange(0, ENTRIES)
        inside = i < end
        entry = tl.load(entries + height + 1 + i, mask=inside, other=0)
        columns = entry & 65535
        y = decoded(values, scales, asked, columns, inside, value_stride, scale_stride, LAYOUT,
                    GROUP)
        y += (entry & -65536).to(tl.float32, bitcast=True)
        tl.store(out + row * out_stride + columns, y.to(out.dtype.element_ty), mask=inside)
'''
)


@quantized_embedding.kernel("gpu", legal=stored_rows_legal, layouts=TABLE_LAYOUTS)
def _quantized_embedding(
    cfg: Config,
    target: Target,
    ids: TensorType,
    values: TensorType,
    scales: TensorType,
    remainder: TensorType | None,
    *,
    format: str,
    width: int,
    out: torch.dtype,
) -> list[Launch]:
    rows, codec = as_rows(cfg.out), stored_format(format)
    assert rows is not None
    blocks = row_blocks(width)
    tensors = {"ids": ids, "values": values, "scales": scales}
    given = {name: Pointer(name, t.dtype) for name, t in tensors.items()}
    into = Pointer("out", cfg.out.dtype)
    height = values.shape[0]
    strides = {"value_stride": row_stride(values), "scale_stride": row_stride(scales)}
    strides |= {"out_stride": rows.stride}
    kind = {"LAYOUT": codec.layout, "GROUP": codec.group}
    made = launch(
        SOURCE,
        "stored_rows",
        grid=(ceil_div(ids.numel, blocks.rows), ceil_div(width, blocks.block)),
        warps=blocks.warps,
        **given,
        out=into,
        **{"count": ids.numel, "height": height, "width": width},
        **strides,
        **kind,
        **blocks.constants,
    )
    if remainder is None:
        return [made]
    after = launch(
        SOURCE,
        "stored_entries",
        grid=(ids.numel,),
        warps=1,
        exact=True,  # a decoded number is rounded before an entry is added to it
        **given,
        entries=Pointer("remainder", remainder.dtype),
        out=into,
        height=height,
        **strides,
        **kind,
        ENTRIES=_ENTRIES,
    )
    return [made, after]
