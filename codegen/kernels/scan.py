"""Running sums along a dimension; the text is csrc/scan.h, instantiated."""

from __future__ import annotations

from typing import Any

import torch

from infopt.codegen.expression import MEMORY_TYPES
from infopt.codegen.kernel import Call, Config, aten_kernel
from infopt.codegen.sizes import product
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

_WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# What is cast before it is summed, to which whole numbers.
_CAST = {torch.int64: _WHOLE, torch.int32: (torch.float32, *_WHOLE)}


def _legal(target: Target, x: TensorType, *, dim: int, dtype: Any) -> str | None:
    if x.dtype not in MEMORY_TYPES or (dtype is not None and dtype not in MEMORY_TYPES):
        return f"from {x.dtype} to {dtype}"
    whole = dtype in (torch.int64, torch.int32)
    if dtype is not None and dtype != x.dtype and not (whole and x.dtype in _CAST[dtype]):
        return f"from {x.dtype} to {dtype}"
    return None if 1 <= x.rank <= 5 else f"{x.rank} dimensions"


@aten_kernel("cumsum.default", legal=_legal)
def _cumsum(cfg: Config, target: Target, x: TensorType, *, dim: int, dtype: Any) -> Call:
    out, d = cfg.out, dim % x.rank
    others = [i for i in range(x.rank) if i != d]
    fill = 4 - len(others)
    sizes: list[Size] = [*[1] * fill, *[x.shape[i] for i in others]]
    numbers = [x.shape[d], x.strides[d], out.strides[d], *sizes]
    for t in (x, out):
        numbers += [*[0] * fill, *[t.strides[i] for i in others]]
    total = "double" if out.is_float else "int64_t"
    arguments = f"{MEMORY_TYPES[x.dtype]}, {MEMORY_TYPES[out.dtype]}, {total}"
    symbol = "running_sum_" + arguments.replace(", ", "_")
    signature = f"INFOPT_EXPORT void {symbol}(const infopt_call *call, int64_t first, int64_t last)"
    return Call(
        symbol,
        ("self", "out"),
        tuple(numbers),
        product(sizes),
        source=f"{signature} {{\n  running_sum<{arguments}>(call, first, last);\n}}\n",
        includes=("scan.h",),
    )
