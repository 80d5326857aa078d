"""Rows of tokens brought to fewer places by a map (token_maps.py), and back."""

from __future__ import annotations

from typing import Any

import torch

from infopt.codegen.kernel import Call, Config, kernel_op
from infopt.codegen.kernels.rows import ELEMENT, FLOATS, ceil_div, contiguous, is_positive, round_up
from infopt.codegen.kernels.token_maps import match_tokens, rank_tokens, sizes_for_tests
from infopt.compiler.accuracy import Exact
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

_COLUMNS = 64  # of one task of merge_rows
_ROWS = 64  # of one task of unmerge_rows


def _maps() -> Any:
    """Maps of [2, 21] tokens, the places they lead to, and the sizes they were made with."""
    for size in sizes_for_tests():
        yield match_tokens(torch.randn(2, 21, 8), size, keep=12, first=1), size, 12
        yield rank_tokens(torch.randn(2, 21), size, keep=9, first=1), size, 9


def _merge_cases() -> Any:
    for place, size, keep in _maps():
        yield (torch.randn(2, 21, 80), place, size), {"keep": keep}
        yield (torch.randn(2, 21, 12).bfloat16(), place, size), {"keep": keep}


@kernel_op(cases=_merge_cases, tolerance=Exact())
def merge_rows(x, place, size=None, *, keep):
    """The mean of the rows sent to each place, weighted by size: x [B, T, W] to [B, keep, W].

    place: i64 [B, T], every one of the `keep` places taken. Where all that comes has size 0, it
    counts alike.
    """
    into, rows = place.clamp(min=0), x.to(torch.promote_types(x.dtype, torch.float32))
    weight = torch.ones_like(rows[..., 0]) if size is None else size.to(rows.dtype)
    weight = torch.where(place < 0, 0, weight)
    empty = rows.new_zeros((x.shape[0], keep))
    total = empty.scatter_add(1, into, weight)
    alike = torch.where((place >= 0) & (total.gather(1, into) == 0), 1, weight)
    total = empty.scatter_add(1, into, alike)
    # a row that goes nowhere is not even multiplied: it may hold NaN
    weighted = torch.where((place < 0)[..., None], 0, rows * alike[..., None])
    spread = into[..., None].expand(rows.shape)
    summed = rows.new_zeros((x.shape[0], keep, x.shape[2])).scatter_add(1, spread, weighted)
    return (summed / total[..., None]).to(x.dtype)


@kernel_op(cases=lambda: (((p, s), {"keep": k}) for p, s, k in _maps()), tolerance=Exact())
def merge_sizes(place, size=None, *, keep):
    """The sum of the sizes sent to each place, f32 [B, keep]; without sizes, their number."""
    weight = torch.ones_like(place, dtype=torch.float32) if size is None else size
    empty = weight.new_zeros((place.shape[0], keep))
    return empty.scatter_add(1, place.clamp(min=0), torch.where(place < 0, 0, weight))


def _unmerge_cases() -> Any:
    for place, _, keep in _maps():
        for dtype in (torch.float32, torch.bfloat16):
            y, old = torch.randn(2, keep, 20).to(dtype), torch.randn(2, 21, 20).to(dtype)
            yield (y, place, old), {}
            if int(place.min()) >= 0:
                yield (y, place, None), {}


@kernel_op(cases=_unmerge_cases, tolerance=Exact())
def unmerge_rows(y, place, old=None):
    """Every token's row again, [B, T, W]: that of its place in y [B, K, W], or its old one
    [B, T, W] where it has none."""
    spread = place.clamp(min=0)[..., None].expand(*place.shape, y.shape[2])
    rows = y.gather(1, spread)
    return rows if old is None else torch.where((place < 0)[..., None], old, rows)


def merge_legal(
    target: Target, x: TensorType, place: TensorType, size: TensorType | None, *, keep: Size
) -> str | None:
    if x.dtype not in FLOATS or (size is not None and size.dtype is not torch.float32):
        return f"rows {x}, sizes {size}"
    return None if all(map(is_positive, x.shape)) else f"{x} may be empty"


@merge_rows.kernel(
    "cpu", legal=merge_legal, layouts={"x": contiguous, "place": contiguous, "size": contiguous}
)
def _merge(
    cfg: Config,
    target: Target,
    x: TensorType,
    place: TensorType,
    size: TensorType | None,
    *,
    keep: Size,
) -> Call:
    batch, tokens, width = x.shape
    numbers = (tokens, width, keep, _COLUMNS, ELEMENT[x.dtype])
    scratch = 4 * (_COLUMNS + 1) * round_up(keep, 16)
    tasks = batch * ceil_div(width, _COLUMNS)
    names = ("x", "place", size and "size", "out")
    return Call("infopt_merge_rows", names, numbers, tasks, scratch=scratch)


@merge_sizes.kernel("cpu", layouts={"place": contiguous, "size": contiguous})
def _sizes(
    cfg: Config, target: Target, place: TensorType, size: TensorType | None, *, keep: Size
) -> Call:
    batch, tokens = place.shape
    names = ("place", size and "size", "out")
    return Call("infopt_merge_sizes", names, (tokens, keep), batch)


def unmerge_legal(
    target: Target, y: TensorType, place: TensorType, old: TensorType | None
) -> str | None:
    return None if y.dtype in ELEMENT else f"rows {y}"


@unmerge_rows.kernel(
    "cpu", legal=unmerge_legal, layouts={"y": contiguous, "place": contiguous, "old": contiguous}
)
def _unmerge(
    cfg: Config, target: Target, y: TensorType, place: TensorType, old: TensorType | None
) -> Call:
    (batch, kept, width), tokens = y.shape, place.shape[1]
    numbers = (tokens, kept, width * y.dtype.itemsize, _ROWS)
    tasks = batch * ceil_div(tokens, _ROWS)
    return Call("infopt_unmerge_rows", ("y", "place", old and "old", "out"), numbers, tasks)
