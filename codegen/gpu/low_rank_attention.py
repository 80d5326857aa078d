"""Attention over thin factors on a GPU: blocks of keys and values are rebuilt as they are met.

Source: FlashSVD (Shao et al., arXiv 2508.01506). Every block of queries rebuilds them again, which
is more work than products of their own; what is saved is their memory.
"""

from __future__ import annotations

from typing import Any

import torch

from infopt.codegen.gpu.attention import DEEPEST, fitted_tile, mask_strides
from infopt.codegen.gpu.attention_source import SOURCE
from infopt.codegen.gpu.text import launch
from infopt.codegen.gpu.tiles import power_of_two
from infopt.codegen.kernel import Config
from infopt.codegen.kernels.attention import mask_steps
from infopt.codegen.kernels.low_rank_attention import (
    LAYOUTS,
    by_head,
    low_rank_attention,
    low_rank_legal,
)
from infopt.codegen.kernels.rows import SHORT, ceil_div
from infopt.codegen.launch import Launch, Pointer, Work
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

_RANKS = 32  # elements of a factor that are met at a time
_LOW_RANK = (
    SOURCE
    + '''

@triton.jit
def rebuilt(x, rows, stride, inside, up, up_stride, bias, RANK: tl.constexpr, WIDTH: tl.constexpr,
            BLOCK: tl.constexpr, BLOCK_R: tl.constexpr):
    """[rows, BLOCK] of x upᵀ + bias in x's dtype. up, bias: from the first row of a head on."""
    columns = tl.arange(0, BLOCK)
    sums = tl.zeros((rows.shape[0], BLOCK), dtype=tl.float32)
    for first in range(0, RANK, BLOCK_R):
        ranks = first + tl.arange(0, BLOCK_R)
        there = ranks < RANK
        thin = tl.load(x + rows[:, None] * stride + ranks[None, :],
                       mask=inside[:, None] & there[None, :], other=0.0)
        wide = tl.load(up + columns[:, None] * up_stride + ranks[None, :],
                       mask=(columns < WIDTH)[:, None] & there[None, :], other=0.0)
        sums = tl.dot(thin, tl.trans(wide), sums, input_precision="ieee")
    if bias is not None:
        sums += tl.load(bias + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)[None, :]
    return sums.to(x.dtype.element_ty)


@triton.jit
def flash_low_rank(q, k, v, q_up, k_up, v_up, q_bias, k_bias, v_bias, mask, out,
                   heads, queries, keys, q_batch, q_stride, k_batch, k_stride, v_batch, v_stride,
                   q_up_stride, k_up_stride, v_up_stride, mask_batch, mask_head, mask_query,
                   out_batch, out_head, out_stride, scale, CAUSAL: tl.constexpr,
                   WINDOW: tl.constexpr, MASK_STRIDE: tl.constexpr, GROUPS: tl.constexpr,
                   D: tl.constexpr, V: tl.constexpr, Q_RANK: tl.constexpr, K_RANK: tl.constexpr,
                   V_RANK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                   BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_R: tl.constexpr):
    """Attention of BLOCK_M queries of one head; the last, which see most keys, come first."""
    batch = (tl.program_id(0) // heads).to(tl.int64)
    head = (tl.program_id(0) % heads).to(tl.int64)
    first = (tl.num_programs(1) - 1 - tl.program_id(1)) * BLOCK_M
    rows = first + tl.arange(0, BLOCK_M)
    in_rows = rows < queries
    far = rows.to(tl.int64)
    q_up += head * D * q_up_stride
    k_up += head // GROUPS * D * k_up_stride
    v_up += head // GROUPS * V * v_up_stride
    if q_bias is not None:
        q_bias += head * D
    if k_bias is not None:
        k_bias += head // GROUPS * D
    if v_bias is not None:
        v_bias += head // GROUPS * V
    q_block = rebuilt(q + batch * q_batch, far, q_stride, in_rows, q_up, q_up_stride, q_bias,
                      Q_RANK, D, BLOCK_D, BLOCK_R)
    k += batch * k_batch
    v += batch * v_batch
    if mask is not None:
        mask += batch * mask_batch + head * mask_head + far * mask_query
    acc = tl.zeros((BLOCK_M, BLOCK_V), dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    most = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    begin = 0
    end = keys
    if CAUSAL:
        end = tl.minimum(keys, first + BLOCK_M)
    if WINDOW > 0:
        begin = tl.maximum(first - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
    for start in range(begin, end, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        exists = columns < keys
        there = columns.to(tl.int64)
        k_block = rebuilt(k, there, k_stride, exists, k_up, k_up_stride, k_bias, K_RANK, D, BLOCK_D,
                          BLOCK_R)
        z = tl.dot(q_block, tl.trans(k_block), input_precision="ieee")
        z = seen_scores(z, mask, rows, in_rows, start, keys, scale, CAUSAL, WINDOW, 0.0,
                        MASK_STRIDE, True, BLOCK_N)
        p, acc, total, most = weigh(z, acc, total, most)
        v_block = rebuilt(v, there, v_stride, exists, v_up, v_up_stride, v_bias, V_RANK, V, BLOCK_V,
                          BLOCK_R)
        acc = tl.dot(p.to(v_block.dtype), v_block, acc, input_precision="ieee")
    y = acc / tl.where(total == 0, 1.0, total)[:, None]
    columns = tl.arange(0, BLOCK_V)
    at = out + batch * out_batch + head * out_head + far[:, None] * out_stride + columns[None, :]
    tl.store(at, y.to(out.dtype.element_ty), mask=in_rows[:, None] & (columns < V)[None, :])
'''
)


