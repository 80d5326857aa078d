"""A cache in pages of one store that all sequences share: a table says which pages a sequence has,
in its order, so that sequences share the pages of a common beginning (PagedAttention, Kwon et al.,
2023). Which page is whose is the caller's to decide (runtime/decoding/pages.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._sympy.functions import FloorDiv

from infopt.codegen.kernel import Call, Config, kernel_op
from infopt.codegen.kernels.attention import attention_call, attention_reason, by_token
from infopt.codegen.kernels.kv_cache import (
    APPENDED,
    ATTENDED_WHOLE,
    FACTOR_BYTES,
    appends,
    as_bytes,
    attention_cases,
    from_bytes,
    kv_attention,
)
from infopt.codegen.kernels.rows import SHORT, contiguous
from infopt.compiler.accuracy import Exact
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType


def _append_cases() -> Any:
    table = torch.tensor([[3, 1, 0], [2, 5, 6], [4, 4, -1]])
    for dtype in (torch.float32, torch.bfloat16):
        for stored_as_bytes in (False, True):
            store, x = torch.randn(1, 2, 24, 16, dtype=dtype), torch.randn(3, 2, 5, 16, dtype=dtype)
            given = as_bytes(store) if stored_as_bytes else store
            yield (given, x, torch.tensor([0, 3, 6]), torch.tensor([5, 4, 2]), table), {"page": 4}
            one = torch.ones(3, dtype=torch.int64)
            yield (given, x[:, :, :1], torch.tensor([11, 12, 8]), one, table), {"page": 4}


@kernel_op(cases=_append_cases, tolerance=Exact(), in_place="store")
def kv_append_paged(store, x, starts, counts, table, *, page):
    """store [1, H, R, D] with x [B, H, T, D]: row t of sequence b becomes row
    table[b, n] * page + r where t < counts[b]; starts[b] + t = n * page + r. What would lie outside
    is left out.

    starts, counts: int64 [B]; table: int64 [B, pages of a sequence], -1 for none. A store int8
    [1, H, R, D + 4] takes rows as kv_append_int8 does.
    """
    tokens = torch.arange(x.shape[2], device=store.device)
    place = starts[:, None] + tokens
    number = place.div(page, rounding_mode="floor")
    inside = (tokens < counts[:, None]) & (number >= 0) & (number < table.shape[1])
    at = table.gather(1, number.clamp(0, table.shape[1] - 1))
    row = at * page + place % page
    inside = inside & (at >= 0) & (row < store.shape[2])
    row = torch.where(inside, row, store.shape[2]).flatten()  # the last one is cut off again
    rows = as_bytes(x) if store.dtype is torch.int8 else x
    rows = rows.transpose(0, 1).flatten(1, 2)[None]
    longer = torch.cat((store, torch.zeros_like(store[:, :, :1])), 2)
    return longer.index_copy(2, row, rows)[:, :, :-1].contiguous()


def _attention_paged_cases() -> Any:
    table = torch.tensor([[0, 1, 5], [2, 2, 4], [7, 3, 6]])
    for (q, k, v, starts), attrs in attention_cases():
        k, v = (x[:1].repeat(1, 1, 4, 1)[:, :, : 12 * 8].contiguous() for x in (k, v))
        yield (q, k, v, starts - starts // 24, table), {"page": 12, **attrs}
        stores = as_bytes(k), as_bytes(v)
        yield (q, *stores, starts - starts // 24, table), {"page": 12, **attrs}


@kernel_op(cases=_attention_paged_cases, tolerance=Exact())
def kv_attention_paged(q, keys, values, starts, table, *, scale, page, window=0, softcap=0.0):
    """kv_attention where keys and values [1, H / groups, R, D] are pages of kv_append_paged: the
    keys of sequence b are those of pages table[b], one after the other.
    """
    pages = table.clamp(0, keys.shape[2] // page - 1)
    row = (pages[:, :, None] * page + torch.arange(page, device=q.device)).flatten(1)

    def of_sequences(store: Tensor) -> Tensor:
        rows = from_bytes(store).to(q.dtype) if store.dtype is torch.int8 else store
        return rows[0].transpose(0, 1)[row].transpose(1, 2)

    k, v = of_sequences(keys), of_sequences(values)
    return kv_attention.reference(q, k, v, starts, scale=scale, window=window, softcap=softcap)


def append_paged_legal(
    target: Target,
    store: TensorType,
    x: TensorType,
    starts: TensorType,
    counts: TensorType,
    table: TensorType,
    **_: Any,
) -> str | None:
    if table.rank != 2 or table.dtype is not torch.int64:
        return f"table {table}"
    return appends(torch.int8 if store.dtype is torch.int8 else None, 4)(target, store, x)


@kv_append_paged.kernel("cpu", legal=append_paged_legal, layouts=APPENDED | {"table": contiguous})
def _append(
    cfg: Config,
    target: Target,
    store: TensorType,
    x: TensorType,
    starts: TensorType,
    counts: TensorType,
    table: TensorType,
    *,
    page: int,
) -> Call:
    in_bytes = store.dtype is torch.int8
    size = 1 if in_bytes else store.dtype.itemsize
    b, h, t, d = x.shape
    x_strides, strides = ([n * size for n in y.strides[:3]] for y in (x, cfg.out))
    numbers = (b, h, t, store.shape[2], d * size, *x_strides, *strides, table.shape[1], page)
    symbol = "infopt_kv_append_paged" + (f"_int8_{SHORT[x.dtype]}" if in_bytes else "")
    return Call(symbol, ("x", "starts", "counts", "table", "out"), numbers, b * h)


def _of_sequences(
    store: TensorType, dtype: torch.dtype, table: TensorType, page: int
) -> TensorType:
    """What a store is to its readers: as many keys for each sequence as the table has room for."""
    (_, h, _, d), (b, pages) = store.shape, table.shape
    width = d - FACTOR_BYTES if store.dtype is torch.int8 else d
    return TensorType((b, h, pages * page, width), dtype, (0, *store.strides[1:]))


def attention_paged_legal(
    target: Target,
    q: TensorType,
    keys: TensorType,
    values: TensorType,
    starts: TensorType,
    table: TensorType,
    *,
    page: int,
    **_: Any,
) -> str | None:
    in_bytes = keys.dtype == values.dtype == torch.int8
    if (
        keys.rank != 4
        or values.rank != 4
        or not (in_bytes or keys.dtype == values.dtype == q.dtype)
    ):
        return f"q {q}, keys {keys}, values {values}"
    if table.rank != 2 or table.dtype is not torch.int64:
        return f"table {table}"
    k, v = (_of_sequences(x, q.dtype, table, page) for x in (keys, values))
    return attention_reason(q, k, v, None)


def by_token_paged(
    q: TensorType, keys: TensorType, values: TensorType, *_: Any, **__: Any
) -> TensorType:
    width = values.shape[3] - FACTOR_BYTES if values.dtype is torch.int8 else values.shape[3]
    return by_token(q, keys, TensorType((*values.shape[:3], width), q.dtype, values.strides))


@kv_attention_paged.kernel(
    "cpu",
    legal=attention_paged_legal,
    layouts=ATTENDED_WHOLE | {"table": contiguous},
    out=by_token_paged,
)
def _attention(
    cfg: Config,
    target: Target,
    q: TensorType,
    keys: TensorType,
    values: TensorType,
    starts: TensorType,
    table: TensorType,
    *,
    scale: float,
    page: int,
    window: int,
    softcap: float,
) -> Call:
    k, v = (_of_sequences(x, q.dtype, table, page) for x in (keys, values))
    names = ("q", "keys", "values", "starts", "table")
    call = attention_call(q, k, v, None, cfg.out, names, scale, True, window, softcap)
    kind = "kv_attention_paged" + ("_int8" if keys.dtype is torch.int8 else "")
    pages = FloorDiv(keys.shape[2], page)
    numbers = (*call.numbers, table.shape[1], page, pages)
    return replace(call, symbol=call.symbol.replace("attention", kind), numbers=numbers)
