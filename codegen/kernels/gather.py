"""Elements picked or put by index tensors: csrc/gather.h and csrc/scatter.h, instantiated."""

from __future__ import annotations

from typing import Any

import torch

from infopt.codegen.kernel import Call, Config, aten_kernel
from infopt.codegen.kernels.rows import ELEMENT, ceil_div
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

_TASK = 4096  # elements
_BITS = {1: "uint8_t", 2: "int16_t", 4: "int32_t", 8: "int64_t"}
_INDEX = {torch.int64: "int64_t", torch.int32: "int32_t"}
RANK, MOST = 6, 3
_ERROR = "index out of bounds: an index tensor points outside the dimension it selects from"


def _padded(values: list[Size]) -> list[Size]:
    return [0] * (RANK - len(values)) + values


def gather_call(
    x: TensorType,
    out: TensorType,
    moves: list[Size],
    indices: list[tuple[str, TensorType, int, list[Size]]],
    wrap: bool,
    error: str,
    name: str = "self",
) -> Call:
    """moves: strides of x per dimension of out; indices: (parameter, type, dim of x, strides)."""
    shape, own = list(out.shape), list(out.strides)
    return _picking(
        "gather", name, x, (shape, own, moves), indices, wrap, error, ceil_div(out.numel, _TASK)
    )


def _picking(
    function: str,
    name: str,
    x: TensorType,
    loops: tuple[list[Size], list[Size], list[Size]],
    indices: list[tuple[str, TensorType, int, list[Size]]],
    wrap: bool,
    error: str,
    tasks: Size,
) -> Call:
    """loops: sizes, strides where there are no indices, and in x, which has the indexed dims."""
    shape, own, moves = loops
    sizes: list[Size] = [*[1] * (RANK - len(shape)), *shape]
    numbers = [_TASK, *sizes, *_padded(own), *_padded(moves), int(wrap)]
    for _, _, d, strides in indices:
        numbers += [x.shape[d], x.strides[d], *_padded(strides)]
    numbers += [0] * (8 * (MOST - len(indices)))
    t, index = _BITS[x.dtype.itemsize], _INDEX[indices[0][1].dtype]
    symbol = f"{function}_{t}_{index}"
    signature = f"INFOPT_EXPORT void {symbol}(const infopt_call *call, int64_t first, int64_t last)"
    names: list[str | None] = [i[0] for i in indices]
    names += [None] * (MOST - len(indices))
    return Call(
        symbol,
        (name, *names, "out"),
        tuple(numbers),
        tasks,
        error=error,
        source=f"{signature} {{\n  {function}<{t}, {index}>(call, first, last);\n}}\n",
        includes=(f"{function}.h",),
    )


def _aligned(index: TensorType, rank: int) -> list[Size]:
    """Strides of an index tensor broadcast to `rank` dimensions."""
    own: list[Size] = [0 if n == 1 else s for n, s in zip(index.shape, index.strides, strict=True)]
    return [0] * (rank - index.rank) + own


def _reason(x: TensorType, indices: list[TensorType], rank: int) -> str | None:
    if x.dtype.itemsize not in _BITS or x.rank == 0 or rank > RANK:
        return f"x is {x}"
    if not 1 <= len(indices) <= MOST or any(i.dtype != indices[0].dtype for i in indices):
        return f"{len(indices)} index tensors"
    return None if indices[0].dtype in _INDEX else f"indices {indices[0]}"


def gather_legal(target: Target, x: TensorType, index: TensorType, **attrs: Any) -> str | None:
    return "a 0-d index" if index.rank == 0 else _reason(x, [index], index.rank)


@aten_kernel("gather.default", legal=gather_legal)
def _gather(cfg: Config, target: Target, x: TensorType, index: TensorType, **attrs: Any) -> Call:
    d = attrs["dim"] % x.rank
    moves = [0 if i == d else s for i, s in enumerate(x.strides)]
    picked = [("index", index, d, list(index.strides))]
    return gather_call(x, cfg.out, moves, picked, False, _ERROR)


def select_legal(target: Target, x: TensorType, index: TensorType, **attrs: Any) -> str | None:
    return "a 0-d index" if index.rank != 1 else _reason(x, [index], x.rank)


