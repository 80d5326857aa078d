"""Rows of activations as bytes on a GPU: the launch before products of integers."""

from __future__ import annotations

from infopt.codegen.gpu.row_blocks import row_blocks
from infopt.codegen.gpu.text import HEADER, launch
from infopt.codegen.kernels.rows import Rows, ceil_div
from infopt.codegen.launch import Launch, Pointer, Work
from infopt.compiler.types import Size, TensorType

SOURCE = (
    HEADER
    + '''

@triton.jit
def nearest(x):
    """The nearest whole number, the even one of two, for |x| < 2**22."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def quantize_rows(x, codes, steps, zeros, m, k, x_stride, code_stride, ROWS: tl.constexpr,
                  BLOCK: tl.constexpr):
    """A row as bytes: step * (code - zero), both less 128 to be signed; see the op. A row with NaN
    or an infinity gets a step of NaN."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_rows = rows < m
    at = x + rows.to(tl.int64)[:, None] * x_stride
    low = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    high = low
    bad = low
    for start in range(0, k, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = in_rows[:, None] & (columns < k)[None, :]
        v = tl.load(at + columns[None, :], mask=inside, other=0.0).to(tl.float32)
        low = tl.minimum(low, v)
        high = tl.maximum(high, v)
        bad = tl.where(tl.abs(v) < float("inf"), bad, 1.0)
    least = tl.min(low, axis=1)
    width = tl.max(high, axis=1) - least
    inverse = tl.where(width > 1e-35, 255.0 / tl.where(width > 1e-35, width, 1.0), 0.0)
    zero = nearest(-least * inverse)
    step = tl.where(tl.max(bad, axis=1) > 0, float("nan"), width / 255)
    tl.store(steps + rows, step, mask=in_rows)
    tl.store(zeros + rows, zero.to(tl.int32) - 128, mask=in_rows)
    for start in range(0, k, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = in_rows[:, None] & (columns < k)[None, :]
        v = tl.load(at + columns[None, :], mask=inside, other=0.0).to(tl.float32)
        code = nearest(tl.where(tl.abs(v) < float("inf"), v, 0.0) * inverse[:, None])
        code = tl.minimum(tl.maximum(code + zero[:, None], 0.0), 255.0)
        to = codes + rows.to(tl.int64)[:, None] * code_stride + columns[None, :]
        tl.store(to, (code.to(tl.int32) - 128).to(tl.int8), mask=inside)
'''
)


def bytes_of(x: TensorType, rows: Rows, tensors: dict[str, Pointer], stride: Size) -> Launch:
    """tensors: where codes, their rows `stride` apart, steps and zero points go."""
    blocks = row_blocks(rows.width if isinstance(rows.width, int) else 4096)
    return launch(
        SOURCE,
        "quantize_rows",
        grid=blocks.grid(rows.count),
        warps=blocks.warps,
        exact=True,
        x=Pointer("x", x.dtype),
        **tensors,
        **{"m": rows.count, "k": rows.width, "x_stride": rows.stride, "code_stride": stride},
        **blocks.constants,
        work=Work(
            steps=ceil_div(rows.width, blocks.block) * (1 if blocks.whole else 2),
            flops=0,
            vector=8 * blocks.rows * blocks.block,
            loads=blocks.rows * blocks.block * x.dtype.itemsize,
            dtype="f32",
            values=blocks.rows * blocks.block,
            stores=blocks.rows * blocks.block,
        ),
    )
