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

from infopt.codegen.gpu.attention_source import SOURCE
from infopt.codegen.gpu.text import launch
from infopt.codegen.gpu.tiles import Tile, power_of_two
from infopt.codegen.kernel import Config, aten_kernel
from infopt.codegen.kernels.attention import (
    LAYOUTS,
    aten_attention_legal,
    attention,
    attention_legal,
    by_token,
    mask_steps,
)
from infopt.codegen.kernels.attention_sinks import (
    SINK_LAYOUTS,
    as_queries,
    attention_sinks,
    sinks_legal,
)
from infopt.codegen.kernels.linear import only_if
from infopt.codegen.kernels.rows import SHORT, ceil_div
from infopt.codegen.launch import Launch, Pointer, Scratch, Work
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType, contiguous_strides

DEEPEST = 256  # elements of a head that fit a block's registers
FEW_ROWS = 16  # so many rows are attended to together, whatever head they are of
MOST_SHARES = 64
_SOFTMAX = 24  # operations of a score: an exponential counts as 16, for its unit is so much slower

# "block of queries x keys"; the usual one depends on the depth of a head.
FLASH_SPACE = {"block": ("usual", "64x32 w8 s2")}


def usual_block(
    depth: int, masked: bool, windowed: bool, cached: bool, dtype: torch.dtype, target: Target
) -> str:
    """The largest block of which nothing is spilled; a mask takes registers for its addresses, a
    window for one more loop, a cache for where each sequence stands."""
    if dtype is torch.float32:  # summed without tensor cores, from registers
        crowded = masked if target.arch == "sm100" else target.arch == "sm90" and depth > 128
        return f"{'32x32' if depth <= 64 else '16x16'} w{8 if crowded else 4} s2"
    if depth > 128:
        return "64x32 w8 s2"
    if target.arch == "sm80":
        if masked or (depth > 64 and (windowed or cached)):
            return "64x32 w4 s2"
        return "128x64 w8 s2" if depth <= 64 else "64x64 w4 s2"
    if target.arch == "sm90" and not masked:
        return "128x64 w8 s2" if windowed and depth > 64 else "128x128 w8 s2"
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
    window: int = 0,
    sinks: TensorType | None = None,
    starts: TensorType | None = None,
    softcap: float = 0.0,
) -> list[Launch]:
    """names: the parameters q, k, v, mask. starts: how many keys come before the queries."""
    b, h, t, d = q.shape
    kv, s, dv = k.shape[1], k.shape[2], v.shape[3]
    groups = 1 if h == kv else h // kv
    out = cfg.out
    steps = mask_steps(mask)
    tensors = {
        **{x: Pointer(n, y.dtype) for x, n, y in zip("qkv", names, (q, k, v), strict=False)},
        "mask": mask and Pointer(names[3], mask.dtype),
        "sinks": sinks and Pointer("sinks", sinks.dtype),
        "starts": starts and Pointer("starts", starts.dtype),
        "out": Pointer("out", out.dtype),
    }
    strides = {
        f"{x}_{what}": stride
        for x, type in (("q", q), ("k", k), ("v", v))
        for what, stride in zip(("batch", "head", "stride"), type.strides[:3], strict=True)
    }
    strides |= dict(zip((f"mask_{w}" for w in ("batch", "head", "query")), steps[:3]))
    ends = dict(zip(("out_batch", "out_head", "out_stride"), out.strides[:3], strict=True))
    fixed = {"CAUSAL": causal, "WINDOW": window, "SOFTCAP": softcap, "MASK_STRIDE": steps[3]}
    fixed |= {"GROUPS": groups, "D": d, "V": dv}
    wide = {"BLOCK_D": power_of_two(d), "BLOCK_V": power_of_two(dv)}
    together = max(FEW_ROWS, power_of_two(groups))
    few = Le(t * groups, together)
    if target.batch_invariant or groups > 64:
        few = Le(1, 0)
    made = []
    narrow = q.dtype is torch.float32 or mask is not None
    block = "16x32 w4 s2" if narrow else "16x64 w4 s3"
    tile = fitted_tile(block, d, dv, q.dtype, target)
    split = shares_of_keys(b * kv, s, tile.n, target)
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
            work=_work(together, tile.n, wide, q.dtype, ceil_div(ceil_div(s, tile.n), split)),
        )
    )
    if parts is not None:
        made.append(
            launch(
                SOURCE,
                "flash_merge",
                grid=(only_if(few, b * kv), t * groups),
                parts=Pointer(parts, torch.float32),
                sinks=tensors["sinks"],
                **{"out": tensors["out"], "heads": kv, "queries": t, **ends},
                **{"GROUPS": groups, "V": dv, "BLOCK_V": wide["BLOCK_V"], **small},
            )
        )
    block = cfg.block
    if block == "usual":
        block = usual_block(
            *(max(d, dv), mask is not None, window > 0, starts is not None),
            *(q.dtype, target),
        )
    tile = fitted_tile(block, d, dv, q.dtype, target)
    steps_of_keys = ceil_div(s, tile.n)
    if causal:
        steps_of_keys = ceil_div(steps_of_keys + 1, 2)
    if window and isinstance(steps_of_keys, int):
        steps_of_keys = min(steps_of_keys, ceil_div(window + tile.m, tile.n) + 1)
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
            work=_work(tile.m, tile.n, wide, q.dtype, steps_of_keys),
        )
    )
    return [made_launch for made_launch in made if 0 not in made_launch.grid]


