"""Scaled dot-product attention; the scores never reach memory."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from sympy import Le
from torch.utils._sympy.functions import Where

from infopt.codegen.kernel import Call, Config, aten_kernel, kernel_op
from infopt.codegen.kernels.rows import FLOATS, SHORT, ceil_div, dense_last, is_positive
from infopt.codegen.sizes import same
from infopt.compiler.accuracy import Exact
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

_MASK_KIND = {torch.bool: 1, torch.float32: 2, torch.bfloat16: 3, torch.float16: 4}


def _cases() -> Any:
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = (torch.randn(2, h, t, 16, dtype=dtype) for h, t in ((4, 20), (2, 33), (2, 33)))
        mask = torch.rand(2, 1, 20, 33) > 0.3
        yield (q, k, v), {"scale": 0.25, "causal": False}
        yield (q, k, v, mask), {"scale": 0.25, "causal": False}
        yield (q, k, v, torch.randn(20, 33).to(dtype)), {"scale": 0.25, "causal": False}
        yield (q, q, q), {"scale": 0.25, "causal": True}
        yield (q, q, q), {"scale": 0.25, "causal": True, "window": 6}
        yield (q, k, v, mask), {"scale": 0.25, "causal": True, "window": 6}


@kernel_op(cases=_cases, tolerance=Exact())
def attention(q, k, v, mask=None, *, scale, causal=False, window=0):
    """softmax(scale q kᵀ + mask) v for q [B, H, T, D], k and v [B, H / groups, S, D].

    mask: broadcasts to [B, H, T, S]; bool (True attends) or added.
    causal: query i sees keys 0 to i; with window > 0, which needs causal, the last `window` of
    those.
    """
    if window or (causal and mask is not None):
        seen = band(q, k, window)
        if mask is None or mask.dtype is torch.bool:
            mask, causal = seen if mask is None else mask & seen, False
        else:
            mask, causal = mask.masked_fill(~seen, -math.inf), False
    groups = q.shape[-3] != k.shape[-3]
    return F.scaled_dot_product_attention(
        q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=groups
    )


def band(q: torch.Tensor, k: torch.Tensor, window: int) -> torch.Tensor:
    """bool [T, S]: which keys are seen causally, within the window if that is not 0."""
    seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    return seen.triu(1 - window) if window else seen


def attention_reason(
    q: TensorType, k: TensorType, v: TensorType, mask: TensorType | None
) -> str | None:
    if q.dtype not in FLOATS or not q.dtype == k.dtype == v.dtype:
        return f"dtypes {q.dtype}, {k.dtype}, {v.dtype}"
    if not q.rank == k.rank == v.rank == 4:
        return f"{q.rank} dimensions, expected 4"
    if not (same(q.shape[0], k.shape[0]) and same(k.shape[0], v.shape[0])):
        return "batches that are broadcast"
    heads, kv_heads = q.shape[1], k.shape[1]
    if kv_heads != v.shape[1] or not (
        heads == kv_heads
        or (
            isinstance(heads, int)
            and isinstance(kv_heads, int)
            and kv_heads
            and heads % kv_heads == 0
        )
    ):
        return f"{heads} heads of {kv_heads}"
    if not (is_positive(q.shape[3]) and is_positive(v.shape[3]) and is_positive(heads)):
        return "an empty head"
    if not same(k.shape[2], v.shape[2]):
        return f"{k.shape[2]} keys and {v.shape[2]} values"
    if not is_positive(k.shape[2]):
        return "keys that may be none"
    if mask is not None and (mask.dtype not in _MASK_KIND or mask.rank > 4):
        return f"mask {mask}"
    return None


def attention_legal(
    target: Target,
    q: TensorType,
    k: TensorType,
    v: TensorType,
    mask: Any,
    *,
    scale: Any,
    causal: bool,
    window: int = 0,
) -> str | None:
    if window and not causal:
        return f"a window of {window} that is not causal"
    return attention_reason(q, k, v, mask)


def by_token(q: TensorType, k: TensorType, v: TensorType, *_: Any, **__: Any) -> TensorType:
    """The result as [B, T, H, D] in memory, as torch's own kernel has it."""
    b, h, t, d = (*q.shape[:3], v.shape[3])
    return TensorType((b, h, t, d), q.dtype, (t * h * d, d, h * d, 1))


