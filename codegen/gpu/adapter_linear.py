"""Low-rank adapters of rows on a GPU: a block has rows of one slot number, and looks up which."""

from __future__ import annotations

import torch

from infopt.codegen.gpu.linear import divides
from infopt.codegen.gpu.text import HEADER, launch
from infopt.codegen.gpu.tiles import power_of_two
from infopt.codegen.kernel import Config
from infopt.codegen.kernels.adapter_linear import LAYOUTS, adapter_linear, legal, rows_of_slot
from infopt.codegen.kernels.rows import as_rows, ceil_div
from infopt.codegen.launch import Launch, Pointer, Scratch
from infopt.codegen.sizes import product
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType

_ROWS, _COLUMNS = 16, 64  # of a block

SOURCE = (
    HEADER
    + '''

@triton.jit
def block_of(ranks, slots, count, each, BLOCK_M: tl.constexpr):
    """The rows of this block, which of them there are, their slot and how much of it counts."""
    parts = tl.cdiv(each, BLOCK_M)
    owner = tl.program_id(0) // parts
    inner = tl.program_id(0) % parts * BLOCK_M + tl.arange(0, BLOCK_M)
    slot = tl.load(slots + owner)
    there = (slot >= 0) & (slot < count)
    rank = tl.load(ranks + slot, mask=there, other=0)
    return owner.to(tl.int64) * each + inner, inner < each, slot, rank


@triton.jit
def adapter_down(x, a, ranks, slots, down, k, count, each, x_stride, ROOM: tl.constexpr,
                 RANK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
                 EVEN_K: tl.constexpr):
    """down[r] = x[r] a[slot]T in f32, of rows that have an adapter."""
    rows, in_rows, slot, rank = block_of(ranks, slots, count, each, BLOCK_M)
    if rank > 0:
        depth, inner = tl.arange(0, BLOCK_K), tl.arange(0, RANK)
        in_rank = (inner < rank) & (inner < ROOM)
        x_at = x + rows[:, None] * x_stride + depth[None, :]
        a_at = a + (slot * ROOM + inner[None, :]) * k + depth[:, None]
        acc = tl.zeros((BLOCK_M, RANK), dtype=tl.float32)
        for start in range(0, k, BLOCK_K):
            left = in_rows[:, None]
            right = in_rank[None, :]
            if not EVEN_K:
                inside = depth < k - start
                left = left & inside[None, :]
                right = right & inside[:, None]
            acc = tl.dot(tl.load(x_at, mask=left, other=0.0),
                         tl.load(a_at, mask=right, other=0.0), acc, input_precision="ieee")
            x_at += BLOCK_K
            a_at += BLOCK_K
        tl.store(down + rows[:, None] * RANK + inner[None, :], acc, mask=in_rows[:, None])


@triton.jit
def adapter_up(down, b, ranks, slots, out, n, count, each, out_stride, ROOM: tl.constexpr,
               RANK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """out[r] += down[r] b[slot], of rows that have an adapter; the others are not touched."""
    rows, in_rows, slot, rank = block_of(ranks, slots, count, each, BLOCK_M)
    if rank > 0:
        inner = tl.arange(0, RANK)
        in_rank = (inner < rank) & (inner < ROOM)
        columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        in_columns = columns < n
        factors = tl.load(down + rows[:, None] * RANK + inner[None, :],
                          mask=in_rows[:, None] & in_rank[None, :], other=0.0)
        weights = tl.load(b + (slot * ROOM + inner[:, None]) * n + columns[None, :],
                          mask=in_rank[:, None] & in_columns[None, :], other=0.0)
        added = tl.dot(factors, weights.to(tl.float32), input_precision="ieee")
        at = out + rows[:, None] * out_stride + columns[None, :]
        inside = in_rows[:, None] & in_columns[None, :]
        y = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        tl.store(at, (y + added).to(out.dtype.element_ty), mask=inside)
'''
)


@adapter_linear.kernel("gpu", legal=legal, layouts=LAYOUTS)
def _adapter_linear(
    cfg: Config,
    target: Target,
    y: TensorType,
    x: TensorType,
    a: TensorType,
    b: TensorType,
    ranks: TensorType,
    slots: TensorType,
) -> list[Launch]:
    rows, out = as_rows(x), as_rows(cfg.out)
    assert rows is not None and out is not None
    count, room, k = a.shape
    n, each = b.shape[2], rows_of_slot(x, slots)
    assert isinstance(room, int)
    rank, step = power_of_two(room), 32 if x.dtype is torch.float32 else 64
    blocks = product((*slots.shape, ceil_div(each, _ROWS)))
    down = Pointer(Scratch("down", 4 * rows.count * rank), torch.float32)
    sizes = {"count": count, "each": each}
    constants = {"ROOM": room, "RANK": rank, "BLOCK_M": _ROWS}
    known = {
        "ranks": Pointer("ranks", torch.int64),
        "slots": Pointer("slots", torch.int64),
    }
    first = launch(
        SOURCE,
        "adapter_down",
        grid=(blocks,),
        x=Pointer("x", x.dtype),
        a=Pointer("a", a.dtype),
        **known,
        down=down,
        k=k,
        **sizes,
        x_stride=rows.stride,
        **constants,
        BLOCK_K=step,
        EVEN_K=divides(step, k),
    )
    second = launch(
        SOURCE,
        "adapter_up",
        grid=(blocks, ceil_div(n, _COLUMNS)),
        down=down,
        b=Pointer("b", b.dtype),
        **known,
        out=Pointer("out", cfg.out.dtype),
        n=n,
        **sizes,
        out_stride=out.stride,
        **constants,
        BLOCK_N=_COLUMNS,
    )
    return [first, second]
