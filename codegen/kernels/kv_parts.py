"""Attention over a part of the keys: the pages that are listed, or a result that can be merged with
that over other keys (FlashDecoding, Hydragen: softmax sums add up once their maxima are one).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from infopt.codegen.kernel import Call, Config, kernel_op
from infopt.codegen.kernels.attention import (
    LAYOUTS,
    attention_call,
    attention_legal,
    attention_reason,
    by_token,
)
from infopt.codegen.kernels.kv_cache import attention_cases
from infopt.codegen.kernels.rows import contiguous, dense_last
from infopt.compiler.accuracy import Exact
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType


def _pages_cases() -> Any:
    lists = torch.tensor([[[0, 1, 3], [0, 2, 3]], [[0, 1, 2], [2, 3, 4]], [[0, 6, 7], [1, 3, 7]]])
    for (q, k, v, starts), attrs in attention_cases():
        k, v = (x[:, :, :32].contiguous() for x in (k, v))
        yield (q, k, v, starts, lists), {"page": 4, **attrs}
    q = torch.randn(3, 10, 1, 16)
    yield (q, k.float(), v.float(), starts, lists), {"page": 4, "scale": 0.25}


@kernel_op(cases=_pages_cases, tolerance=Exact())
def kv_attention_pages(q, keys, values, starts, pages, *, scale, page, window=0, softcap=0.0):
    """kv_attention that, for one query per sequence, reads only some pages of `page` keys: those of
    pages int64 [B, H / groups, n], ascending and each once. More queries read all.
    """
    last = starts[:, None] + torch.arange(q.shape[2], device=q.device)
    key = torch.arange(keys.shape[2], device=q.device)
    seen = key <= last[:, :, None]
    if window:
        seen = seen & (key > last[:, :, None] - window)
    listed = (key // page == pages[..., None]).any(2)  # [B, H / groups, S]
    listed = listed | (torch.arange(q.shape[2], device=q.device).sum() > 0)
    groups = q.shape[1] // keys.shape[1]
    seen = seen[:, None] & listed.repeat_interleave(groups, 1)[:, :, None]
    k, v = (x.repeat_interleave(groups, 1) for x in (keys, values))
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(wide) @ k.to(wide).transpose(2, 3) * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
    return torch.where(seen.any(-1, True), weights @ v.to(wide), 0.0).to(q.dtype)


def _part_cases() -> Any:
    for dtype in (torch.float32, torch.bfloat16):
        for tokens in (1, 20):
            q = torch.randn(2, 4, tokens, 16, dtype=dtype)
            k, v = (torch.randn(2, 2, 33, 16, dtype=dtype) for _ in range(2))
            mask = torch.rand(2, 1, tokens, 33) > 0.3
            mask[0, 0, 0] = False
            yield (q, k, v, mask), {"scale": 0.25}
            yield (q, k, v), {"scale": 0.25}


@kernel_op(cases=_part_cases, tolerance=Exact())
def attention_part(q, k, v, mask=None, *, scale):
    """Attention of q [B, H, T, D] over some keys k, v [B, H / groups, S, D], with the logarithm of
    the sum of exponentials of each row of scores, f32 [B, H, T]: `merge_parts` takes both.

    mask: broadcasts to [B, H, T, S]; True attends. A row that sees no key has 0 and -inf.
    """
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(wide) @ k.to(wide).transpose(2, 3) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    logsum = scores.logsumexp(-1)
    weights = torch.where(logsum[..., None] == -math.inf, 0.0, (scores - logsum[..., None]).exp())
    return (weights @ v.to(wide)).to(q.dtype), logsum


def merge_parts(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Attention over all keys from `attention_part` of disjoint parts of them: (result, logsum)."""
    logsums = torch.stack([logsum for _, logsum in parts])
    most = logsums.amax(0)
    shares = (logsums - torch.where(most == -math.inf, 0.0, most)).exp()
    total = shares.sum(0).clamp(min=torch.finfo(torch.float32).tiny)
    merged = sum(x.float() * s[..., None] for (x, _), s in zip(parts, shares.unbind(0)))
    assert isinstance(merged, Tensor)
    return (merged / total[..., None]).to(parts[0][0].dtype)


def _pages_legal(
    target: Target,
    q: TensorType,
    keys: TensorType,
    values: TensorType,
    starts: TensorType,
    pages: TensorType,
    *,
    page: int,
    **_: Any,
) -> str | None:
    if pages.rank != 3 or not isinstance(values.shape[3], int) or values.shape[3] < 4:
        return f"pages {pages} of values {values}"
    return attention_reason(q, keys, values, None)


@kv_attention_pages.kernel(
    "cpu",
    legal=_pages_legal,
    layouts={
        "q": dense_last,
        "keys": dense_last,
        "values": dense_last,
        "starts": contiguous,
        "pages": contiguous,
    },
    out=by_token,
)
def _pages(
    cfg: Config,
    target: Target,
    q: TensorType,
    keys: TensorType,
    values: TensorType,
    starts: TensorType,
    pages: TensorType,
    *,
    scale: float,
    page: int,
    window: int,
    softcap: float,
) -> Call:
    names = ("q", "keys", "values", "starts", "pages")
    call = attention_call(q, keys, values, None, cfg.out, names, scale, True, window, softcap)
    symbol = call.symbol.replace("attention", "kv_attention_pages")
    return replace(call, symbol=symbol, numbers=(*call.numbers, pages.shape[2], page))


def _part_legal(
    target: Target, q: TensorType, k: TensorType, v: TensorType, mask: Any, *, scale: float
) -> str | None:
    return attention_legal(target, q, k, v, mask, scale=scale, causal=False)


@attention_part.kernel("cpu", legal=_part_legal, layouts=LAYOUTS)
def _part(
    cfg: Config,
    target: Target,
    q: TensorType,
    k: TensorType,
    v: TensorType,
    mask: Any,
    *,
    scale: float,
) -> Call:
    names = ("q", "k", "v", mask and "mask")
    out, logsum = cfg.outs
    assert out is not None
    call = attention_call(q, k, v, mask, out, names, scale, False)
    symbol = call.symbol.replace("attention", "attention_part")
    return replace(call, symbol=symbol, pointers=(*names, "out0", logsum and "out1"))
