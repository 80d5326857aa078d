"""Sums, means, extremes, any and all over dimensions; the text is csrc/reduce.h, instantiated."""

from __future__ import annotations

from typing import Any

import torch

from infopt.codegen.expression import MEMORY_TYPES
from infopt.codegen.kernel import Call, Config, aten_kernel
from infopt.codegen.kernels.rows import FLOATS, ceil_div
from infopt.codegen.sizes import product, same_stride
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

_OPS = {
    "sum": "SumOf",
    "mean": "SumOf",
    "amax": "GreatestOf",
    "amin": "LeastOf",
    "any": "AnyOf",
    "all": "AllOf",
}
_TASK_TERMS = 16384  # elements that one task reads, about


def reduced_dims(x: TensorType, attrs: dict[str, Any]) -> tuple[int, ...]:
    dim = attrs.get("dim")
    if dim is None or dim == ():
        return tuple(range(x.rank))
    return (
        tuple(sorted({d % x.rank for d in (dim if isinstance(dim, tuple) else (dim,))}))
        if x.rank
        else ()
    )


Dims = list[tuple[Size, Size, Size]]


def _merged(dims: Dims) -> Dims:
    """(size, stride in x, stride in out), neighbours without gaps made one, size 1 left out."""
    made: Dims = []
    for n, s, o in dims:
        if n == 1:
            continue
        if made and same_stride(made[-1][1], s * n) and same_stride(made[-1][2], o * n):
            made[-1] = (product((made[-1][0], n)), s, o)
        else:
            made.append((n, s, o))
    return made


def split_dims(x: TensorType, dims: tuple[int, ...]) -> tuple[Dims, Dims]:
    """Kept and reduced dimensions, the result contiguous."""
    kept: Dims = []
    step: Size = 1
    for d in range(x.rank - 1, -1, -1):
        if d not in dims:
            kept.insert(0, (x.shape[d], x.strides[d], step))
            step = step * x.shape[d]
    return _merged(kept), _merged([(x.shape[d], x.strides[d], 0) for d in dims])


def legal_reduction(name: str, target: Target, x: TensorType, attrs: dict[str, Any]) -> str | None:
    if x.dtype not in MEMORY_TYPES or x.rank == 0:
        return f"x is {x}"
    out = attrs.get("dtype")
    if name == "mean" and not x.is_float:
        return f"the mean of {x.dtype}"
    if out is not None and out != x.dtype:
        return f"from {x.dtype} to {out}"
    if name in ("any", "all") and x.dtype is torch.uint8:
        return f"{name} of uint8 is uint8"
    if name in ("amax", "amin") and x.dtype is torch.bool:
        return "extremes of bools"
    kept, reduced = split_dims(x, reduced_dims(x, attrs))
    return None if len(kept) <= 4 and len(reduced) <= 3 else "too many dimensions"


def result_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    if name in ("any", "all"):
        return torch.bool
    return torch.int64 if name == "sum" and not dtype.is_floating_point else dtype


def reduce_call(name: str, symbol_of: str, x: TensorType, dims: tuple[int, ...]) -> Call:
    """name: sum, mean ...; symbol_of: the parameter that is reduced."""
    kept, reduced = split_dims(x, dims)
    out = result_dtype(name, x.dtype)
    mean = "true" if name == "mean" else "false"
    t, o, op = MEMORY_TYPES[x.dtype], MEMORY_TYPES[out], _OPS[name]
    vector = x.dtype in FLOATS and name not in ("any", "all")
    along = bool(reduced) and reduced[-1][1] == 1
    across = bool(kept) and kept[-1][1] == 1 and not along
    if vector and (along or across):
        kind = "along" if along else "across"
        function = f"reduce_{kind}<{t}, {o}, {op}, {mean}>"
    else:
        total = "bool" if name in ("any", "all") else "double" if x.is_float else "int64_t"
        function = f"reduce_scalar<{t}, {o}, {total}, {op}, {mean}>"
        across = False
    terms = product([n for n, _, _ in reduced])
    outputs: Size = product([n for n, _, _ in kept])
    if across:
        outputs = product([n for n, _, _ in kept[:-1]]) * ceil_div(kept[-1][0], 64)
    per_task = max(1, _TASK_TERMS // max(1, terms)) if isinstance(terms, int) else 16
    kept = [(1, 0, 0)] * (4 - len(kept)) + kept
    reduced = [(1, 0, 0)] * (3 - len(reduced)) + reduced
    numbers = (
        per_task,
        *[k[0] for k in kept],
        *[k[1] for k in kept],
        *[k[2] for k in kept],
        *[r[0] for r in reduced],
        *[r[1] for r in reduced],
    )
    symbol = "reduce_" + "".join(c if c.isalnum() else "_" for c in f"{name}_{function[7:]}")
    signature = f"INFOPT_EXPORT void {symbol}(const infopt_call *call, int64_t first, int64_t last)"
    return Call(
        symbol,
        (symbol_of, "out"),
        numbers,
        ceil_div(outputs, per_task),
        source=f"{signature} {{\n  {function}(call, first, last);\n}}\n",
        includes=("reduce.h",),
    )


def _declare(overload: str) -> None:
    name = overload.partition(".")[0]

    def legal(target: Target, x: TensorType, **attrs: Any) -> str | None:
        return legal_reduction(name, target, x, attrs)

    @aten_kernel(overload, legal=legal)
    def emit(cfg: Config, target: Target, x: TensorType, **attrs: Any) -> Call:
        return reduce_call(name, "self", x, reduced_dims(x, attrs))


for _name in (
    "sum.default",
    "sum.dim_IntList",
    "mean.default",
    "mean.dim",
    "amax.default",
    "amin.default",
    "any.default",
    "any.dim",
    "any.dims",
    "all.default",
    "all.dim",
    "all.dims",
):
    _declare(_name)
