"""Rotary position embedding on a GPU: all heads of queries and keys in one launch."""

from __future__ import annotations

from typing import Any

from infopt.codegen.gpu.text import HEADER, launch
from infopt.codegen.kernel import Config
from infopt.codegen.kernels.rotary import rotary, rotary_legal
from infopt.codegen.kernels.rows import ceil_div, contiguous, dense_last
from infopt.codegen.launch import Launch, Pointer
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType

SOURCE = (
    HEADER
    + '''

@triton.jit
def turn(x, out, cos, sin, rows, in_rows, x_stride, out_stride, table_stride,
         D: tl.constexpr, ROTATED: tl.constexpr, INTERLEAVED: tl.constexpr,
         HALF: tl.constexpr, REST: tl.constexpr):
    """One head at some tokens: pairs turn, features from ROTATED on are copied."""
    pair = tl.arange(0, HALF)
    if INTERLEAVED:
        left, right = 2 * pair, 2 * pair + 1
    else:
        left, right = pair, pair + ROTATED // 2
    inside = in_rows[:, None] & (pair < ROTATED // 2)[None, :]
    at = x + rows[:, None] * x_stride
    a = tl.load(at + left[None, :], mask=inside, other=0.0).to(tl.float32)
    b = tl.load(at + right[None, :], mask=inside, other=0.0).to(tl.float32)
    angle = rows[:, None] * table_stride
    cos_a = tl.load(cos + angle + left[None, :], mask=inside, other=0.0).to(tl.float32)
    cos_b = tl.load(cos + angle + right[None, :], mask=inside, other=0.0).to(tl.float32)
    sin_a = tl.load(sin + angle + left[None, :], mask=inside, other=0.0).to(tl.float32)
    sin_b = tl.load(sin + angle + right[None, :], mask=inside, other=0.0).to(tl.float32)
    dtype: tl.constexpr = out.dtype.element_ty
    to = out + rows[:, None] * out_stride
    tl.store(to + left[None, :], (a * cos_a - b * sin_a).to(dtype), mask=inside)
    tl.store(to + right[None, :], (b * cos_b + a * sin_b).to(dtype), mask=inside)
    if ROTATED < D:
        columns = ROTATED + tl.arange(0, REST)
        inside = in_rows[:, None] & (columns < D)[None, :]
        rest = tl.load(at + columns[None, :], mask=inside)
        tl.store(to + columns[None, :], rest, mask=inside)


@triton.jit
def rotary_heads(q, k, cos, sin, q_out, k_out, tokens, q_heads, table_batch,
                 q_batch, q_head, q_stride, k_batch, k_head, k_stride,
                 q_out_batch, q_out_head, q_out_stride, k_out_batch, k_out_head, k_out_stride,
                 D: tl.constexpr, ROTATED: tl.constexpr, INTERLEAVED: tl.constexpr,
                 HALF: tl.constexpr, REST: tl.constexpr, TOKENS: tl.constexpr):
    """A program turns one head at TOKENS tokens; heads of queries come first."""
    batch = tl.program_id(1).to(tl.int64)
    head = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    in_rows = rows < tokens
    rows = rows.to(tl.int64)
    cos += batch * table_batch
    sin += batch * table_batch
    if head < q_heads:
        if q is not None:
            turn(q + batch * q_batch + head * q_head,
                 q_out + batch * q_out_batch + head * q_out_head, cos, sin, rows, in_rows,
                 q_stride, q_out_stride, ROTATED, D, ROTATED, INTERLEAVED, HALF, REST)
    else:
        if k is not None:
            head -= q_heads
            turn(k + batch * k_batch + head * k_head,
                 k_out + batch * k_out_batch + head * k_out_head, cos, sin, rows, in_rows,
                 k_stride, k_out_stride, ROTATED, D, ROTATED, INTERLEAVED, HALF, REST)
'''
)


@rotary.kernel(
    "gpu",
    legal=rotary_legal,
    layouts={"q": dense_last, "k": dense_last, "cos": contiguous, "sin": contiguous},
    tokens=(4, 1, 16),
)
def _rotary(
    cfg: Config,
    target: Target,
    q: TensorType,
    k: TensorType,
    cos: TensorType,
    sin: TensorType,
    *,
    interleaved: bool,
) -> Launch:
    b, heads, t, d = q.shape
    rotated = cos.shape[2]
    wanted = cfg.outs  # None for one that nobody reads
    q_heads = heads if wanted[0] else 0
    k_heads = k.shape[1] if wanted[1] else 0
    named: dict[str, Any] = {
        "q": wanted[0] and Pointer("q", q.dtype),
        "k": wanted[1] and Pointer("k", k.dtype),
        "cos": Pointer("cos", cos.dtype),
        "sin": Pointer("sin", sin.dtype),
        "q_out": wanted[0] and Pointer("out0", q.dtype),
        "k_out": wanted[1] and Pointer("out1", k.dtype),
        "tokens": t,
        "q_heads": q_heads,
        "table_batch": 0 if cos.shape[0] == 1 else t * rotated,
    }
    for name, of in (("q", q), ("k", k), ("q_out", wanted[0]), ("k_out", wanted[1])):
        strides = of.strides[:3] if of is not None else (0, 0, 0)
        named |= {f"{name}_{w}": s for w, s in zip(("batch", "head", "stride"), strides)}
    return launch(
        SOURCE,
        "rotary_heads",
        grid=(ceil_div(t, cfg.tokens), b, q_heads + k_heads),
        **named,
        **{"D": d, "ROTATED": rotated, "INTERLEAVED": interleaved, "TOKENS": cfg.tokens},
        **{"HALF": _power(rotated // 2), "REST": _power(d - rotated)},
    )


def _power(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()
