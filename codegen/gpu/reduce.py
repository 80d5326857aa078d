"""Sums, means, extremes, any, all and 2-norms over dimensions: tiles of results by terms.

Floats are summed in f32 (f64 in f64), integers in i64. A program makes OUTS results alone, so one
long sum is not for it: torch's own kernel splits that over the whole GPU.
"""

from __future__ import annotations

from typing import Any

import torch

from infopt.codegen.gpu.text import HEADER, launch
from infopt.codegen.kernel import Config, aten_kernel
from infopt.codegen.kernels.reduce import legal_reduction, reduced_dims, result_dtype, split_dims
from infopt.codegen.kernels.rows import ceil_div
from infopt.codegen.launch import Launch, Pointer
from infopt.codegen.sizes import product
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

SOURCE = (
    HEADER
    + '''

@triton.jit
def greatest(a, b):
    """NaN wins."""
    return tl.where(a != a, a, tl.where((b > a) | (b != b), b, a))


@triton.jit
def least(a, b):
    return tl.where(a != a, a, tl.where((b < a) | (b != b), b, a))


@triton.jit
def reduce_dims(x, out, outs, terms, k1, k2, k3, s0, s1, s2, s3, r1, r2, t0, t1, t2,
                OP: tl.constexpr, TOTAL: tl.constexpr, START: tl.constexpr,
                KEPT: tl.constexpr, REDUCED: tl.constexpr,
                OUTS: tl.constexpr, TERMS: tl.constexpr):
    """out[i] = OP over terms of x; k, s: sizes and strides of results, r, t: those of terms."""
    i = tl.program_id(0).to(tl.int64) * OUTS + tl.arange(0, OUTS)[:, None]
    rest = i
    base = i * 0
    if KEPT > 3:
        base += (rest % k3) * s3
        rest = rest // k3
    if KEPT > 2:
        base += (rest % k2) * s2
        rest = rest // k2
    if KEPT > 1:
        base += (rest % k1) * s1
        rest = rest // k1
    base += rest * s0
    if TOTAL == "float64":
        acc = tl.full((OUTS, TERMS), START, tl.float64)
    elif TOTAL == "int64":
        acc = tl.full((OUTS, TERMS), START, tl.int64)
    else:
        acc = tl.full((OUTS, TERMS), START, tl.float32)
    for first in range(0, terms, TERMS):
        t = first + tl.arange(0, TERMS)[None, :].to(tl.int64)
        inside = (i < outs) & (t < terms)
        left = t
        at = base + left * 0
        if REDUCED > 2:
            at += (left % r2) * t2
            left = left // r2
        if REDUCED > 1:
            at += (left % r1) * t1
            left = left // r1
        v = tl.load(x + (at + left * t0), mask=inside, other=0)
        if OP == "any" or OP == "all":
            v = v != 0
        v = v.to(acc.dtype)
        if OP == "norm":
            v = v * v
        v = tl.where(inside, v, START)
        if OP == "amax":
            acc = greatest(acc, v)
        elif OP == "amin":
            acc = least(acc, v)
        elif OP == "any":
            acc = tl.maximum(acc, v)
        elif OP == "all":
            acc = tl.minimum(acc, v)
        else:
            acc += v
    if OP == "amax":
        result = tl.reduce(acc, 1, greatest)
    elif OP == "amin":
        result = tl.reduce(acc, 1, least)
    elif OP == "any":
        result = tl.max(acc, 1)
    elif OP == "all":
        result = tl.min(acc, 1)
    else:
        result = tl.sum(acc, 1)
    if OP == "mean":
        result = result / terms
    elif OP == "norm":
        if TOTAL == "float64":
            result = tl.sqrt(result)
        else:
            result = tl.sqrt_rn(result)
    place = tl.program_id(0).to(tl.int64) * OUTS + tl.arange(0, OUTS)
    tl.store(out + place, result.to(out.dtype.element_ty), mask=place < outs)
'''
)
TILE = 1024  # elements that a program reads at a time
LONG = 1 << 16  # terms of one result that are too many for a program
FEW = 64  # results that do not fill a GPU


def _legal(name: str, target: Target, x: TensorType, attrs: dict[str, Any]) -> str | None:
    if name == "norm":
        if attrs.get("ord", 2) != 2 or not x.is_float:
            return f"the norm of order {attrs.get('ord')} of {x.dtype}"
        reason = legal_reduction("sum", target, x, attrs)
    else:
        reason = legal_reduction(name, target, x, attrs)
    if reason is not None:
        return reason
    kept, reduced = split_dims(x, reduced_dims(x, attrs))
    outs, terms = product([n for n, _, _ in kept]), product([n for n, _, _ in reduced])
    if isinstance(outs, int) and outs < FEW and (not isinstance(terms, int) or terms > LONG):
        return f"{outs} results of many terms: one program would read them all"
    return None


def reduce_launch(name: str, x: TensorType, out: torch.dtype, dims: tuple[int, ...]) -> Launch:
    """name: sum, mean, amax, amin, any, all or norm."""
    kept, reduced = split_dims(x, dims)
    outs, terms = product([n for n, _, _ in kept]), product([n for n, _, _ in reduced])
    along = bool(reduced) and reduced[-1][1] == 1
    width = _power_of_two(terms) if isinstance(terms, int) else 256
    tile = min(width, TILE) if along or not kept else min(width, TILE // FEW)
    rows = max(1, min(TILE // tile, _power_of_two(outs) if isinstance(outs, int) else FEW))
    total = "int64" if not x.is_float else "float64" if x.dtype is torch.float64 else "float32"
    start: float | int = {"amax": -float("inf"), "amin": float("inf"), "all": 1}.get(name, 0)
    if total == "int64" and name in ("amax", "amin"):
        info = torch.iinfo(x.dtype)
        start = info.min if name == "amax" else info.max
    ranks = max(1, len(kept)), max(1, len(reduced))
    kept += [(1, 0, 0)] * (4 - len(kept))
    reduced += [(1, 0, 0)] * (3 - len(reduced))
    return launch(
        SOURCE,
        "reduce_dims",
        grid=(ceil_div(outs, rows),),
        x=Pointer("self", x.dtype),
        out=Pointer("out", out),
        outs=outs,
        terms=terms,
        **{f"k{d}": kept[d][0] for d in (1, 2, 3)},
        **{f"s{d}": kept[d][1] for d in range(4)},
        **{f"r{d}": reduced[d][0] for d in (1, 2)},
        **{f"t{d}": reduced[d][1] for d in range(3)},
        OP=name,
        TOTAL=total,
        START=start,
        KEPT=ranks[0],
        REDUCED=ranks[1],
        OUTS=rows,
        TERMS=tile,
    )


def _power_of_two(value: Size) -> int:
    assert isinstance(value, int)
    return 1 << max(0, value - 1).bit_length()


def _declare(overload: str, name: str) -> None:
    def legal(target: Target, x: TensorType, **attrs: Any) -> str | None:
        return _legal(name, target, x, attrs)

    @aten_kernel(overload, kind="gpu", legal=legal)
    def emit(cfg: Config, target: Target, x: TensorType, **attrs: Any) -> Launch:
        out = x.dtype if name == "norm" else result_dtype(name, x.dtype)
        return reduce_launch(name, x, out, reduced_dims(x, attrs))


for _overload in (
    *("sum.default", "sum.dim_IntList", "mean.default", "mean.dim", "amax.default"),
    *("amin.default", "any.default", "any.dim", "any.dims", "all.default", "all.dim", "all.dims"),
):
    _declare(_overload, _overload.partition(".")[0])
_declare("linalg_vector_norm.default", "norm")
