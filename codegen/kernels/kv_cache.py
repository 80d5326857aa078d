"""The cache of keys and values: appended to in place, read by attention where it lies.

Every sequence b of a batch has starts[b] tokens in the cache and brings counts[b] new ones; rows of
x past those are padding. So sequences of different lengths share one program without a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from infopt.codegen.kernel import Call, Config, kernel_op
from infopt.codegen.kernels.attention import attention_call, attention_reason, by_token
from infopt.codegen.kernels.rows import ELEMENT, FLOATS, SHORT, contiguous, dense_last
from infopt.compiler.accuracy import Exact
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType


def _append_cases() -> Any:
    for dtype in (torch.float32, torch.bfloat16):
        store, x = torch.randn(3, 2, 12, 16, dtype=dtype), torch.randn(3, 2, 5, 16, dtype=dtype)
        yield (store, x, torch.tensor([0, 4, 9]), torch.tensor([5, 0, 3])), {}
        yield (store, x[:, :, :1], torch.tensor([11, 12, 3]), torch.tensor([1, 1, 1])), {}


@kernel_op(cases=_append_cases, tolerance=Exact(), in_place="store")
def kv_append(store, x, starts, counts):
    """store [B, H, S, D] with x [B, H, T, D] in its place: row t of sequence b becomes row
    starts[b] + t where t < counts[b]; what would lie outside is left out.

    starts, counts: int64 [B].
    """
    place = torch.arange(store.shape[2], device=store.device) - starts[:, None]
    new = (place >= 0) & (place < counts[:, None]) & (place < x.shape[2])
    index = place.clamp(0, x.shape[2] - 1)[:, None, :, None]
    rows = x.gather(2, index.expand(-1, store.shape[1], -1, store.shape[3]))
    return torch.where(new[:, None, :, None], rows, store)


def attention_cases() -> Any:
    starts = torch.tensor([0, 7, 28])
    for dtype in (torch.float32, torch.bfloat16):
        for tokens in (1, 4, 20):
            q = torch.randn(3, 4, tokens, 16, dtype=dtype)
            k, v = (torch.randn(3, 2, 33, 16, dtype=dtype) for _ in range(2))
            yield (q, k, v, starts), {"scale": 0.25}
            yield (q, k, v, starts), {"scale": 0.25, "window": 6, "softcap": 5.0}


@kernel_op(cases=attention_cases, tolerance=Exact())
def kv_attention(q, keys, values, starts, *, scale, window=0, softcap=0.0):
    """softmax(scale q kᵀ) v over a cache; query t of sequence b sees keys 0 to starts[b] + t.

    q [B, H, T, D]; keys and values [B, H / groups, S, D]; starts int64 [B]. window > 0: only the
    last `window` of those. softcap > 0: scores s are softcap * tanh(s / softcap).
    """
    last = starts[:, None] + torch.arange(q.shape[2], device=q.device)
    key = torch.arange(keys.shape[2], device=q.device)
    seen = key <= last[:, :, None]
    if window:
        seen = seen & (key > last[:, :, None] - window)
    seen = seen[:, None]
    groups = q.shape[1] != keys.shape[1]
    if not softcap:
        return F.scaled_dot_product_attention(q, keys, values, seen, scale=scale, enable_gqa=groups)
    if groups:
        keys, values = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (keys, values))
    scores = torch.tanh(q.float() @ keys.float().transpose(2, 3) * (scale / softcap)) * softcap
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.where(seen.any(-1, True), weights @ values.float(), 0.0).to(q.dtype)


FACTOR_BYTES = 4  # bytes of the f32 behind the integers of a row


def as_bytes(x: torch.Tensor) -> torch.Tensor:
    """Rows [..., D] as int8 [..., D + 4]: integers, and the factor that makes numbers of them."""
    largest = x.float().abs().amax(-1, keepdim=True)
    inverse = 127.0 / largest
    usual = (inverse > 0) & (inverse <= torch.finfo(torch.float32).max)
    codes = torch.where(usual, torch.round(x.float() * inverse), 0.0).to(torch.int8)
    return torch.cat((codes, (largest / 127.0).view(torch.int8)), -1)


def from_bytes(store: torch.Tensor) -> torch.Tensor:
    """The f32 rows [..., D] that int8 [..., D + 4] stands for."""
    factors = store[..., -FACTOR_BYTES:].contiguous().view(torch.float32)
    return store[..., :-FACTOR_BYTES].float() * factors


def _append_int8_cases() -> Any:
    for (store, x, *places), attrs in _append_cases():
        x[0, 0, 0] = 0.0
        yield (as_bytes(store), x, *places), attrs


@kernel_op(cases=_append_int8_cases, tolerance=Exact(), in_place="store")
def kv_append_int8(store, x, starts, counts):
    """kv_append into bytes: rows of x [B, H, T, D] become int8 [D + 4] with a factor per row."""
    return kv_append.reference(store, as_bytes(x), starts, counts)


def _attention_int8_cases() -> Any:
    for (q, k, v, starts), attrs in attention_cases():
        yield (q, as_bytes(k), as_bytes(v), starts), attrs


@kernel_op(cases=_attention_int8_cases, tolerance=Exact())
def kv_attention_int8(q, keys, values, starts, *, scale, window=0, softcap=0.0):
    """kv_attention over keys and values in bytes, int8 [B, H / groups, S, D + 4]."""
    k, v = (from_bytes(store).to(q.dtype) for store in (keys, values))
    return kv_attention.reference(q, k, v, starts, scale=scale, window=window, softcap=softcap)


# what every append reads beside its store
APPENDED = {"x": dense_last, "starts": contiguous, "counts": contiguous}
ATTENDED = {"q": dense_last, "keys": dense_last, "values": dense_last, "starts": contiguous}
# stores whose rows are more than their numbers
ATTENDED_WHOLE = ATTENDED | {"keys": contiguous, "values": contiguous}


def appends(stored: torch.dtype | None, rank: int) -> Callable[..., str | None]:
    """The legality of appending to a store of that dtype and rank; None: of what is appended."""

    def legal(target: Target, store: TensorType, x: TensorType, *_: Any, **__: Any) -> str | None:
        if stored is None and (store.dtype != x.dtype or store.dtype not in ELEMENT):
            return f"{x.dtype} into {store.dtype}"
        if stored is not None and (store.dtype is not stored or x.dtype not in FLOATS):
            return f"{x.dtype} into {store.dtype}"
        if (store.rank, x.rank) != (rank, 4):
            return f"{store.rank} and {x.rank} dimensions, expected {rank} and 4"
        return None

    return legal


@kv_append.kernel("cpu", legal=appends(None, 4), layouts=APPENDED)
def _append(
    cfg: Config,
    target: Target,
    store: TensorType,
    x: TensorType,
    starts: TensorType,
    counts: TensorType,
) -> Call:
    size = store.dtype.itemsize
    b, h, s, d = store.shape
    numbers = (
        b,
        h,
        x.shape[2],
        s,
        d * size,
        *(n * size for n in x.strides[:3]),
        *(n * size for n in cfg.out.strides[:3]),
    )
    return Call("infopt_kv_append", ("x", "starts", "counts", "out"), numbers, b * h)


def kv_attention_legal(
    target: Target,
    q: TensorType,
    keys: TensorType,
    values: TensorType,
    starts: TensorType,
    **_: Any,
) -> str | None:
    return attention_reason(q, keys, values, None)


@kv_attention.kernel(
    "cpu",
    legal=kv_attention_legal,
    layouts=ATTENDED,
    out=by_token,
)
def _attention(
    cfg: Config,
    target: Target,
    q: TensorType,
    keys: TensorType,
    values: TensorType,
    starts: TensorType,
    *,
    scale: float,
    window: int,
    softcap: float,
) -> Call:
    names = ("q", "keys", "values", "starts")
    call = attention_call(q, keys, values, None, cfg.out, names, scale, True, window, softcap)
    return replace(call, symbol=call.symbol.replace("attention", "kv_attention"))


@kv_append_int8.kernel("cpu", legal=appends(torch.int8, 4), layouts=APPENDED)
def _append_int8(
    cfg: Config,
    target: Target,
    store: TensorType,
    x: TensorType,
    starts: TensorType,
    counts: TensorType,
) -> Call:
    b, h, s, _ = store.shape
    numbers = (b, h, x.shape[2], s, x.shape[3], *x.strides[:3], *cfg.out.strides[:3])
    symbol = f"infopt_kv_append_int8_{SHORT[x.dtype]}"
    return Call(symbol, ("x", "starts", "counts", "out"), numbers, b * h)


def _as_numbers(store: TensorType, dtype: torch.dtype) -> TensorType:
    """What a store in bytes stands for, in the store's strides."""
    return TensorType((*store.shape[:3], store.shape[3] - FACTOR_BYTES), dtype, store.strides)


def attention_int8_legal(
    target: Target,
    q: TensorType,
    keys: TensorType,
    values: TensorType,
    starts: TensorType,
    **_: Any,
) -> str | None:
    if not keys.dtype == values.dtype == torch.int8:
        return f"keys {keys}, values {values}"
    return attention_reason(q, _as_numbers(keys, q.dtype), _as_numbers(values, q.dtype), None)


def by_token_int8(
    q: TensorType, keys: TensorType, values: TensorType, *_: Any, **__: Any
) -> TensorType:
    return by_token(q, _as_numbers(keys, q.dtype), _as_numbers(values, q.dtype))


@kv_attention_int8.kernel(
    "cpu",
    legal=attention_int8_legal,
    layouts=ATTENDED_WHOLE,
    out=by_token_int8,
)
def _attention_int8(
    cfg: Config,
    target: Target,
    q: TensorType,
    keys: TensorType,
    values: TensorType,
    starts: TensorType,
    **attrs: Any,
) -> Call:
    keys, values = _as_numbers(keys, q.dtype), _as_numbers(values, q.dtype)
    call = _attention(cfg, target, q, keys, values, starts, **attrs)
    return replace(call, symbol=call.symbol.replace("kv_attention", "kv_attention_int8"))
