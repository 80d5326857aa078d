"""Sequences of different lengths one after the other, on a GPU: their rows, and attention in them.

Where rows go is counted from the mask by everybody who needs it: a mask is small, and no program
waits for another.
"""

from __future__ import annotations

from typing import Any

from infopt.codegen.gpu.attention import (
    DEEPEST,
    FLASH_SPACE,
    fitted_tile,
    power_of_two,
    usual_block,
)
from infopt.codegen.gpu.attention_source import SOURCE as ATTENTION_SOURCE
from infopt.codegen.gpu.row_blocks import row_blocks
from infopt.codegen.gpu.text import HEADER, launch
from infopt.codegen.kernel import Config
from infopt.codegen.kernels.ragged import (
    mask_legal,
    ragged_attention,
    ragged_legal,
    row_index,
    row_starts,
    unpack_legal,
    unpack_rows,
)
from infopt.codegen.kernels.rows import ceil_div, contiguous, dense_last
from infopt.codegen.launch import Launch, Pointer
from infopt.codegen.sizes import product
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

_MASK = 1024  # elements of a mask that are counted at a time

ROWS_SOURCE = (
    HEADER
    + '''

@triton.jit
def trues(mask, end, BLOCK: tl.constexpr):
    """How many of the first `end` elements of a mask are true."""
    found = tl.zeros((BLOCK,), dtype=tl.int32)
    for start in range(0, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        found += tl.load(mask + at, mask=at < end, other=0).to(tl.int32)
    return tl.sum(found, axis=0)


@triton.jit
def row_places(mask, out, tokens, rows, BLOCK: tl.constexpr):
    """The places of the true elements of one row of a mask; the last row's program fills up."""
    first = tl.program_id(0) * tokens
    place = trues(mask, first, BLOCK)
    for start in range(0, tokens, BLOCK):
        at = start + tl.arange(0, BLOCK)
        real = tl.load(mask + first + at, mask=at < tokens, other=0).to(tl.int32)
        to = place + tl.cumsum(real, 0) - 1
        tl.store(out + to, (first + at).to(tl.int64), mask=(real > 0) & (to < rows))
        place += tl.sum(real, axis=0)
    if tl.program_id(0) == tl.num_programs(0) - 1:
        for start in range(place, rows, BLOCK):
            at = start + tl.arange(0, BLOCK)
            tl.store(out + at, tl.zeros((BLOCK,), dtype=tl.int64), mask=at < rows)


@triton.jit
def row_begins(mask, out, tokens, BLOCK: tl.constexpr):
    """How many elements are true before a row of a mask."""
    row = tl.program_id(0)
    tl.store(out + row, trues(mask, row * tokens, BLOCK).to(tl.int64))


@triton.jit
def rows_unpacked(x, mask, starts, out, tokens, width, ROWS: tl.constexpr,
                  BLOCK: tl.constexpr, MASK: tl.constexpr):
    """ROWS tokens of one sequence: the row of each, or zeros."""
    blocks = tl.cdiv(tokens, ROWS)
    sequence = (tl.program_id(0) // blocks).to(tl.int64)
    first = tl.program_id(0) % blocks * ROWS
    mask += sequence * tokens
    token = first + tl.arange(0, ROWS)
    real = tl.load(mask + token, mask=token < tokens, other=0).to(tl.int32)
    rank = trues(mask, first, MASK) + tl.cumsum(real, 0) - 1
    row = tl.load(starts + sequence) + rank
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    in_columns = (columns < width)[None, :]
    y = tl.load(x + row[:, None] * width + columns[None, :], mask=(real > 0)[:, None] & in_columns,
                other=0)
    at = out + (sequence * tokens + token)[:, None] * width + columns[None, :]
    tl.store(at, y, mask=(token < tokens)[:, None] & in_columns)
'''
)

SOURCE = (
    ATTENTION_SOURCE
    + '''

@triton.jit
def flash_ragged(q, k, v, starts, out, sequences, heads, end, q_stride, q_head, k_stride, k_head,
                 v_stride, v_head, out_stride, out_head, scale, GROUPS: tl.constexpr,
                 D: tl.constexpr, V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                 BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr):
    """Attention of BLOCK_M queries of one head within their sequence; the first programs of the
    heads write zeros behind the last sequence, up to row `end`."""
    sequence = tl.program_id(0) // heads
    head = (tl.program_id(0) % heads).to(tl.int64)
    begin = tl.load(starts + sequence)
    length = (tl.load(starts + sequence + 1) - begin).to(tl.int32)
    first = tl.program_id(1) * BLOCK_M
    columns = tl.arange(0, BLOCK_V)
    out += head * out_head
    if first < length:
        rows = first + tl.arange(0, BLOCK_M)
        in_rows = rows < length
        far = rows.to(tl.int64)
        q_block = block_of(q + begin * q_stride + head * q_head, far, q_stride, in_rows, D, BLOCK_D,
                           True)
        k += begin * k_stride + head // GROUPS * k_head
        v += begin * v_stride + head // GROUPS * v_head
        acc = tl.zeros((BLOCK_M, BLOCK_V), dtype=tl.float32)
        total = tl.zeros((BLOCK_M,), dtype=tl.float32)
        most = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
        whole = length // BLOCK_N * BLOCK_N
        acc, total, most = attend(q_block, acc, total, most, k, v, None, rows, in_rows, 0, whole,
                                  length, k_stride, v_stride, scale, False, 0, 0.0, 0, False, D, V,
                                  BLOCK_N, BLOCK_D, BLOCK_V)
        acc, total, most = attend(q_block, acc, total, most, k, v, None, rows, in_rows, whole,
                                  length, length, k_stride, v_stride, scale, False, 0, 0.0, 0, True,
                                  D, V, BLOCK_N, BLOCK_D, BLOCK_V)
        y = acc / tl.where(total == 0, 1.0, total)[:, None]
        at = out + (begin + far)[:, None] * out_stride + columns[None, :]
        tl.store(at, y.to(out.dtype.element_ty), mask=in_rows[:, None] & (columns < V)[None, :])
    if (sequence == 0) & (tl.program_id(1) == 0):
        behind = tl.load(starts + sequences).to(tl.int32)
        for row in range(behind, end, BLOCK_M):
            rows = row + tl.arange(0, BLOCK_M)
            at = out + rows.to(tl.int64)[:, None] * out_stride + columns[None, :]
            none = tl.zeros((BLOCK_M, BLOCK_V), dtype=out.dtype.element_ty)
            tl.store(at, none, mask=(rows < end)[:, None] & (columns < V)[None, :])
'''
)


