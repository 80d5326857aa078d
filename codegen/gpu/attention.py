"""Attention on a GPU: blocks of queries walk the keys, the scores never leave registers.

Source of the method: Dao et al., FlashAttention-2 (arXiv 2307.08691), and Flash-Decoding for few
queries: there the query heads of a key head are the rows, and keys are shared out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from sympy import Le

from infopt.codegen.gpu.text import HEADER, launch
from infopt.codegen.gpu.tiles import Tile
from infopt.codegen.kernel import Config, aten_kernel
from infopt.codegen.kernels.attention import (
    LAYOUTS,
    aten_attention_legal,
    attention,
    attention_legal,
    by_token,
)
from infopt.codegen.kernels.linear import only_if
from infopt.codegen.kernels.rows import ceil_div
from infopt.codegen.launch import Launch, Pointer, Scratch
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType, contiguous_strides

SOURCE = (
    HEADER
    + '''

@triton.jit
def block_of(x, rows, stride, inside, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
             BOUNDED: tl.constexpr):
    """[rows, BLOCK] of a matrix with WIDTH columns, 0 outside."""
    columns = tl.arange(0, BLOCK)
    at = x + rows[:, None] * stride + columns[None, :]
    if BOUNDED:
        block = tl.load(at, mask=inside[:, None] & (columns < WIDTH)[None, :], other=0.0)
    elif BLOCK != WIDTH:
        block = tl.load(at, mask=(columns < WIDTH)[None, :], other=0.0)
    else:
        block = tl.load(at)
    return block


@triton.jit
def attend(q, acc, total, most, k, v, mask, tokens, in_rows, begin, end, keys, k_stride, v_stride,
           scale, CAUSAL: tl.constexpr, MASK_STRIDE: tl.constexpr, BOUNDED: tl.constexpr,
           D: tl.constexpr, V: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
           BLOCK_V: tl.constexpr):
    """Keys from begin to end; BOUNDED: not all of them exist, or are seen by all queries.

    acc, total, most: of each query the weighted values, the sum of weights, the highest score so
    far, in powers of two. mask: None, or where a query's row of it begins.
    """
    for start in range(begin, end, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        exists = columns < keys
        far = columns.to(tl.int64)
        k_block = block_of(k, far, k_stride, exists, D, BLOCK_D, BOUNDED)
        z = tl.dot(q, tl.trans(k_block), input_precision="ieee") * (scale * 1.4426950408889634)
        if mask is not None:
            given = tl.load(mask[:, None] + (start * MASK_STRIDE
                            + tl.arange(0, BLOCK_N) * MASK_STRIDE)[None, :],
                            mask=in_rows[:, None] & exists[None, :], other=0)
            if mask.dtype.element_ty == tl.int1:
                z = tl.where(given, z, float("-inf"))
            else:
                z += given.to(tl.float32) * 1.4426950408889634
        if BOUNDED:
            seen = exists[None, :]
            if CAUSAL:
                seen = seen & (columns[None, :] <= tokens[:, None])
            z = tl.where(seen, z, float("-inf"))
        higher = tl.maximum(most, tl.max(z, axis=1))
        origin = tl.where(higher == float("-inf"), 0.0, higher)  # nothing is seen yet
        p = tl.exp2(z - origin[:, None])
        shrink = tl.exp2(most - origin)
        total = total * shrink + tl.sum(p, axis=1)
        most = higher
        v_block = block_of(v, far, v_stride, exists, V, BLOCK_V, BOUNDED)
        acc = tl.dot(p.to(v_block.dtype), v_block, acc * shrink[:, None], input_precision="ieee")
    return acc, total, most


@triton.jit
def flash(q, k, v, mask, out, heads, queries, keys,
          q_batch, q_head, q_stride, k_batch, k_head, k_stride, v_batch, v_head, v_stride,
          mask_batch, mask_head, mask_query, out_batch, out_head, out_stride, scale,
          CAUSAL: tl.constexpr, MASK_STRIDE: tl.constexpr, GROUPS: tl.constexpr,
          D: tl.constexpr, V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
          BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr):
    """Attention of BLOCK_M queries of one head; the last, which see most keys, come first."""
    batch = (tl.program_id(0) // heads).to(tl.int64)
    head = (tl.program_id(0) % heads).to(tl.int64)
    first = (tl.num_programs(1) - 1 - tl.program_id(1)) * BLOCK_M
    rows = first + tl.arange(0, BLOCK_M)
    in_rows = rows < queries
    far = rows.to(tl.int64)
    q_block = block_of(q + batch * q_batch + head * q_head, far, q_stride, in_rows, D, BLOCK_D,
                       True)
    k += batch * k_batch + head // GROUPS * k_head
    v += batch * v_batch + head // GROUPS * v_head
    if mask is not None:
        mask += batch * mask_batch + head * mask_head + far * mask_query
    acc = tl.zeros((BLOCK_M, BLOCK_V), dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    most = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    end = keys
    whole = keys // BLOCK_N * BLOCK_N
    if CAUSAL:
        end = tl.minimum(keys, first + BLOCK_M)
        whole = tl.minimum(keys, first) // BLOCK_N * BLOCK_N
    acc, total, most = attend(q_block, acc, total, most, k, v, mask, rows, in_rows, 0, whole, keys,
                              k_stride, v_stride, scale, CAUSAL, MASK_STRIDE, False, D, V, BLOCK_N,
                              BLOCK_D, BLOCK_V)
    acc, total, most = attend(q_block, acc, total, most, k, v, mask, rows, in_rows, whole, end,
                              keys, k_stride, v_stride, scale, CAUSAL, MASK_STRIDE, True, D, V,
                              BLOCK_N, BLOCK_D, BLOCK_V)
    y = acc / tl.where(total == 0, 1.0, total)[:, None]
    columns = tl.arange(0, BLOCK_V)
    at = out + batch * out_batch + head * out_head + far[:, None] * out_stride + columns[None, :]
    tl.store(at, y.to(out.dtype.element_ty), mask=in_rows[:, None] & (columns < V)[None, :])


@triton.jit
def flash_few(q, k, v, mask, out, parts, heads, queries, keys,
              q_batch, q_head, q_stride, k_batch, k_head, k_stride, v_batch, v_head, v_stride,
              mask_batch, mask_head, mask_query, out_batch, out_head, out_stride,
              scale, CAUSAL: tl.constexpr, MASK_STRIDE: tl.constexpr, GROUPS: tl.constexpr,
              D: tl.constexpr, V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
              BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, SPLIT: tl.constexpr):
    """Attention of all queries of one key head, which are GROUPS * queries rows, over one of SPLIT
    shares of the keys. heads: of keys."""
    batch = (tl.program_id(0) // heads).to(tl.int64)
    key_head = (tl.program_id(0) % heads).to(tl.int64)
    rows = tl.arange(0, BLOCK_M)
    in_rows = rows < queries * GROUPS
    token = (rows % queries).to(tl.int64)
    head = key_head * GROUPS + rows // queries
    q_block = block_of(q + batch * q_batch, head * q_head + token * q_stride, 1, in_rows, D,
                       BLOCK_D, True)
    k += batch * k_batch + key_head * k_head
    v += batch * v_batch + key_head * v_head
    if mask is not None:
        mask += batch * mask_batch + head * mask_head + token * mask_query
    acc = tl.zeros((BLOCK_M, BLOCK_V), dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    most = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    share = tl.cdiv(tl.cdiv(keys, BLOCK_N), SPLIT) * BLOCK_N
    begin = tl.program_id(1) * share
    end = tl.minimum(begin + share, keys)
    acc, total, most = attend(q_block, acc, total, most, k, v, mask, token, in_rows, begin, end,
                              keys, k_stride, v_stride, scale, CAUSAL, MASK_STRIDE, True, D, V,
                              BLOCK_N, BLOCK_D, BLOCK_V)
    columns = tl.arange(0, BLOCK_V)
    inside = in_rows[:, None] & (columns < V)[None, :]
    if SPLIT > 1:
        row = (tl.program_id(0) * SPLIT + tl.program_id(1)).to(tl.int64) * BLOCK_M + rows
        at = parts + row * (V + 2)
        tl.store(at[:, None] + columns[None, :], acc, mask=inside)
        tl.store(at + V, total, mask=in_rows)
        tl.store(at + V + 1, most, mask=in_rows)
    else:
        y = acc / tl.where(total == 0, 1.0, total)[:, None]
        at = out + batch * out_batch + head * out_head + token * out_stride
        tl.store(at[:, None] + columns[None, :], y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def flash_merge(parts, out, heads, queries, out_batch, out_head, out_stride,
                GROUPS: tl.constexpr, V: tl.constexpr, BLOCK_M: tl.constexpr,
                BLOCK_V: tl.constexpr, SPLIT: tl.constexpr):
    """The shares of one query put together, always in the same order."""
    batch = (tl.program_id(0) // heads).to(tl.int64)
    key_head = (tl.program_id(0) % heads).to(tl.int64)
    row = tl.program_id(1)
    columns = tl.arange(0, BLOCK_V)
    share = (tl.program_id(0) * SPLIT + tl.arange(0, SPLIT)).to(tl.int64)
    at = parts + (share * BLOCK_M + row) * (V + 2)
    total = tl.load(at + V)
    most = tl.load(at + V + 1)
    acc = tl.load(at[:, None] + columns[None, :], mask=(columns < V)[None, :], other=0.0)
    highest = tl.max(most, axis=0)
    weight = tl.exp2(most - tl.where(highest == float("-inf"), 0.0, highest))
    sum = tl.sum(total * weight, axis=0)
    y = tl.sum(acc * weight[:, None], axis=0) / tl.where(sum == 0, 1.0, sum)
    head = key_head * GROUPS + row // queries
    at = out + batch * out_batch + head * out_head + (row % queries).to(tl.int64) * out_stride
    tl.store(at + columns, y.to(out.dtype.element_ty), mask=columns < V)
'''
)

DEEPEST = 256  # elements of a head that fit a block's registers
FEW_ROWS = 16  # so many rows are attended to together, whatever head they are of
MOST_SHARES = 64

# "block of queries x keys"; the usual one depends on the depth of a head.
FLASH_SPACE = {"block": ("usual", "64x32 w8 s2")}


def usual_block(depth: int, masked: bool, dtype: torch.dtype, target: Target) -> str:
    """The largest block of which nothing is spilled; a mask takes registers for its addresses."""
    if dtype is torch.float32:  # summed without tensor cores, from registers
        return "32x32 w4 s2" if depth <= 64 else "16x32 w4 s2"
    if depth > 128:
        return "64x32 w8 s2"
    if target.arch == "sm80":
        if masked:
            return "64x32 w4 s2"
        return "128x64 w8 s2" if depth <= 64 else "64x64 w4 s2"
    if target.arch == "sm90" and not masked:
        return "128x128 w8 s2"
    if masked and depth > 64:
        return "128x32 w8 s2"
    if target.arch == "gfx942" and depth > 64:
        return "64x64 w4 s2"
    return "128x64 w8 s2"


def attention_launches(
    cfg: Config,
    target: Target,
    q: TensorType,
    k: TensorType,
    v: TensorType,
    mask: TensorType | None,
    names: tuple[str, str, str, str],
    scale: float,
    causal: bool,
) -> list[Launch]:
    """names: the parameters q, k, v, mask."""
    b, h, t, d = q.shape
    kv, s, dv = k.shape[1], k.shape[2], v.shape[3]
    groups = 1 if h == kv else h // kv
    out = cfg.out
    steps: list[Size] = [0, 0, 0, 0]
    if mask is not None:
        for i in range(mask.rank):
            if mask.shape[i] != 1:
                steps[4 - mask.rank + i] = mask.strides[i]
    tensors = {
        **{x: Pointer(n, y.dtype) for x, n, y in zip("qkv", names, (q, k, v), strict=False)},
        "mask": mask and Pointer(names[3], mask.dtype),
        "out": Pointer("out", out.dtype),
    }
    strides = {
        f"{x}_{what}": stride
        for x, type in (("q", q), ("k", k), ("v", v))
        for what, stride in zip(("batch", "head", "stride"), type.strides[:3], strict=True)
    }
    strides |= dict(zip((f"mask_{w}" for w in ("batch", "head", "query")), steps[:3]))
    ends = dict(zip(("out_batch", "out_head", "out_stride"), out.strides[:3], strict=True))
    fixed = {"CAUSAL": causal, "MASK_STRIDE": steps[3], "GROUPS": groups, "D": d, "V": dv}
    wide = {"BLOCK_D": power_of_two(d), "BLOCK_V": power_of_two(dv)}
    together = max(FEW_ROWS, power_of_two(groups))
    few = Le(t * groups, together)
    if target.batch_invariant or groups > 64:
        few = Le(1, 0)
    made = []
    narrow = q.dtype is torch.float32 or mask is not None
    block = "16x32 w4 s2" if narrow else "16x64 w4 s3"
    tile = _tile(block, d, dv, q.dtype, target)
    split = _shares(b * kv, s, tile.n, target)
    parts = None
    if split > 1:
        parts = Scratch("parts", 4 * b * kv * split * together * (dv + 2))
    small = {"BLOCK_M": together, "SPLIT": split}
    made.append(
        launch(
            SOURCE,
            "flash_few",
            grid=(only_if(few, b * kv), split),
            warps=tile.warps,
            stages=tile.stages,
            **tensors,
            parts=parts and Pointer(parts, torch.float32),
            **{"heads": kv, "queries": t, "keys": s, **strides, **ends, "scale": float(scale)},
            **{**fixed, **wide, **small, "BLOCK_N": tile.n},
        )
    )
    if parts is not None:
        made.append(
            launch(
                SOURCE,
                "flash_merge",
                grid=(only_if(few, b * kv), t * groups),
                parts=Pointer(parts, torch.float32),
                **{"out": tensors["out"], "heads": kv, "queries": t, **ends},
                **{"GROUPS": groups, "V": dv, "BLOCK_V": wide["BLOCK_V"], **small},
            )
        )
    block = cfg.block
    if block == "usual":
        block = usual_block(max(d, dv), mask is not None, q.dtype, target)
    tile = _tile(block, d, dv, q.dtype, target)
    made.append(
        launch(
            SOURCE,
            "flash",
            grid=(only_if(~few, b * h), ceil_div(t, tile.m)),
            warps=tile.warps,
            stages=tile.stages,
            **tensors,
            **{"heads": h, "queries": t, "keys": s, **strides, **ends, "scale": float(scale)},
            **{**fixed, **wide, "BLOCK_M": tile.m, "BLOCK_N": tile.n},
        )
    )
    return [made_launch for made_launch in made if 0 not in made_launch.grid]


def _tile(block: str, d: int, dv: int, dtype: torch.dtype, target: Target) -> Tile:
    """The block "128x64 w4 s3" as a tile of queries and keys, with the stages that fit."""
    rows, rest = block.split("x")
    tile = Tile.parse(f"{rows}x{rest.replace(' ', 'x1 ', 1)}")
    a_key = (power_of_two(d) + power_of_two(dv)) * dtype.itemsize
    queries = tile.m * power_of_two(d) * dtype.itemsize
    return tile.fitted(target, tile.n * a_key, queries)


def _shares(programs: Size, keys: Size, block: int, target: Target) -> int:
    """Into how many parts the keys are cut, a power of two; open sizes count as few and long."""
    heads = programs if isinstance(programs, int) else 16
    steps = -(-keys // block) if isinstance(keys, int) else 64
    split = 1
    while heads * split < target.cores and steps >= 4 * split and split < MOST_SHARES:
        split *= 2
    return split


def power_of_two(size: int) -> int:
    """The least that a block may have: a power of two, 16 or more for a product."""
    return max(16, 1 << (size - 1).bit_length())


def _mask_strides(mask: TensorType) -> tuple[Size, ...] | None:
    """Wanted strides: neighbouring elements in the last dimension, or one element for all."""
    fine = mask.rank == 0 or mask.shape[-1] == 1 or mask.strides[-1] in (0, 1)
    return None if fine else contiguous_strides(mask.shape)


_LAYOUTS = LAYOUTS | {"mask": _mask_strides, "attn_mask": _mask_strides}


def _on_gpu(legal: Callable[..., str | None]) -> Callable[..., str | None]:
    def asked(target: Target, q: TensorType, k: TensorType, v: TensorType, mask: Any, **attrs: Any):
        for t in (q, v):
            if t.rank == 4 and not (isinstance(t.shape[3], int) and t.shape[3] <= DEEPEST):
                return f"heads of {t.shape[3]}, expected at most {DEEPEST}"
        return legal(target, q, k, v, mask, **attrs)

    return asked


@attention.kernel(
    "gpu", legal=_on_gpu(attention_legal), layouts=_LAYOUTS, out=by_token, **FLASH_SPACE
)
def _attention(
    cfg: Config,
    target: Target,
    q: TensorType,
    k: TensorType,
    v: TensorType,
    mask: TensorType | None,
    *,
    scale: float,
    causal: bool,
) -> list[Launch]:
    names = ("q", "k", "v", "mask")
    return attention_launches(cfg, target, q, k, v, mask, names, scale, causal)


@aten_kernel(
    "scaled_dot_product_attention.default",
    kind="gpu",
    legal=_on_gpu(aten_attention_legal),
    layouts=_LAYOUTS,
    out=by_token,
    **FLASH_SPACE,
)
def _aten_attention(
    cfg: Config,
    target: Target,
    q: TensorType,
    k: TensorType,
    v: TensorType,
    mask: TensorType | None,
    *,
    is_causal: bool,
    scale: float | None,
    **attrs: Any,
) -> list[Launch]:
    if scale is None:
        scale = 1 / math.sqrt(q.shape[3])
    names = ("query", "key", "value", "attn_mask")
    return attention_launches(cfg, target, q, k, v, mask, names, scale, is_causal)
