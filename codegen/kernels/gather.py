"""Elements picked by index tensors; the text is csrc/gather.h, instantiated."""

from __future__ import annotations

from typing import Any

import torch

from infopt.codegen.kernel import Call, Config, aten_kernel
from infopt.codegen.kernels.rows import ceil_div
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

_TASK = 4096  # elements
_BITS = {1: "uint8_t", 2: "int16_t", 4: "int32_t", 8: "int64_t"}
_INDEX = {torch.int64: "int64_t", torch.int32: "int32_t"}
_RANK, _MOST = 6, 3
_ERROR = "index out of bounds: an index tensor points outside the dimension it selects from"


def _padded(values: list[Size]) -> list[Size]:
    return [0] * (_RANK - len(values)) + values


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
    sizes: list[Size] = [*[1] * (_RANK - out.rank), *out.shape]
    numbers = [_TASK, *sizes, *_padded(list(out.strides)), *_padded(moves), int(wrap)]
    for _, _, d, strides in indices:
        numbers += [x.shape[d], x.strides[d], *_padded(strides)]
    numbers += [0] * (8 * (_MOST - len(indices)))
    t, index = _BITS[x.dtype.itemsize], _INDEX[indices[0][1].dtype]
    symbol = f"gather_{t}_{index}"
    signature = f"INFOPT_EXPORT void {symbol}(const infopt_call *call, int64_t first, int64_t last)"
    names: list[str | None] = [i[0] for i in indices]
    names += [None] * (_MOST - len(indices))
    return Call(
        symbol,
        (name, *names, "out"),
        tuple(numbers),
        ceil_div(out.numel, _TASK),
        error=error,
        source=f"{signature} {{\n  gather<{t}, {index}>(call, first, last);\n}}\n",
        includes=("gather.h",),
    )


def _aligned(index: TensorType, rank: int) -> list[Size]:
    """Strides of an index tensor broadcast to `rank` dimensions."""
    own: list[Size] = [0 if n == 1 else s for n, s in zip(index.shape, index.strides, strict=True)]
    return [0] * (rank - index.rank) + own


def _reason(x: TensorType, indices: list[TensorType], rank: int) -> str | None:
    if x.dtype.itemsize not in _BITS or x.rank == 0 or rank > _RANK:
        return f"x is {x}"
    if not 1 <= len(indices) <= _MOST or any(i.dtype != indices[0].dtype for i in indices):
        return f"{len(indices)} index tensors"
    return None if indices[0].dtype in _INDEX else f"indices {indices[0]}"


def _gather_legal(target: Target, x: TensorType, index: TensorType, **attrs: Any) -> str | None:
    return "a 0-d index" if index.rank == 0 else _reason(x, [index], index.rank)


@aten_kernel("gather.default", legal=_gather_legal)
def _gather(cfg: Config, target: Target, x: TensorType, index: TensorType, **attrs: Any) -> Call:
    d = attrs["dim"] % x.rank
    moves = [0 if i == d else s for i, s in enumerate(x.strides)]
    picked = [("index", index, d, list(index.strides))]
    return gather_call(x, cfg.out, moves, picked, False, _ERROR)


def _select_legal(target: Target, x: TensorType, index: TensorType, **attrs: Any) -> str | None:
    return "a 0-d index" if index.rank != 1 else _reason(x, [index], x.rank)


@aten_kernel("index_select.default", legal=_select_legal)
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


def _index_legal(
    target: Target, x: TensorType, indices: tuple[TensorType | None, ...]
) -> str | None:
    return _reason(x, [i for i in indices if i is not None], _index_rank(x, indices))


@aten_kernel("index.Tensor", legal=_index_legal)
def _index(
    cfg: Config, target: Target, x: TensorType, indices: tuple[TensorType | None, ...]
) -> Call:
    out = cfg.out
    chosen = [d for d, i in enumerate(indices) if i is not None]
    block = max(i.rank for i in indices if i is not None)
    neighbours = chosen == list(range(chosen[0], chosen[0] + len(chosen)))
    start = chosen[0] if neighbours else 0  # where the indexed block stands in the result
    plain = [s for d, s in enumerate(x.strides) if d not in chosen]
    moves = [*plain[:start], *[0] * block, *plain[start:]]
    after = out.rank - start - block
    picked = []
    for d in chosen:
        index = indices[d]
        assert index is not None
        strides: list[Size] = [*[0] * start, *_aligned(index, block), *[0] * after]
        picked.append((f"indices{d}", index, d, strides))
    return gather_call(x, out, moves, picked, True, f"IndexError: {_ERROR}")