@row_index.kernel("gpu", legal=mask_legal, layouts={"mask": contiguous})
def _row_index(cfg: Config, target: Target, mask: TensorType, *, rows: Size) -> Launch:
    return launch(
        ROWS_SOURCE,
        "row_places",
        grid=(mask.shape[0],),
        mask=Pointer("mask", mask.dtype),
        out=Pointer("out", cfg.out.dtype),
        tokens=mask.shape[1],
        rows=rows,
        BLOCK=_MASK,
    )


@row_starts.kernel("gpu", legal=mask_legal, layouts={"mask": contiguous})
def _row_starts(cfg: Config, target: Target, mask: TensorType) -> Launch:
    return launch(
        ROWS_SOURCE,
        "row_begins",
        grid=(mask.shape[0] + 1,),
        mask=Pointer("mask", mask.dtype),
        out=Pointer("out", cfg.out.dtype),
        tokens=mask.shape[1],
        BLOCK=_MASK,
    )


@unpack_rows.kernel(
    "gpu", legal=unpack_legal, layouts=dict.fromkeys(("x", "mask", "starts"), contiguous)
)
def _unpack_rows(
    cfg: Config, target: Target, x: TensorType, mask: TensorType, starts: TensorType
) -> Launch:
    sequences, tokens = mask.shape
    width = product(x.shape[1:])
    blocks = row_blocks(width)
    return launch(
        ROWS_SOURCE,
        "rows_unpacked",
        grid=(sequences * ceil_div(tokens, blocks.rows), ceil_div(width, blocks.block)),
        warps=blocks.warps,
        x=Pointer("x", x.dtype),
        mask=Pointer("mask", mask.dtype),
        starts=Pointer("starts", starts.dtype),
        out=Pointer("out", cfg.out.dtype),
        tokens=tokens,
        width=width,
        **blocks.constants,
        MASK=_MASK,
    )


def _attention_legal(
    target: Target, q: TensorType, k: TensorType, v: TensorType, starts: TensorType, **attrs: Any
) -> str | None:
    for depth in (q.shape[2], v.shape[2]):
        if not (isinstance(depth, int) and depth <= DEEPEST):
            return f"heads of {depth}, expected at most {DEEPEST}"
    return ragged_legal(target, q, k, v, starts, **attrs)


@ragged_attention.kernel(
    "gpu",
    legal=_attention_legal,
    layouts={"q": dense_last, "k": dense_last, "v": dense_last, "starts": contiguous},
    **FLASH_SPACE,
)
def _ragged_attention(
    cfg: Config,
    target: Target,
    q: TensorType,
    k: TensorType,
    v: TensorType,
    starts: TensorType,
    *,
    longest: Size,
    scale: float,
) -> Launch:
    heads, d, dv = q.shape[1], q.shape[2], v.shape[2]
    block = cfg.block
    if block == "usual":
        block = usual_block(max(d, dv), False, False, True, q.dtype, target)
    tile = fitted_tile(block, d, dv, q.dtype, target)
    sequences = starts.shape[0] - 1
    tensors = {"q": q, "k": k, "v": v, "starts": starts, "out": cfg.out}
    return launch(
        SOURCE,
        "flash_ragged",
        grid=(sequences * heads, ceil_div(longest, tile.m)),
        warps=tile.warps,
        stages=tile.stages,
        **{name: Pointer(name, t.dtype) for name, t in tensors.items()},
        **{"sequences": sequences, "heads": heads, "end": q.shape[0]},
        **{
            f"{name}_{what}": stride
            for name in ("q", "k", "v", "out")
            for what, stride in zip(("stride", "head"), tensors[name].strides[:2], strict=True)
        },
        scale=float(scale),
        **{"GROUPS": heads // k.shape[1], "D": d, "V": dv},
        **{"BLOCK_M": tile.m, "BLOCK_N": tile.n},
        **{"BLOCK_D": power_of_two(d), "BLOCK_V": power_of_two(dv)},
    )
