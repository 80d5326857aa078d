"""Attention whose softmax also has a number of each head among its scores: a sink, without a value.

Source: gpt-oss (OpenAI, 2025); the effect: Xiao et al., StreamingLLM (arXiv 2309.17453).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from infopt.codegen.kernel import Call, Config, kernel_op
from infopt.codegen.kernels.attention import (
    LAYOUTS,
    attention_call,
    attention_legal,
    band,
    by_token,
)
from infopt.codegen.kernels.rows import contiguous
from infopt.compiler.accuracy import Exact
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType


def _cases() -> Any:
    for dtype in (torch.float32, torch.bfloat16):
        sinks = torch.randn(4, dtype=dtype)
        for tokens in (3, 20):
            q = torch.randn(2, 4, tokens, 16, dtype=dtype)
            k, v = (torch.randn(2, 2, 33, 16, dtype=dtype) for _ in range(2))
            mask = torch.rand(2, 1, tokens, 33) > 0.3
            mask[0, 0, 0] = False
            yield (q, k, v, sinks), {"scale": 0.25}
            yield (q, k, v, sinks * 20, mask), {"scale": 0.25}
            yield (q, k, v, sinks, torch.randn(tokens, 33).to(dtype)), {"scale": 0.25}
            yield (q, q, q, sinks), {"scale": 0.25, "causal": True}
            yield (q, q, q, sinks), {"scale": 0.25, "causal": True, "window": 6}


@kernel_op(cases=_cases, tolerance=Exact())
def attention_sinks(q, k, v, sinks, mask=None, *, scale, causal=False, window=0):
    """softmax([scale q kᵀ + mask, sink]) without its last column, times v: sums of weights below 1.

    sinks: [H], as all operands f32, bf16 or f16. The rest as of `attention`; a row that sees no
    key is 0.
    """
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(wide) @ k.to(wide).transpose(2, 3) * scale
    if causal:
        scores = torch.where(band(q, k, window), scores, -math.inf)
    if mask is not None and mask.dtype is torch.bool:
        scores = torch.where(mask, scores, -math.inf)
    elif mask is not None:
        scores = scores + mask.to(wide)
    column = sinks.to(wide).reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    weights = torch.softmax(torch.cat([scores, column], -1), -1)[..., :-1]
    return (weights @ v.to(wide)).to(q.dtype)


def sinks_legal(
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
) -> str | None:
    if sinks.dtype != q.dtype or sinks.shape != q.shape[1:2]:
        return f"sinks {sinks}, expected a number of each head as {q}"
    attrs = {"scale": scale, "causal": causal, "window": window}
    return attention_legal(target, q, k, v, mask, **attrs)


def as_queries(
    q: TensorType, k: TensorType, v: TensorType, sinks: TensorType, *_: Any, **__: Any
) -> TensorType:
    return by_token(q, k, v)


SINK_LAYOUTS = LAYOUTS | {"sinks": contiguous}


@attention_sinks.kernel("cpu", legal=sinks_legal, layouts=SINK_LAYOUTS, out=as_queries)
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
) -> Call:
    names = ("q", "k", "v", mask and "mask")
    call = attention_call(q, k, v, mask, cfg.out, names, scale, causal, window)
    symbol = call.symbol.replace("attention", "attention_sinks")
    return replace(call, symbol=symbol, pointers=(*call.pointers, "sinks"))
