"""Linear layers of groups of rows on a GPU: each tile finds in `ends` whose rows it has."""

from __future__ import annotations

import torch
from sympy import Gt, Le

from infopt.codegen.gpu.linear import divides
from infopt.codegen.gpu.text import HEADER, launch
from infopt.codegen.gpu.tiles import Tile
from infopt.codegen.kernel import Config
from infopt.codegen.kernels.grouped_linear import grouped_legal, grouped_linear, weight_strides
from infopt.codegen.kernels.linear import only_if
from infopt.codegen.kernels.rows import as_rows, ceil_div, row_strides
from infopt.codegen.launch import Launch, Pointer
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType

FEW = 16  # rows of a group, on average, up to which its weight streams by instead of being tiled

SOURCE = (
    HEADER
    + '''

@triton.jit
def grouped_tiles(x, weight, ends, out, m, n, k, x_stride, group_stride, weight_stride, out_stride,
                  GROUPS: tl.constexpr, PADDED: tl.constexpr, IN_ROWS: tl.constexpr,
                  BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
                  EVEN_K: tl.constexpr):
    """x[rows of g] weight[g]T; rows behind the last end are a last group, of zeros.

    Every group begins a tile of its own: group g has tiles from ends[g - 1] // BLOCK_M + g on, at
    least as many as its rows need. IN_ROWS: neighbours in memory are along k, else along n.
    """
    slot = tl.program_id(1)
    index = tl.arange(0, PADDED)
    begins = tl.load(ends + index - 1, mask=(index > 0) & (index <= GROUPS), other=0)
    own = (index <= GROUPS) & (begins // BLOCK_M + index <= slot)
    group = tl.sum(own.to(tl.int32), 0) - 1
    begin = tl.load(ends + group - 1, mask=group > 0, other=0)
    end = tl.load(ends + group, mask=group < GROUPS, other=m)
    first = begin + (slot - begin // BLOCK_M - group) * BLOCK_M
    if first < end:
        rows = first + tl.arange(0, BLOCK_M)
        columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        depth = tl.arange(0, BLOCK_K)
        in_rows, in_columns = rows < end, columns < n
        # rows and columns that do not exist read the first, and are not stored
        x_rows = tl.where(in_rows, rows, first).to(tl.int64)
        w_columns = tl.where(in_columns, columns, 0).to(tl.int64)
        x_at = x + x_rows[:, None] * x_stride + depth[None, :]
        w = weight + group.to(tl.int64) * group_stride
        if IN_ROWS:
            w_at = w + w_columns[None, :] * weight_stride + depth[:, None]
            w_step = BLOCK_K
        else:
            w_at = w + w_columns[None, :] + depth.to(tl.int64)[:, None] * weight_stride
            w_step = BLOCK_K * weight_stride
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for start in range(0, tl.where(group < GROUPS, k, 0), BLOCK_K):
            if EVEN_K:
                a = tl.load(x_at)
                b = tl.load(w_at)
            else:
                inside = depth < k - start
                a = tl.load(x_at, mask=inside[None, :], other=0.0)
                b = tl.load(w_at, mask=inside[:, None], other=0.0)
            acc = tl.dot(a, b, acc, input_precision="ieee")
            x_at += BLOCK_K
            w_at += w_step
        at = out + rows.to(tl.int64)[:, None] * out_stride + columns[None, :]
        tl.store(at, acc.to(out.dtype.element_ty), mask=in_rows[:, None] & in_columns[None, :])
'''
)

# What the tuner may try, the usual first; "usual" leaves it to the sizes.
TILES_SPACE = {"tile": ("usual", "128x128x64 w8 s3", "64x128x64 w4 s3", "16x64x128 w4 s3")}


def _usual_tile(many: bool, dtype: torch.dtype) -> Tile:
    if dtype is torch.float32:  # summed without tensor cores, from registers
        return Tile(64, 64, 16, 4, 2) if many else Tile(16, 32, 32, 4, 3)
    return Tile(64, 128, 64, 4, 3) if many else Tile(16, 64, 128, 4, 3)


@grouped_linear.kernel(
    "gpu",
    legal=grouped_legal,
    layouts={"x": row_strides, "weight": weight_strides},
    **TILES_SPACE,
)
def _grouped(
    cfg: Config, target: Target, x: TensorType, weight: TensorType, ends: TensorType
) -> list[Launch]:
    rows, out = as_rows(x), as_rows(cfg.out)
    assert rows is not None and out is not None
    groups, n, k = weight.shape
    m = rows.count
    assert isinstance(groups, int)
    if cfg.tile != "usual":
        ranges = [(Gt(m, 0), Tile.parse(cfg.tile))]
    else:
        ranges = [
            (Le(m, FEW * groups), _usual_tile(False, x.dtype)),
            (Gt(m, FEW * groups), _usual_tile(True, x.dtype)),
        ]
        if target.batch_invariant:
            ranges = [(Gt(m, 0), _usual_tile(True, x.dtype))]
    in_rows = weight.strides[2] == 1
    made = []
    for condition, tile in ranges:
        if x.dtype is torch.float32 and tile.m > 16:
            tile = Tile(min(tile.m, 64), min(tile.n, 64), 16, tile.warps, tile.stages)
        tile = tile.fitted(target, (tile.m + tile.n) * x.dtype.itemsize)
        slots = ceil_div(m, tile.m) + groups  # every group begins one of its own
        made.append(
            launch(
                SOURCE,
                "grouped_tiles",
                grid=(ceil_div(n, tile.n), only_if(condition, slots)),
                warps=tile.warps,
                stages=tile.stages,
                x=Pointer("x", x.dtype),
                weight=Pointer("weight", weight.dtype),
                ends=Pointer("ends", ends.dtype),
                out=Pointer("out", cfg.out.dtype),
                m=m,
                n=n,
                k=k,
                x_stride=rows.stride,
                group_stride=weight.strides[0],
                weight_stride=weight.strides[1 if in_rows else 2],
                out_stride=out.stride,
                GROUPS=groups,
                PADDED=1 << groups.bit_length(),
                IN_ROWS=in_rows,
                **{"BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k},
                EVEN_K=divides(tile.k, k),
            )
        )
    return [each for each in made if 0 not in each.grid]