def _work(m: int, n: int, wide: dict[str, int], dtype: torch.dtype, steps: Size) -> Work:
    """Of m queries that walk the keys, n at a time."""
    d, v = wide["BLOCK_D"], wide["BLOCK_V"]
    return Work(
        steps=steps,
        flops=2 * m * n * (d + v),
        vector=_SOFTMAX * m * n,
        loads=n * (d + v) * dtype.itemsize,
        dtype=SHORT[dtype],
        values=m * v + m * n,
        stores=m * v * dtype.itemsize,
        held=m * d * dtype.itemsize,
    )


def fitted_tile(block: str, d: int, dv: int, dtype: torch.dtype, target: Target) -> Tile:
    """The block "128x64 w4 s3" as a tile of queries and keys, with the stages that fit."""
    rows, rest = block.split("x")
    tile = Tile.parse(f"{rows}x{rest.replace(' ', 'x1 ', 1)}")
    a_key = (power_of_two(d) + power_of_two(dv)) * dtype.itemsize
    queries = tile.m * power_of_two(d) * dtype.itemsize
    return tile.fitted(target, tile.n * a_key, queries)


def shares_of_keys(programs: Size, keys: Size, block: int, target: Target) -> int:
    """Into how many parts the keys are cut, a power of two; open sizes count as few and long."""
    heads = programs if isinstance(programs, int) else 16
    steps = -(-keys // block) if isinstance(keys, int) else 64
    split = 1
    while heads * split < target.cores and steps >= 4 * split and split < MOST_SHARES:
        split *= 2
    return split


def mask_strides(mask: TensorType) -> tuple[Size, ...] | None:
    """Wanted strides: neighbouring elements in the last dimension, or one element for all."""
    fine = mask.rank == 0 or mask.shape[-1] == 1 or mask.strides[-1] in (0, 1)
    return None if fine else contiguous_strides(mask.shape)


_LAYOUTS = LAYOUTS | {"mask": mask_strides, "attn_mask": mask_strides}


def on_gpu(legal: Callable[..., str | None]) -> Callable[..., str | None]:
    """Of ops that begin with queries, keys and values."""

    def asked(
        target: Target, q: TensorType, k: TensorType, v: TensorType, *rest: Any, **attrs: Any
    ):
        for t in (q, v):
            if t.rank == 4 and not (isinstance(t.shape[3], int) and t.shape[3] <= DEEPEST):
                return f"heads of {t.shape[3]}, expected at most {DEEPEST}"
        return legal(target, q, k, v, *rest, **attrs)

    return asked


@attention.kernel(
    "gpu", legal=on_gpu(attention_legal), layouts=_LAYOUTS, out=by_token, **FLASH_SPACE
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
    window: int,
) -> list[Launch]:
    names = ("q", "k", "v", "mask")
    return attention_launches(cfg, target, q, k, v, mask, names, scale, causal, window)


@attention_sinks.kernel(
    "gpu",
    legal=on_gpu(sinks_legal),
    layouts=SINK_LAYOUTS | {"mask": mask_strides},
    out=as_queries,
    **FLASH_SPACE,
)
def _attention_sinks(
    cfg: Config,
    target: Target,
    q: TensorType,
    k: TensorType,
    v: TensorType,
    sinks: TensorType,
    mask: TensorType | None,
    *,
    scale: float,
    causal: bool,
    window: int,
) -> list[Launch]:
    names = ("q", "k", "v", "mask")
    return attention_launches(cfg, target, q, k, v, mask, names, scale, causal, window, sinks)


@aten_kernel(
    "scaled_dot_product_attention.default",
    kind="gpu",
    legal=on_gpu(aten_attention_legal),
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