def mask_steps(mask: TensorType | None) -> list[Size]:
    """Elements between batches, heads, queries and keys of a mask, 0 where one is for all."""
    if mask is None:
        return [0, 0, 0, 0]
    own = [0 if n == 1 else s for n, s in zip(mask.shape, mask.strides, strict=True)]
    return [0] * (4 - mask.rank) + own


def attention_call(
    q: TensorType,
    k: TensorType,
    v: TensorType,
    mask: TensorType | None,
    out: TensorType,
    names: tuple,
    scale: float,
    causal: bool,
    window: int = 0,
    softcap: float = 0.0,
) -> Call:
    """names: the parameters q, k, v, mask."""
    b, h, t, d = q.shape
    kv, s, dv = k.shape[1], k.shape[2], v.shape[3]
    kind = _MASK_KIND[mask.dtype] if mask is not None else 0
    numbers = (
        b,
        h,
        kv,
        t,
        s,
        d,
        dv,
        *q.strides,
        *k.strides,
        *v.strides,
        *mask_steps(mask),
        kind,
        *out.strides,
        0,
        int(causal),
        0,
        window,
        float(scale),
        float(softcap),
    )
    if h == kv:
        tasks = b * h * ceil_div(t, 64)
    elif isinstance(t, int):
        tasks = b * kv * ceil_div(h // kv * t, 64) if t <= 16 else b * h * ceil_div(t, 64)
    else:
        tasks = Where(Le(t, 16), b * kv * ceil_div(h // kv * t, 64), b * h * ceil_div(t, 64))
    scratch = 4 * (64 * (d + dv) + 128 * 64 + 128 * (d + 1 + dv))
    return Call(
        f"infopt_attention_{SHORT[q.dtype]}", (*names, "out"), numbers, tasks, scratch=scratch
    )


LAYOUTS = {
    "q": dense_last,
    "k": dense_last,
    "v": dense_last,
    "query": dense_last,
    "key": dense_last,
    "value": dense_last,
}


@attention.kernel("cpu", legal=attention_legal, layouts=LAYOUTS, out=by_token)
def _attention(
    cfg: Config,
    target: Target,
    q: TensorType,
    k: TensorType,
    v: TensorType,
    mask: Any,
    *,
    scale: float,
    causal: bool,
    window: int,
) -> Call:
    names = ("q", "k", "v", mask and "mask")
    return attention_call(q, k, v, mask, cfg.out, names, scale, causal, window)


def aten_attention_legal(
    target: Target,
    q: TensorType,
    k: TensorType,
    v: TensorType,
    mask: Any,
    *,
    dropout_p: float,
    is_causal: bool,
    scale: Any,
    enable_gqa: bool,
) -> str | None:
    if dropout_p:
        return "dropout"
    if not enable_gqa and q.rank == 4 and q.shape[1] != k.shape[1] and k.shape[1] != 1:
        return "heads that are broadcast"
    if scale is None and not isinstance(q.shape[3], int):
        return "a scale that depends on an open size"
    return attention_reason(q, k, v, mask)


@aten_kernel(
    "scaled_dot_product_attention.default",
    legal=aten_attention_legal,
    layouts=LAYOUTS,
    out=by_token,
)
def _aten_attention(
    cfg: Config,
    target: Target,
    q: TensorType,
    k: TensorType,
    v: TensorType,
    mask: Any,
    *,
    dropout_p: float,
    is_causal: bool,
    scale: Any,
    enable_gqa: bool,
) -> Call:
    if scale is None:
        scale = 1 / math.sqrt(q.shape[3])
    names = ("query", "key", "value", mask and "attn_mask")
    return attention_call(q, k, v, mask, cfg.out, names, scale, is_causal)
