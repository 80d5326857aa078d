"""Elements picked by index tensors, on a GPU.

An index that x does not have gives NaN, or 0 where there is none: a kernel cannot raise. Putting
elements is torch's: what several programs write to one place would be any of it.
"""

from __future__ import annotations

from typing import Any

from infopt.codegen.gpu.text import HEADER, launch
from infopt.codegen.kernel import Config, aten_kernel
from infopt.codegen.kernels.gather import (
    MOST,
    RANK,
    gather_legal,
    index_legal,
    indexed,
    select_legal,
)
from infopt.codegen.kernels.rows import ceil_div
from infopt.codegen.launch import Launch, Pointer
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

SOURCE = (
    HEADER
    + '''

@triton.jit
def picked(at, there, index, inside, height, stride, moves, WRAP: tl.constexpr):
    """`at` moved by one index tensor, and where such a place exists."""
    if index is not None:
        place = tl.load(index + moves, mask=inside, other=0).to(tl.int64)
        if WRAP:
            place = tl.where(place < 0, place + height, place)
        there = there & (place >= 0) & (place < height)
        at += place * stride
    return at, there


@triton.jit
def gather_elements(x, i0, i1, i2, out, count, n1, n2, n3, n4, n5, m0, m1, m2, m3, m4, m5,
                    height0, stride0, a0, a1, a2, a3, a4, a5,
                    height1, stride1, b0, b1, b2, b3, b4, b5,
                    height2, stride2, c0, c1, c2, c3, c4, c5,
                    WRAP: tl.constexpr, RANK: tl.constexpr, FAR: tl.constexpr,
                    BLOCK: tl.constexpr):
    """BLOCK elements of the result; n: its sizes, m: what they move in x, a, b, c: in the index
    tensors, which have `height` rows of x to choose from, `stride` apart."""
    first = tl.program_id(0)
    if FAR:
        first = first.to(tl.int64)
    flat = first * BLOCK + tl.arange(0, BLOCK)
    inside = flat < count
    rest = flat
    d5 = rest % n5
    rest = rest // n5
    d0, d1, d2, d3, d4 = d5 * 0, d5 * 0, d5 * 0, d5 * 0, rest
    if RANK > 2:
        d4 = rest % n4
        rest = rest // n4
        d3 = rest
    if RANK > 3:
        d3 = rest % n3
        rest = rest // n3
        d2 = rest
    if RANK > 4:
        d2 = rest % n2
        rest = rest // n2
        d1 = rest
    if RANK > 5:
        d1 = rest % n1
        d0 = rest // n1
    d0, d1, d2 = d0.to(tl.int64), d1.to(tl.int64), d2.to(tl.int64)
    d3, d4, d5 = d3.to(tl.int64), d4.to(tl.int64), d5.to(tl.int64)
    at = d0 * m0 + d1 * m1 + d2 * m2 + d3 * m3 + d4 * m4 + d5 * m5
    there = inside
    moves = d0 * a0 + d1 * a1 + d2 * a2 + d3 * a3 + d4 * a4 + d5 * a5
    at, there = picked(at, there, i0, inside, height0, stride0, moves, WRAP)
    moves = d0 * b0 + d1 * b1 + d2 * b2 + d3 * b3 + d4 * b4 + d5 * b5
    at, there = picked(at, there, i1, inside, height1, stride1, moves, WRAP)
    moves = d0 * c0 + d1 * c1 + d2 * c2 + d3 * c3 + d4 * c4 + d5 * c5
    at, there = picked(at, there, i2, inside, height2, stride2, moves, WRAP)
    if x.dtype.element_ty.is_floating():
        y = tl.load(x + at, mask=there, other=float("nan"))
    else:
        y = tl.load(x + at, mask=there, other=0)
    tl.store(out + flat, y, mask=inside)
'''
)
_BLOCK = 1024


def gather_launch(
    x: TensorType,
    out: TensorType,
    moves: list[Size],
    indices: list[tuple[str, TensorType, int, list[Size]]],
    wrap: bool,
    name: str = "self",
) -> Launch:
    """moves: strides of x per dimension of out; indices: (parameter, type, dim of x, strides)."""

    def padded(values: list[Size], fill: int = 0) -> list[Size]:
        return [fill] * (RANK - len(values)) + values

    named: dict[str, Any] = {"x": Pointer(name, x.dtype)}
    named |= {f"i{i}": Pointer(p, t.dtype) for i, (p, t, _, _) in enumerate(indices)}
    named |= {f"i{i}": None for i in range(len(indices), MOST)}
    named |= {"out": Pointer("out", out.dtype), "count": out.numel}
    named |= {f"n{i}": n for i, n in enumerate(padded(list(out.shape), 1)) if i}
    named |= {f"m{i}": m for i, m in enumerate(padded(moves))}
    for i in range(MOST):
        height, stride, strides = 1, 0, padded([])
        if i < len(indices):
            _, _, d, own = indices[i]
            height, stride, strides = x.shape[d], x.strides[d], padded(own)
        named |= {f"height{i}": height, f"stride{i}": stride}
        named |= {f"{'abc'[i]}{j}": s for j, s in enumerate(strides)}
    far = not (isinstance(out.numel, int) and out.numel < 2**31)
    return launch(
        SOURCE,
        "gather_elements",
        grid=(ceil_div(out.numel, _BLOCK),),
        **named,
        WRAP=wrap,
        RANK=len(out.shape),
        FAR=far,
        BLOCK=_BLOCK,
    )


@aten_kernel("gather.default", kind="gpu", legal=gather_legal)
def _gather(cfg: Config, target: Target, x: TensorType, index: TensorType, **attrs: Any) -> Launch:
    d = attrs["dim"] % x.rank
    moves = [0 if i == d else s for i, s in enumerate(x.strides)]
    return gather_launch(x, cfg.out, moves, [("index", index, d, list(index.strides))], False)


@aten_kernel("index_select.default", kind="gpu", legal=select_legal)
def _select(cfg: Config, target: Target, x: TensorType, index: TensorType, **attrs: Any) -> Launch:
    d = attrs["dim"] % x.rank
    moves = [0 if i == d else s for i, s in enumerate(x.strides)]
    strides: list[Size] = [index.strides[0] if i == d else 0 for i in range(x.rank)]
    return gather_launch(x, cfg.out, moves, [("index", index, d, strides)], False)


@aten_kernel("index.Tensor", kind="gpu", legal=index_legal)
def _index(
    cfg: Config, target: Target, x: TensorType, indices: tuple[TensorType | None, ...]
) -> Launch:
    _, moves, picked = indexed(x, indices)
    return gather_launch(x, cfg.out, moves, picked, True)
