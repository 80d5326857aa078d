"""Attention over queries, keys and values in thin factors, rebuilt a head at a time.

The rows of all heads are never in memory: whoever attends rebuilds those of one head in its own
scratch. Source: FlashSVD (Shao et al., arXiv 2508.01506).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from infopt.codegen.kernel import Call, Config, kernel_op
from infopt.codegen.kernels.attention import attention, attention_call, attention_reason
from infopt.codegen.kernels.linear import ROW_FORMAT
from infopt.codegen.kernels.rows import FLOATS, SHORT, contiguous, dense_last, is_positive, round_up
from infopt.compiler.accuracy import Exact
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType


def _cases() -> Any:
    for dtype, tokens in ((torch.float32, 37), (torch.bfloat16, 33), (torch.float32, 130)):
        q, k, v = (torch.randn(2, t, r, dtype=dtype) for t, r in ((tokens, 24), (33, 16), (33, 20)))
        ups = [torch.randn(64, x.shape[2], dtype=dtype) / 4 for x in (q, k, v)]
        biases = [torch.randn(64, dtype=dtype) for _ in ups]
        mask = torch.rand(2, 1, tokens, 33) > 0.3
        attrs = {"heads": 4, "kv_heads": 4, "scale": 0.25}
        yield (q, k, v, *ups), attrs
        yield (q, k, v, *ups, *biases, mask), attrs
        if tokens > 33:
            few = [up[:32] for up in ups[1:]]
            yield (q, k, v, ups[0], *few, *biases[:1]), attrs | {"kv_heads": 2}
        yield (
            (k, k, k, *(torch.randn(64, 16, dtype=dtype) / 4 for _ in ups)),
            attrs
            | {
                "causal": True,
                "window": 6,
            },
        )


@kernel_op(cases=_cases, tolerance=Exact())
def low_rank_attention(
    q,
    k,
    v,
    q_up,
    k_up,
    v_up,
    q_bias=None,
    k_bias=None,
    v_bias=None,
    mask=None,
    *,
    heads,
    kv_heads,
    scale,
    causal=False,
    window=0,
):
    """attention(q q_upᵀ + q_bias, ...) [B, heads, T, E] of factors q [B, T, R], k and v [B, S, R].

    q_up [heads * D, R], k_up [kv_heads * D, R], v_up [kv_heads * E, R], biases of as many numbers;
    each factor has a rank of its own. Rows are summed in f32 or wider and rounded to q's dtype.
    mask, scale, causal, window: as of `attention`.
    """

    def rebuilt(x, up, bias, count):
        wide = torch.promote_types(x.dtype, torch.float32)
        rows = F.linear(x.to(wide), up.to(wide), None if bias is None else bias.to(wide))
        return rows.to(x.dtype).unflatten(-1, (count, -1)).transpose(1, 2)

    return attention(
        rebuilt(q, q_up, q_bias, heads),
        rebuilt(k, k_up, k_bias, kv_heads),
        rebuilt(v, v_up, v_bias, kv_heads),
        mask,
        scale=scale,
        causal=causal,
        window=window,
    )


def whole_rows(x: TensorType, up: TensorType, heads: int) -> TensorType:
    """What a factor is rebuilt to: [B, heads, T, D], every head's rows one after the other."""
    depth = up.shape[0] // heads
    return TensorType((x.shape[0], heads, x.shape[1], depth), x.dtype, (0, 0, depth, 1))


def low_rank_reason(
    q: TensorType,
    k: TensorType,
    v: TensorType,
    ups: tuple[TensorType, TensorType, TensorType],
    biases: tuple[TensorType | None, ...],
    mask: TensorType | None,
    heads: int,
    kv_heads: int,
) -> str | None:
    for x, up, bias, count in zip((q, k, v), ups, biases, (heads, kv_heads, kv_heads), strict=True):
        if x.rank != 3 or up.rank != 2 or x.dtype not in FLOATS or up.dtype != x.dtype:
            return f"factors {x} and {up}"
        if not (isinstance(up.shape[0], int) and up.shape[0] and up.shape[0] % count == 0):
            return f"{up.shape[0]} rows for {count} heads"
        if not (isinstance(up.shape[1], int) and is_positive(up.shape[1])):
            return f"rank {up.shape[1]}"
        if bias is not None and (bias.rank != 1 or bias.dtype not in FLOATS):
            return f"bias {bias}"
    if ups[0].shape[0] // heads != ups[1].shape[0] // kv_heads:
        return f"queries of {ups[0].shape[0] // heads} and keys of {ups[1].shape[0] // kv_heads}"
    return attention_reason(*_rebuilt(q, k, v, ups, heads, kv_heads), mask)


