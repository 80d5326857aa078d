"""Rows of tokens brought to fewer places by a map, and back, on a GPU.

Who goes to a place is found in the map by the place's own program, in the order of the tokens: no
two programs add to one sum.
"""

from __future__ import annotations

from infopt.codegen.gpu.row_blocks import row_blocks
from infopt.codegen.gpu.text import HEADER, launch
from infopt.codegen.kernel import Config
from infopt.codegen.kernels.rows import ceil_div, contiguous
from infopt.codegen.kernels.token_rows import (
    merge_legal,
    merge_rows,
    merge_sizes,
    unmerge_legal,
    unmerge_rows,
)
from infopt.codegen.launch import Launch, Pointer
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

SOURCE = (
    HEADER
    + '''

@triton.jit
def size_of_place(map, size, row, place, tokens, TOKENS: tl.constexpr):
    """The sum of the sizes of the tokens of one place, without sizes their number; and their
    number."""
    total = tl.zeros((TOKENS,), dtype=tl.float32)
    count = tl.zeros((TOKENS,), dtype=tl.int32)
    for start in range(0, tokens, TOKENS):
        token = start + tl.arange(0, TOKENS)
        own = tl.load(map + row * tokens + token, mask=token < tokens, other=-1) == place
        count += own.to(tl.int32)
        if size is None:
            total += own.to(tl.float32)
        else:
            total += tl.load(size + row * tokens + token, mask=own, other=0.0)
    return tl.sum(total, axis=0), tl.sum(count, axis=0)


@triton.jit
def place_sizes(map, size, out, tokens, keep, TOKENS: tl.constexpr):
    """The size of one place."""
    row = (tl.program_id(0) // keep).to(tl.int64)
    total, count = size_of_place(map, size, row, tl.program_id(0) % keep, tokens, TOKENS)
    tl.store(out + tl.program_id(0), total)


@triton.jit
def merged_rows(x, map, size, out, tokens, keep, width, TOKENS: tl.constexpr,
                BLOCK: tl.constexpr):
    """The mean of the rows of one place, weighted by size; alike where all sizes are 0."""
    row = (tl.program_id(0) // keep).to(tl.int64)
    place = tl.program_id(0) % keep
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total, count = size_of_place(map, size, row, place, tokens, TOKENS)
    alike = total == 0
    sum = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, tokens, TOKENS):
        token = start + tl.arange(0, TOKENS)
        own = tl.load(map + row * tokens + token, mask=token < tokens, other=-1) == place
        next = tl.min(tl.where(own, token, tokens), axis=0)
        while next < tokens:
            weight = 1.0
            if size is not None:
                weight = tl.where(alike, 1.0, tl.load(size + row * tokens + next))
            at = x + (row * tokens + next) * width + columns
            sum += tl.load(at, mask=columns < width, other=0.0).to(tl.float32) * weight
            next = tl.min(tl.where(own & (token > next), token, tokens), axis=0)
    sum /= tl.where(alike, count.to(tl.float32), total)
    at = out + tl.program_id(0).to(tl.int64) * width + columns
    tl.store(at, sum.to(out.dtype.element_ty), mask=columns < width)


@triton.jit
def unmerged_rows(y, map, old, out, count, tokens, kept, width, ROWS: tl.constexpr,
                  BLOCK: tl.constexpr):
    """ROWS tokens: the row of the place of each, or its old one where it has none."""
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_rows = token < count
    place = tl.load(map + token, mask=in_rows, other=0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    in_columns = (columns < width)[None, :]
    gone = place < 0
    source = (token // tokens).to(tl.int64) * kept + tl.where(gone, 0, place)
    inside = in_rows[:, None] & in_columns
    if old is not None:
        inside = inside & ~gone[:, None]
    rows = tl.load(y + source[:, None] * width + columns[None, :], mask=inside, other=0)
    far = token.to(tl.int64)[:, None] * width + columns[None, :]
    if old is not None:
        mine = tl.load(old + far, mask=(in_rows & gone)[:, None] & in_columns, other=0)
        rows = tl.where(gone[:, None], mine, rows)
    tl.store(out + far, rows, mask=in_rows[:, None] & in_columns)
'''
)


_TOKENS = 1024  # of a map, that are looked at together


def tokens_at_once(tokens: Size) -> int:
    """The block of a map that a program looks at: all of it where it is short."""
    return min(_TOKENS, 1 << (tokens - 1).bit_length()) if isinstance(tokens, int) else _TOKENS


@merge_rows.kernel(
    "gpu", legal=merge_legal, layouts=dict.fromkeys(("x", "place", "size"), contiguous)
)
def _merge(
    cfg: Config,
    target: Target,
    x: TensorType,
    place: TensorType,
    size: TensorType | None,
    *,
    keep: Size,
) -> Launch:
    batch, tokens, width = x.shape
    block = min(1024, row_blocks(width).block)
    return launch(
        SOURCE,
        "merged_rows",
        grid=(batch * keep, ceil_div(width, block)),
        x=Pointer("x", x.dtype),
        map=Pointer("place", place.dtype),
        size=size and Pointer("size", size.dtype),
        out=Pointer("out", cfg.out.dtype),
        **{"tokens": tokens, "keep": keep, "width": width},
        **{"TOKENS": tokens_at_once(tokens), "BLOCK": block},
    )


@merge_sizes.kernel("gpu", layouts={"place": contiguous, "size": contiguous})
def _sizes(
    cfg: Config, target: Target, place: TensorType, size: TensorType | None, *, keep: Size
) -> Launch:
    batch, tokens = place.shape
    return launch(
        SOURCE,
        "place_sizes",
        grid=(batch * keep,),
        map=Pointer("place", place.dtype),
        size=size and Pointer("size", size.dtype),
        out=Pointer("out", cfg.out.dtype),
        **{"tokens": tokens, "keep": keep, "TOKENS": tokens_at_once(tokens)},
    )


@unmerge_rows.kernel(
    "gpu", legal=unmerge_legal, layouts=dict.fromkeys(("y", "place", "old"), contiguous)
)
def _unmerge(
    cfg: Config, target: Target, y: TensorType, place: TensorType, old: TensorType | None
) -> Launch:
    (batch, kept, width), tokens = y.shape, place.shape[1]
    blocks = row_blocks(width)
    return launch(
        SOURCE,
        "unmerged_rows",
        grid=(ceil_div(batch * tokens, blocks.rows), ceil_div(width, blocks.block)),
        warps=blocks.warps,
        y=Pointer("y", y.dtype),
        map=Pointer("place", place.dtype),
        old=old and Pointer("old", old.dtype),
        out=Pointer("out", cfg.out.dtype),
        **{"count": batch * tokens, "tokens": tokens, "kept": kept, "width": width},
        **blocks.constants,
    )
