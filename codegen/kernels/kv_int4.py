"""The cache in 4 bits, as KIVI keeps it (Liu et al., 2024): keys with a range per channel of 32
tokens, values with one per token and 32 features; newer tokens in full precision.

A store is uint8 [B, H, N]: pages of 32 tokens, then the ring, f32 [64, D], of the last tokens. A
page (csrc/kv_int4.h) is its codes and, in bf16, the least values and the steps of its ranges. Pages
are written once all their tokens are there; the ring is long enough to take 32 tokens back.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from infopt.codegen.kernel import Call, Config, kernel_op
from infopt.codegen.kernels.attention import attention_call, attention_reason, by_token
from infopt.codegen.kernels.kv_cache import (
    APPENDED,
    ATTENDED_WHOLE,
    appends,
    attention_cases,
    kv_attention,
)
from infopt.codegen.kernels.rows import SHORT, contiguous
from infopt.compiler.accuracy import Exact
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType

GROUP, RING = 32, 64  # tokens of a page and features of a range; tokens in full precision


def wide_of(depth: int) -> int:
    return -(-depth // GROUP) * GROUP


def pages_in(size: int, depth: int) -> int:
    """How many pages a store of `size` bytes per head has."""
    return (size - RING * depth * 4) // (20 * wide_of(depth))


def _to_pages(rows: Tensor, per_token: bool) -> Tensor:
    """f32 [..., 32, wide] as uint8 [..., 20 wide]."""
    head, wide = rows.shape[:-2], rows.shape[-1]
    in_ranges = rows.unflatten(-1, (wide // GROUP, GROUP)) if per_token else rows.transpose(-1, -2)
    low, high = in_ranges.amin(-1, keepdim=True), in_ranges.amax(-1, keepdim=True)
    least, step = low.bfloat16(), ((high - low) / 15.0).bfloat16()
    inverse = 1.0 / step.float()
    most = torch.finfo(torch.float32).max
    usual = (inverse > 0) & (inverse <= most) & (least.float().abs() <= most)
    codes = torch.round((in_ranges - least.float()) * inverse).clamp(0, 15)
    codes = torch.where(usual, codes, 0.0).to(torch.uint8)
    codes = codes.flatten(-2) if per_token else codes.transpose(-1, -2)
    pairs = codes.reshape(*head, GROUP, wide // GROUP, 2, 16)
    packed = pairs[..., 0, :] | (pairs[..., 1, :] << 4)
    factors = (x.contiguous().view(torch.uint8).flatten(len(head)) for x in (least, step))
    return torch.cat((packed.flatten(-3), *factors), -1)


def _from_pages(pages: Tensor, wide: int, per_token: bool) -> Tensor:
    """The f32 [..., 32, wide] that uint8 [..., 20 wide] stands for."""
    head = pages.shape[:-1]
    packed = pages[..., : 16 * wide].reshape(*head, GROUP, wide // GROUP, 1, 16)
    codes = torch.cat((packed & 15, packed >> 4), -2).reshape(*head, GROUP, wide).float()
    factors = pages[..., 16 * wide :].contiguous().view(torch.bfloat16).float()
    least, step = factors[..., :wide], factors[..., wide:]
    if not per_token:
        return codes * step[..., None, :] + least[..., None, :]
    ranges = (*head, GROUP, wide // GROUP, 1)
    numbers = codes.unflatten(-1, (wide // GROUP, GROUP)) * step.reshape(ranges)
    return (numbers + least.reshape(ranges)).flatten(-2)


def _parts(store: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """Pages uint8 [B, H, P, 20 wide] and ring f32 [B, H, 64, D] of a store."""
    pages, size = pages_in(store.shape[2], depth), 20 * wide_of(depth)
    ring = store[..., pages * size :].contiguous().view(torch.float32)
    return store[..., : pages * size].unflatten(-1, (pages, size)), ring.unflatten(
        -1, (RING, depth)
    )


def _append_int4_cases() -> Any:
    for per_token in (False, True):
        for depth, dtype in ((16, torch.float32), (40, torch.bfloat16), (64, torch.float16)):
            size = 3 * 20 * wide_of(depth) + RING * depth * 4
            store = kv_append_int4(
                torch.zeros(3, 2, size, dtype=torch.uint8),
                torch.randn(3, 2, 50, depth).to(dtype),
                torch.tensor([0, 0, 0]),
                torch.tensor([31, 50, 32]),
                per_token=per_token,
            )
            x = torch.randn(3, 2, 40, depth).to(dtype)
            x[1, 0, :, 3] = 2.0
            places = torch.tensor([31, 50, 32]), torch.tensor([1, 40, 35])
            yield (store, x, *places), {"per_token": per_token}


@kernel_op(cases=_append_int4_cases, tolerance=Exact(), in_place="store")
def kv_append_int4(store, x, starts, counts, *, per_token):
    """kv_append into a store uint8 [B, H, N]: rows of x [B, H, T, D] go to the ring, and a group
    of 32 tokens that they complete becomes a page, with a range per token (values) or per channel
    (keys).
    """
    depth, tokens, wide = x.shape[3], x.shape[2], wide_of(x.shape[3])
    pages, ring = _parts(store, depth)
    room = pages.shape[2] * GROUP
    starts, ends = starts[:, None], (starts + counts.clamp(max=tokens)).clamp(max=room)[:, None]

    def rows_at(place: Tensor) -> Tensor:
        """x of places [B, n], whatever it is outside."""
        index = (place - starts).clamp(0, tokens - 1)[:, None, :, None]
        return x.float().gather(2, index.expand(-1, x.shape[1], -1, depth))

    place = torch.arange(room, device=x.device).expand(x.shape[0], -1)
    new = (place >= starts) & (place < ends)
    rows = torch.where(new[:, None, :, None], rows_at(place), ring[:, :, place[0] % RING])
    made = F.pad(rows, (0, wide - depth)).unflatten(2, (pages.shape[2], GROUP))
    end = place[:, GROUP - 1 :: GROUP] + 1
    complete = (end > starts) & (end <= ends)
    pages = torch.where(complete[:, None, :, None], _to_pages(made, per_token), pages)
    slot = torch.arange(RING, device=x.device)
    place = slot + (ends - 1 - slot).div(RING, rounding_mode="floor") * RING
    ring = torch.where((place >= starts)[:, None, :, None], rows_at(place), ring)
    return torch.cat((pages.flatten(2), ring.flatten(2).view(torch.uint8)), -1)


def _attention_int4_cases() -> Any:
    starts, counts = torch.tensor([0, 7, 63]), torch.tensor([1, 3, 20])
    for (q, k, v, _), attrs in attention_cases():
        k, v = (F.pad(x, (0, 16 * n, 0, 63)) + 0.5 for n, x in enumerate((k, v)))
        stores = []
        for n, x in enumerate((k, v)):
            depth = x.shape[3]
            size = 3 * 20 * wide_of(depth) + RING * depth * 4
            empty = torch.zeros(3, 2, size, dtype=torch.uint8)
            first = torch.zeros_like(starts)
            stores.append(kv_append_int4(empty, x, first, starts + counts, per_token=bool(n)))
        few = torch.minimum(counts, torch.tensor(q.shape[2]))
        yield (q, *stores, starts + counts - few, few), {"width": 32, **attrs}


@kernel_op(cases=_attention_int4_cases, tolerance=Exact())
def kv_attention_int4(q, keys, values, starts, counts, *, scale, width, window=0, softcap=0.0):
    """kv_attention over stores of kv_append_int4, which has just been given counts[b] tokens after
    starts[b]; values have `width` features.
    """
    stores = []
    for store, depth, per_token in ((keys, q.shape[3], False), (values, width, True)):
        pages, ring = _parts(store, depth)
        coded = _from_pages(pages, wide_of(depth), per_token)[..., :depth].flatten(2, 3)
        place = torch.arange(coded.shape[2], device=q.device)
        end = (starts + counts.clamp(max=q.shape[2]))[:, None]
        in_page = place < end - end % GROUP
        stores.append(torch.where(in_page[:, None, :, None], coded, ring[:, :, place % RING]))
    k, v = (x.to(q.dtype) for x in stores)
    return kv_attention.reference(q, k, v, starts, scale=scale, window=window, softcap=softcap)


@kv_append_int4.kernel("cpu", legal=appends(torch.uint8, 3), layouts=APPENDED)
def _append(
    cfg: Config,
    target: Target,
    store: TensorType,
    x: TensorType,
    starts: TensorType,
    counts: TensorType,
    *,
    per_token: bool,
) -> Call:
    (b, h, t, d), size = x.shape, store.shape[2]
    assert isinstance(d, int) and isinstance(size, int)
    room = pages_in(size, d) * GROUP
    numbers = (b, h, t, room, d, *x.strides[:3], *cfg.out.strides[:2], int(per_token))
    symbol = f"infopt_kv_append_int4_{SHORT[x.dtype]}"
    pointers = ("x", "starts", "counts", "out")
    return Call(symbol, pointers, numbers, b * h, scratch=GROUP * wide_of(d) * 4)


def _as_numbers(store: TensorType, depth: int, dtype: torch.dtype) -> TensorType:
    """What a store stands for; its strides count bytes, and those of tokens are not read."""
    b, h, size = store.shape
    assert isinstance(size, int)
    strides = (*store.strides[:2], 0, 1)
    return TensorType((b, h, pages_in(size, depth) * GROUP, depth), dtype, strides)


def attention_int4_legal(
    target: Target,
    q: TensorType,
    keys: TensorType,
    values: TensorType,
    starts: TensorType,
    counts: TensorType,
    *,
    width: int,
    **_: Any,
) -> str | None:
    if not keys.dtype == values.dtype == torch.uint8 or not isinstance(q.shape[3], int):
        return f"keys {keys}, values {values}"
    k, v = _as_numbers(keys, q.shape[3], q.dtype), _as_numbers(values, width, q.dtype)
    return attention_reason(q, k, v, None)


def by_token_int4(
    q: TensorType, keys: TensorType, values: TensorType, *_: Any, width: int, **__: Any
) -> TensorType:
    return by_token(q, keys, _as_numbers(values, width, q.dtype))


@kv_attention_int4.kernel(
    "cpu",
    legal=attention_int4_legal,
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
) -> Call:
    assert isinstance(q.shape[3], int)
    k, v = _as_numbers(keys, q.shape[3], q.dtype), _as_numbers(values, width, q.dtype)
    names = ("q", "keys", "values", "starts")
    call = attention_call(q, k, v, None, cfg.out, names, scale, True, window, softcap)
    return Call(
        call.symbol.replace("attention", "kv_attention_int4"),
        (*call.pointers, "counts"),
        call.numbers,
        call.tasks,
        scratch=call.scratch,
    )