@aten_kernel("index_select.default", legal=select_legal)
def _index_select(
    cfg: Config, target: Target, x: TensorType, index: TensorType, **attrs: Any
) -> Call:
    d = attrs["dim"] % x.rank
    moves = [0 if i == d else s for i, s in enumerate(x.strides)]
    strides: list[Size] = [0] * x.rank
    strides[d] = index.strides[0]
    return gather_call(
        x, cfg.out, moves, [("index", index, d, strides)], False, f"IndexError: {_ERROR}"
    )


def _index_rank(x: TensorType, indices: tuple[TensorType | None, ...]) -> int:
    given = [i for i in indices if i is not None]
    return x.rank - len(given) + max((i.rank for i in given), default=0)


def index_legal(
    target: Target, x: TensorType, indices: tuple[TensorType | None, ...]
) -> str | None:
    return _reason(x, [i for i in indices if i is not None], _index_rank(x, indices))


def _broadcast_size(tensors: list[TensorType], back: int) -> Size:
    """Of the dimension `back` from the end of tensors broadcast together."""
    sizes = [t.shape[t.rank - back] for t in tensors if t.rank >= back]
    return next((n for n in sizes if n != 1), 1)


def indexed(
    x: TensorType, indices: tuple[TensorType | None, ...]
) -> tuple[list[Size], list[Size], list[tuple[str, TensorType, int, list[Size]]]]:
    """Sizes of x[indices], its strides in x where no index moves, and the indices' own."""
    chosen = [d for d, i in enumerate(indices) if i is not None]
    given = [i for i in indices if i is not None]
    block = max(i.rank for i in given)
    neighbours = chosen == list(range(chosen[0], chosen[0] + len(chosen)))
    start = chosen[0] if neighbours else 0  # where the indexed block stands in the result
    plain = [d for d in range(x.rank) if d not in chosen]
    common = [_broadcast_size(given, block - d) for d in range(block)]
    shape = [*[x.shape[d] for d in plain[:start]], *common, *[x.shape[d] for d in plain[start:]]]
    strides = [x.strides[d] for d in plain]
    moves: list[Size] = [*strides[:start], *[0] * block, *strides[start:]]
    after = len(moves) - start - block
    picked = []
    for d, index in zip(chosen, given, strict=True):
        own: list[Size] = [*[0] * start, *_aligned(index, block), *[0] * after]
        picked.append((f"indices{d}", index, d, own))
    return shape, moves, picked


@aten_kernel("index.Tensor", legal=index_legal)
def _index(
    cfg: Config, target: Target, x: TensorType, indices: tuple[TensorType | None, ...]
) -> Call:
    _, moves, picked = indexed(x, indices)
    return gather_call(x, cfg.out, moves, picked, True, f"IndexError: {_ERROR}")


def _put_legal(
    target: Target,
    x: TensorType,
    indices: tuple[TensorType | None, ...],
    values: TensorType,
    *,
    accumulate: bool,
) -> str | None:
    if accumulate:
        return "values that are added"
    if values.dtype != x.dtype or x.dtype not in ELEMENT:
        return f"values {values}"
    return index_legal(target, x, indices)


@aten_kernel("index_put.default", legal=_put_legal)
def _index_put(
    cfg: Config,
    target: Target,
    x: TensorType,
    indices: tuple[TensorType | None, ...],
    values: TensorType,
    *,
    accumulate: bool,
) -> list[Call]:
    out = cfg.out
    shape, moves, picked = indexed(out, indices)
    own = _aligned(values, len(shape))
    error = f"IndexError: {_ERROR}"
    put = _picking("scatter", "values", out, (shape, own, moves), picked, True, error, 1)
    return [_copied(x, out, target), put]


def _copied(x: TensorType, out: TensorType, target: Target) -> Call:
    """x as it was, where nothing is put."""
    code, tasks, fill = ELEMENT[x.dtype], 4 * target.cores, [0] * (RANK - x.rank)
    numbers = (x.rank, code, code, tasks, *x.shape, *fill, *x.strides, *fill, *out.strides, *fill)
    return Call("infopt_copy", ("self", "out"), numbers, tasks)
