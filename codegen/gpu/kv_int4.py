"""The cache in 4 bits on a GPU: pages are made and read as they lie, the newest tokens beside."""

from __future__ import annotations

from typing import Any

import torch

from infopt.codegen.gpu.kv_int4_source import APPEND, ATTENTION
from infopt.codegen.gpu.kv_stores import Form, form_launches, named_strides, unreadable
from infopt.codegen.gpu.text import launch
from infopt.codegen.gpu.tiles import power_of_two
from infopt.codegen.kernel import Config
from infopt.codegen.kernels.kv_cache import APPENDED, ATTENDED_WHOLE, appends
from infopt.codegen.kernels.kv_int4 import (
    GROUP,
    RING,
    attention_int4_legal,
    by_token_int4,
    kv_append_int4,
    kv_attention_int4,
    pages_in,
    wide_of,
)
from infopt.codegen.kernels.rows import ceil_div, contiguous
from infopt.codegen.launch import Launch, Pointer
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType

_SLOTS = 16  # of the ring, that a program of append_ring writes
_in_pages = appends(torch.uint8, 3)


def _ring_at(store: TensorType, depth: int) -> int:
    """Where in a head's bytes the ring begins."""
    assert isinstance(store.shape[2], int)
    return pages_in(store.shape[2], depth) * 20 * wide_of(depth)


def _append_legal(
    target: Target, store: TensorType, x: TensorType, *rest: Any, **attrs: Any
) -> str | None:
    return _in_pages(target, store, x) or unreadable(False, x.shape[3])


@kv_append_int4.kernel("gpu", legal=_append_legal, layouts=APPENDED)
def _append(
    cfg: Config,
    target: Target,
    store: TensorType,
    x: TensorType,
    starts: TensorType,
    counts: TensorType,
    *,
    per_token: bool,
) -> list[Launch]:
    """Pages first: they are made of what the ring has, before it is written over."""
    (b, h, t, d), size = x.shape, store.shape[2]
    assert isinstance(d, int) and isinstance(size, int)
    shared: dict[str, Any] = {
        "x": Pointer("x", x.dtype),
        "starts": Pointer("starts", torch.int64),
        "counts": Pointer("counts", torch.int64),
        "out": Pointer("out", torch.uint8),
        "heads": h,
        "tokens": t,
        "room": pages_in(size, d) * GROUP,
        "ring_at": _ring_at(store, d),
        **named_strides(x=x),
        **dict(zip(("out_batch", "out_head"), cfg.out.strides[:2], strict=True)),
    }
    pages = launch(
        APPEND,
        "append_pages",
        grid=(b * h, ceil_div(t, GROUP) + 1),
        exact=True,  # as the op multiplies and rounds
        **shared,
        **{"PER_TOKEN": per_token, "D": d, "WIDE": wide_of(d), "HALF": _half(d)},
    )
    ring = launch(
        APPEND,
        "append_ring",
        grid=(b * h, RING // _SLOTS),
        **shared,
        **{"D": d, "BLOCK_D": power_of_two(d)},
    )
    return [pages, ring]


def _half(depth: int) -> int:
    """A block's features in the low bits: half of all, and 16 or more for a product."""
    return power_of_two(wide_of(depth) // 2)


def _legal(
    target: Target,
    q: TensorType,
    keys: TensorType,
    values: TensorType,
    *rest: Any,
    width: int,
    **attrs: Any,
) -> str | None:
    reason = attention_int4_legal(target, q, keys, values, *rest, width=width, **attrs)
    return reason or unreadable(False, q.shape[3], width)


@kv_attention_int4.kernel(
    "gpu",
    legal=_legal,
    layouts=ATTENDED_WHOLE | {"counts": contiguous},
    out=by_token_int4,
)
def _attention(
    cfg: Config,
    target: Target,
    q: TensorType,
    keys: TensorType,
    values: TensorType,
    starts: TensorType,
    counts: TensorType,
    *,
    scale: float,
    width: int,
    window: int,
    softcap: float,
) -> list[Launch]:
    d, size = q.shape[3], keys.shape[2]
    assert isinstance(d, int) and isinstance(size, int)
    many = "32x32 w4 s2" if q.dtype is not torch.float32 and max(d, width) <= 128 else "16x32 w4 s2"
    form = Form(
        ATTENTION,
        "attend_int4",
        keys.shape[1],
        width,
        pages_in(size, d) * GROUP,
        ("16x32 w4 s2", many),
        {
            "keys": Pointer("keys", torch.uint8),
            "values": Pointer("values", torch.uint8),
            "starts": Pointer("starts", torch.int64),
            "counts": Pointer("counts", torch.int64),
        },
        {"key_ring_at": _ring_at(keys, d), "value_ring_at": _ring_at(values, width)},
        {
            f"{name}_{what}": stride
            for name, type in (("k", keys), ("v", values))
            for what, stride in zip(("batch", "head"), type.strides[:2], strict=True)
        },
        {
            **{
                "WINDOW": window,
                "SOFTCAP": softcap,
                "WIDE_D": wide_of(d),
                "WIDE_V": wide_of(width),
            },
            **{"HALF_D": _half(d), "HALF_V": _half(width)},
        },
    )
    return form_launches(form, cfg, target, q, scale)
