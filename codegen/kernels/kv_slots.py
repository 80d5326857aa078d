"""Rows of a cache by their places, and the places of the best scores: what policies are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infopt.codegen.kernel import Call, Config, kernel_op
from infopt.codegen.kernels.rows import ELEMENT, contiguous, dense_last
from infopt.codegen.sizes import product
from infopt.compiler.accuracy import Exact
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType


def _write_cases() -> Any:
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        store, x = ((torch.randn(2, 3, n, 16) * 9).to(dtype) for n in (12, 5))
        places = torch.tensor([[3, 11, -1, 0, 3], [12, 7, 8, 9, 10]])[:, None]
        yield (store, x, places.expand(2, 3, 5).contiguous()), {}


@kernel_op(cases=_write_cases, tolerance=Exact(), in_place="store")
def kv_write(store, x, places):
    """store [B, H, S, D] with rows of x [B, H, T, D] at places int64 [B, H, T]. What is outside is
    left out, and of two rows at one place the later one stays.
    """
    hits = places[:, :, None] == torch.arange(store.shape[2], device=store.device)[:, None]
    order = torch.arange(x.shape[2], device=store.device)
    last = torch.where(hits, order, -1).amax(-1)[..., None]
    rows = x.gather(2, last.clamp(min=0).expand(-1, -1, -1, store.shape[3]))
    return torch.where(last >= 0, rows, store)


def _read_cases() -> Any:
    for (store, _, places), attrs in _write_cases():
        yield (store, torch.stack((places, places.flip(2) + 1), 2)), attrs


@kernel_op(cases=_read_cases, tolerance=Exact())
def kv_read(store, places):
    """Rows [B, H, n, page, D] of store [B, H, S, D] at places int64 [B, H, n, page]; 0 for what is
    outside.
    """
    room = store.shape[2]
    index = places.clamp(0, room - 1)[..., None].expand(-1, -1, -1, -1, store.shape[3])
    rows = store[:, :, None].expand(-1, -1, places.shape[2], -1, -1).gather(3, index)
    inside = (places >= 0) & (places < room)
    return torch.where(inside[..., None], rows, torch.zeros_like(rows))


def _top_cases() -> Any:
    scores = torch.randn(2, 3, 40).round(decimals=1)
    scores[0, 0, 7], scores[0, 1, 3], scores[1, 2] = float("nan"), float("-inf"), 1.0
    for by_place in (False, True):
        for count in (1, 9, 40):
            yield (scores,), {"count": count, "by_place": by_place}


@kernel_op(cases=_top_cases, tolerance=Exact())
def top_places(scores, *, count, by_place):
    """Places int64 [..., count] of the largest of scores f32 [..., S], in their order, or the
    largest first; of equal ones the first. NaN is larger than all.
    """
    best: Tensor = torch.sort(scores, dim=-1, descending=True, stable=True)[1][..., :count]
    return torch.sort(best, dim=-1)[0] if by_place else best


def _reason(store: TensorType, places: TensorType, rank: int) -> str | None:
    if store.dtype not in ELEMENT or store.rank != 4:
        return f"store {store}"
    fine = places.rank == rank and places.dtype is torch.int64
    return None if fine else f"places {places}"


def _numbers(
    store: TensorType, tokens: Size, rows: tuple[Size, ...], places: tuple[Size, ...]
) -> tuple[Size, ...]:
    """rows, places: strides of sequence, head and row, in elements."""
    b, h, s, d = store.shape
    size = store.dtype.itemsize
    in_bytes = (n * size for n in (*rows, *store.strides[:3]))
    first = [next(in_bytes) for _ in range(3)]
    return (b, h, tokens, s, d * size, *first, *places, *in_bytes)


def _write_legal(
    target: Target, store: TensorType, x: TensorType, places: TensorType
) -> str | None:
    if x.dtype != store.dtype or x.rank != 4:
        return f"{x} into {store}"
    return _reason(store, places, 3)


@kv_write.kernel("cpu", legal=_write_legal, layouts={"x": dense_last})
def _write(
    cfg: Config, target: Target, store: TensorType, x: TensorType, places: TensorType
) -> Call:
    numbers = _numbers(cfg.out, x.shape[2], x.strides[:3], places.strides)
    return Call("infopt_kv_write", ("x", "places", "out"), numbers, numbers[0] * numbers[1])


def _read_legal(target: Target, store: TensorType, places: TensorType) -> str | None:
    return _reason(store, places, 4)


@kv_read.kernel("cpu", legal=_read_legal, layouts={"store": dense_last, "places": contiguous})
def _read(cfg: Config, target: Target, store: TensorType, places: TensorType) -> Call:
    heads, tokens, width = store.shape[1], product(places.shape[2:]), store.shape[3]
    rows = (heads * tokens * width, tokens * width, width)
    numbers = _numbers(store, tokens, rows, (heads * tokens, tokens, 1))
    return Call("infopt_kv_read", ("store", "places", "out"), numbers, numbers[0] * heads)


def _top_legal(target: Target, scores: TensorType, *, count: int, by_place: bool) -> str | None:
    if scores.dtype is not torch.float32 or scores.rank == 0:
        return f"scores {scores}"
    width = scores.shape[-1]
    return None if isinstance(width, int) and width >= count else f"{count} of {width} places"


@top_places.kernel("cpu", legal=_top_legal, layouts={"scores": contiguous})
def _top(cfg: Config, target: Target, scores: TensorType, *, count: int, by_place: bool) -> Call:
    rows, width = product(scores.shape[:-1]), scores.shape[-1]
    numbers = (rows, width, count, int(by_place))
    return Call("infopt_top_places", ("scores", "out"), numbers, rows, scratch=8 * width)