def _legal(
    target: Target, q: TensorType, k: TensorType, v: TensorType, *rest: Any, **attrs: Any
) -> str | None:
    for up, heads in ((rest[0], attrs["heads"]), (rest[2], attrs["kv_heads"])):
        depth = up.shape[0] // heads
        if not (isinstance(depth, int) and depth <= DEEPEST // 2):
            return f"heads of {depth}, expected at most {DEEPEST // 2}"
    return low_rank_legal(target, q, k, v, *rest, **attrs)


def _usual_block(depth: int, dtype: torch.dtype, target: Target) -> str:
    """The largest block of which nothing is spilled: rebuilt rows take registers of their own."""
    if dtype is torch.float32:
        return f"16x16 w{4 if depth <= 64 else 8} s1"
    if depth <= 64:
        return "64x32 w4 s2"
    return "32x32 w4 s1" if target.arch == "gfx942" else "64x32 w8 s1"


@low_rank_attention.kernel(
    "gpu", legal=_legal, layouts=LAYOUTS | {"mask": mask_strides}, out=by_head
)
def _low_rank_attention(
    cfg: Config,
    target: Target,
    q: TensorType,
    k: TensorType,
    v: TensorType,
    q_up: TensorType,
    k_up: TensorType,
    v_up: TensorType,
    q_bias: TensorType | None,
    k_bias: TensorType | None,
    v_bias: TensorType | None,
    mask: TensorType | None,
    *,
    heads: int,
    kv_heads: int,
    scale: float,
    causal: bool,
    window: int,
) -> Launch:
    d, dv = q_up.shape[0] // heads, v_up.shape[0] // kv_heads
    (b, t, _), s = q.shape, k.shape[1]
    steps = mask_steps(mask)
    factors = {"q": (q, q_up), "k": (k, k_up), "v": (v, v_up)}
    tensors = {name: x for name, (x, _) in factors.items()}
    tensors |= {f"{name}_up": up for name, (_, up) in factors.items()}
    biases = {"q_bias": q_bias, "k_bias": k_bias, "v_bias": v_bias}
    strides: dict[str, Size] = {}
    for name, (x, _) in factors.items():
        strides |= {f"{name}_batch": x.strides[0], f"{name}_stride": x.strides[1]}
    strides |= {f"{name}_up_stride": up.strides[0] for name, (_, up) in factors.items()}
    strides |= dict(zip(("mask_batch", "mask_head", "mask_query"), steps[:3], strict=True))
    strides |= dict(zip(("out_batch", "out_head", "out_stride"), cfg.out.strides[:3], strict=True))
    tile = fitted_tile(_usual_block(max(d, dv), q.dtype, target), d, dv, q.dtype, target)
    wide = {"BLOCK_D": power_of_two(d), "BLOCK_V": power_of_two(dv)}
    ranks = {f"{name.upper()}_RANK": x.shape[2] for name, (x, _) in factors.items()}
    rebuilding = 2 * tile.n * (ranks["K_RANK"] * d + ranks["V_RANK"] * dv)
    return launch(
        _LOW_RANK,
        "flash_low_rank",
        grid=(b * heads, ceil_div(t, tile.m)),
        warps=tile.warps,
        stages=tile.stages,
        **{n: x and Pointer(n, x.dtype) for n, x in (tensors | biases).items()},
        mask=mask and Pointer("mask", mask.dtype),
        out=Pointer("out", cfg.out.dtype),
        **{"heads": heads, "queries": t, "keys": s, **strides, "scale": float(scale)},
        **{"CAUSAL": causal, "WINDOW": window, "MASK_STRIDE": steps[3]},
        **{"GROUPS": heads // kv_heads, "D": d, "V": dv, **ranks},
        **{"BLOCK_M": tile.m, "BLOCK_N": tile.n, **wide, "BLOCK_R": _RANKS},
        work=Work(
            steps=ceil_div(s, tile.n),
            flops=2 * tile.m * tile.n * (d + dv) + rebuilding,
            vector=24 * tile.m * tile.n,
            loads=(
                tile.n * (ranks["K_RANK"] + ranks["V_RANK"])
                + d * ranks["K_RANK"]
                + dv * ranks["V_RANK"]
            )
            * q.dtype.itemsize,
            dtype=SHORT[q.dtype],
            values=tile.m * wide["BLOCK_V"] + tile.m * tile.n,
            stores=tile.m * wide["BLOCK_V"] * q.dtype.itemsize,
            held=tile.m * wide["BLOCK_D"] * q.dtype.itemsize,
        ),
    )
