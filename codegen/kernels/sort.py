"""Rows in order, and the first of them; the text is csrc/sort.h, instantiated."""

from __future__ import annotations

from typing import Any

import torch

from infopt.codegen.expression import MEMORY_TYPES
from infopt.codegen.kernel import Call, Config, aten_kernel
from infopt.codegen.sizes import product
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType


def _reason(x: TensorType) -> str | None:
    if x.dtype not in MEMORY_TYPES or x.dtype is torch.bool:
        return f"x is {x}"
    return None if 1 <= x.rank <= 5 else f"{x.rank} dimensions"


def _call(
    function: str, cfg: Config, x: TensorType, dim: int, flags: tuple[Size | float, ...]
) -> Call:
    values, indices = cfg.outs
    d = dim % x.rank
    others = [i for i in range(x.rank) if i != d]
    fill = 4 - len(others)
    sizes: list[Size] = [*[1] * fill, *[x.shape[i] for i in others]]
    numbers: list[Size | float] = [x.shape[d]]
    numbers += [0 if t is None else t.strides[d] for t in (x, values, indices)]
    numbers += sizes
    for t in (x, values, indices):
        numbers += [0] * 4 if t is None else [*[0] * fill, *[t.strides[i] for i in others]]
    element = MEMORY_TYPES[x.dtype]
    symbol = f"{function}_{element}"
    signature = f"INFOPT_EXPORT void {symbol}(const infopt_call *call, int64_t first, int64_t last)"
    return Call(
        symbol,
        ("self", values and "out0", indices and "out1"),
        (*numbers, *flags),
        product(sizes),
        scratch=16 * x.shape[d],
        source=f"{signature} {{\n  {function}<{element}>(call, first, last);\n}}\n",
        includes=("sort.h",),
    )


def _sort_legal(target: Target, x: TensorType, **attrs: Any) -> str | None:
    return _reason(x)


@aten_kernel("sort.default", "sort.stable", legal=_sort_legal)
def _sort(
    cfg: Config,
    target: Target,
    x: TensorType,
    *,
    dim: int = -1,
    descending: bool = False,
    stable: bool | None = None,
) -> Call:
    return _call("sort_rows", cfg, x, dim, (int(descending), int(bool(stable))))


def _topk_legal(target: Target, x: TensorType, *, k: Any, **attrs: Any) -> str | None:
    return _reason(x) if isinstance(k, int) and k > 0 else f"k is {k}"


@aten_kernel("topk.default", legal=_topk_legal)
def _topk(
    cfg: Config,
    target: Target,
    x: TensorType,
    *,
    k: int,
    dim: int = -1,
    largest: bool = True,
    sorted: bool = True,
) -> Call:
    return _call("top_k", cfg, x, dim, (int(largest), k, int(sorted)))
