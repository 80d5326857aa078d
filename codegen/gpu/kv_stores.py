"""Launches over caches in bytes and in pages: the cache is read as it lies, whoever's it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from sympy import Le
from torch.utils._sympy.functions import FloorDiv

from infopt.codegen.gpu.attention import (
    DEEPEST,
    FEW_ROWS,
    fitted_tile,
    power_of_two,
    shares_of_keys,
)
from infopt.codegen.gpu.attention_source import SOURCE as MERGING
from infopt.codegen.gpu.kv_source import APPEND, ATTENTION
from infopt.codegen.gpu.text import launch
from infopt.codegen.kernel import Config
from infopt.codegen.kernels.kv_cache import FACTOR_BYTES
from infopt.codegen.kernels.linear import only_if
from infopt.codegen.kernels.rows import ceil_div
from infopt.codegen.launch import Launch, Pointer, Scratch
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType


def unreadable(in_bytes: bool, *widths: Size) -> str | None:
    """Why rows of so many numbers cannot be read; in bytes a factor lies behind each row."""
    for width in widths:
        if not isinstance(width, int) or width > DEEPEST:
            return f"heads of {width}, expected at most {DEEPEST}"
        if in_bytes and width % FACTOR_BYTES:
            return f"rows of {width} bytes, expected a multiple of {FACTOR_BYTES}"
    return None


def named_strides(**types: TensorType) -> dict[str, Size]:
    """The first three strides of each, as the kernels' parameters are called."""
    return {
        f"{name}_{what}": stride
        for name, type in types.items()
        for what, stride in zip(("batch", "head", "stride"), type.strides[:3], strict=True)
    }


def append_launch(
    cfg: Config, store: TensorType, x: TensorType, tokens: int, table: TensorType | None, page: int
) -> Launch:
    """Rows x [B, H, T, D] into their places of a store."""
    b, h, t, d = x.shape
    width = x.shape[3]
    assert isinstance(width, int)
    in_bytes = store.dtype is torch.int8 and x.dtype is not torch.int8
    return launch(
        APPEND,
        "append_rows",
        grid=(b * h, ceil_div(t, tokens)),
        exact=in_bytes,  # as the op multiplies and rounds
        x=Pointer("x", x.dtype),
        starts=Pointer("starts", torch.int64),
        counts=Pointer("counts", torch.int64),
        table=table and Pointer("table", torch.int64),
        out=Pointer("out", cfg.out.dtype),
        **{"heads": h, "tokens": t, "room": store.shape[2]},
        entries=table.shape[1] if table else 0,
        **named_strides(x=x, out=cfg.out),
        **{"PAGE": page, "IN_BYTES": in_bytes, "D": d, "BLOCK_D": power_of_two(width)},
        TOKENS=tokens,
    )


def usual_blocks(depth: int, dtype: torch.dtype) -> tuple[str, str]:
    """Rows and keys of a program for few queries and for many, so that nothing is spilled: where a
    row lies, and its factor, takes registers."""
    few = "16x32 w4 s2" if depth <= 128 else "16x16 w4 s1"
    if dtype is torch.float32:  # summed without tensor cores, from registers
        return few, "32x32 w4 s2" if depth <= 64 else "16x16 w4 s1"
    return few, "64x32 w4 s2" if depth <= 64 else "32x32 w4 s1" if depth <= 128 else "16x32 w4 s1"


@dataclass(frozen=True)
class Form:
    """How a cache is read: by which kernel, and what that takes beside the queries.

    heads, width, room: of the values; blocks: of rows and keys, for few queries and for many
    pointers, numbers, strides, constants: by the parameters' names, in their order
    """

    source: str
    entry: str
    heads: Size
    width: int
    room: Size
    blocks: tuple[str, str]
    pointers: dict[str, Pointer | None]
    numbers: dict[str, Size]
    strides: dict[str, Size]
    constants: dict[str, Any]


def form_launches(
    form: Form, cfg: Config, target: Target, q: TensorType, scale: float
) -> list[Launch]:
    """Few queries: keys are cut into shares, merged in a fixed order; many: blocks of rows."""
    b, h, t, d = q.shape
    kv, dv = form.heads, form.width
    assert isinstance(d, int)
    groups = 1 if h == kv else h // kv
    together = max(FEW_ROWS, power_of_two(groups))
    few = Le(t * groups, together)
    if target.batch_invariant or groups > 64:
        few = Le(1, 0)
    small, large = (fitted_tile(block, d, dv, q.dtype, target) for block in form.blocks)
    split = shares_of_keys(b * kv, form.room, small.n, target)
    parts = None
    if split > 1:
        parts = Scratch("parts", 4 * b * kv * split * together * (dv + 2))
    out = Pointer("out", cfg.out.dtype)
    ends = named_strides(out=cfg.out)
    made = []
    for tile, rows, cut, m in (
        (small, only_if(few, 1), split, together),
        (large, only_if(~few, ceil_div(t * groups, large.m)), 1, large.m),
    ):
        made.append(
            launch(
                form.source,
                form.entry,
                grid=(b * kv, rows, cut),
                warps=tile.warps,
                stages=tile.stages,
                q=Pointer("q", q.dtype),
                **form.pointers,
                out=out,
                parts=Pointer(parts, torch.float32) if parts and cut > 1 else None,
                **{"heads": kv, "queries": t, "room": form.room, **form.numbers},
                **named_strides(q=q),
                **form.strides,
                **ends,
                scale=float(scale),
                **form.constants,
                **{"GROUPS": groups, "D": d, "V": dv},
                **{"BLOCK_M": m, "BLOCK_N": tile.n, "SPLIT": cut},
            )
        )
        if cut > 1:
            made.append(
                launch(
                    MERGING,
                    "flash_merge",
                    grid=(only_if(few, b * kv), t * groups),
                    parts=Pointer(parts, torch.float32),
                    sinks=None,
                    **{"out": out, "heads": kv, "queries": t, **ends, "GROUPS": groups, "V": dv},
                    **{"BLOCK_V": power_of_two(dv), "BLOCK_M": m, "SPLIT": cut},
                )
            )
    return [each for each in made if 0 not in each.grid]


def attention_launches(
    cfg: Config,
    target: Target,
    q: TensorType,
    keys: TensorType,
    values: TensorType,
    table: TensorType | None,
    *,
    page: int,
    scale: float,
    window: int,
    softcap: float,
) -> list[Launch]:
    """Over keys and values as they are or in bytes, with a table of pages or without."""
    in_bytes = keys.dtype is torch.int8
    d, dv = q.shape[3], values.shape[3] - FACTOR_BYTES * in_bytes
    assert isinstance(d, int) and isinstance(dv, int)
    form = Form(
        ATTENTION,
        "attend_cached",
        keys.shape[1],
        dv,
        table.shape[1] * page if table else keys.shape[2],
        usual_blocks(max(d, dv), q.dtype),
        {
            "keys": Pointer("keys", keys.dtype),
            "values": Pointer("values", values.dtype),
            "starts": Pointer("starts", torch.int64),
            "table": Pointer("table", torch.int64) if table else None,
        },
        {
            "entries": table.shape[1] if table else 0,
            "pages": FloorDiv(keys.shape[2], page) if table else 0,
        },
        named_strides(k=keys, v=values),
        {
            **{"PAGE": page, "IN_BYTES": in_bytes, "WINDOW": window, "SOFTCAP": softcap},
            **{"BLOCK_D": power_of_two(d), "BLOCK_V": power_of_two(dv)},
        },
    )
    return form_launches(form, cfg, target, q, scale)