def _rebuilt(
    q: TensorType,
    k: TensorType,
    v: TensorType,
    ups: tuple[TensorType, TensorType, TensorType],
    heads: int,
    kv_heads: int,
) -> tuple[TensorType, TensorType, TensorType]:
    q_up, k_up, v_up = ups
    keys, values = whole_rows(k, k_up, kv_heads), whole_rows(v, v_up, kv_heads)
    return whole_rows(q, q_up, heads), keys, values


def low_rank_legal(
    target: Target,
    q: TensorType,
    k: TensorType,
    v: TensorType,
    q_up: TensorType,
    k_up: TensorType,
    v_up: TensorType,
    q_bias: Any,
    k_bias: Any,
    v_bias: Any,
    mask: Any,
    *,
    heads: int,
    kv_heads: int,
    scale: float,
    causal: bool,
    window: int,
) -> str | None:
    if window and not causal:
        return f"a window of {window} that is not causal"
    if heads != kv_heads and not (isinstance(q.shape[1], int) and q.shape[1] > 16):
        return f"{q.shape[1]} queries of shared keys"
    ups, biases = (q_up, k_up, v_up), (q_bias, k_bias, v_bias)
    return low_rank_reason(q, k, v, ups, biases, mask, heads, kv_heads)


def by_head(
    q: TensorType,
    k: TensorType,
    v: TensorType,
    q_up: TensorType,
    k_up: TensorType,
    v_up: TensorType,
    *_: Any,
    heads: int,
    kv_heads: int,
    **__: Any,
) -> TensorType:
    """The result as [B, T, H, E] in memory, as that of `attention`."""
    b, h, t, e = q.shape[0], heads, q.shape[1], v_up.shape[0] // kv_heads
    return TensorType((b, h, t, e), q.dtype, (t * h * e, e, h * e, 1))


LAYOUTS = dict.fromkeys(("q", "k", "v", "q_up", "k_up", "v_up"), dense_last)
LAYOUTS |= dict.fromkeys(("q_bias", "k_bias", "v_bias"), contiguous)


@low_rank_attention.kernel("cpu", legal=low_rank_legal, layouts=LAYOUTS, out=by_head)
def _low_rank_attention(
    cfg: Config,
    target: Target,
    q: TensorType,
    k: TensorType,
    v: TensorType,
    q_up: TensorType,
    k_up: TensorType,
    v_up: TensorType,
    q_bias: Any,
    k_bias: Any,
    v_bias: Any,
    mask: Any,
    *,
    heads: int,
    kv_heads: int,
    scale: float,
    causal: bool,
    window: int,
) -> Call:
    ups, biases = (q_up, k_up, v_up), (q_bias, k_bias, v_bias)
    rows = _rebuilt(q, k, v, ups, heads, kv_heads)
    names = ("q", "k", "v", mask and "mask")
    whole = attention_call(*rows, mask, cfg.out, names, scale, causal, window)
    rank = max(up.shape[1] for up in ups)  # type: ignore[type-var]
    strides = [
        s for x, up in zip((q, k, v), ups, strict=True) for s in (*x.strides[:2], up.strides[0])
    ]
    formats = [ROW_FORMAT[b.dtype] if b is not None else 0 for b in biases]
    scratch = round_up(whole.scratch, 64) + 512 * (rank + 1) + 49152
    scratch = scratch + 384 * (min(round_up(rank, 32), 2048) + 32)
    for x in rows:
        scratch = scratch + round_up(x.shape[2] * x.shape[3] * x.dtype.itemsize, 64)
    return Call(
        f"infopt_low_rank_attention_{SHORT[q.dtype]}",
        (
            *whole.pointers,
            *("q_up", "k_up", "v_up"),
            *(b and name for name, b in zip(("q_bias", "k_bias", "v_bias"), biases, strict=True)),
        ),
        (*whole.numbers, *(x.shape[-1] for x in (q, k, v)), *strides, *formats),
        q.shape[0] * kv_heads,
        scratch=scratch,
    )
