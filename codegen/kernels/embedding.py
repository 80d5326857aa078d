"""Rows of a table by index."""

from __future__ import annotations

from typing import Any

import torch

from infopt.codegen.kernel import Call, Config, aten_kernel
from infopt.codegen.kernels.rows import ELEMENT, as_rows, ceil_div, contiguous, dense_last
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType

_ROWS = 16  # of one task


def _legal(target: Target, weight: TensorType, indices: TensorType, **attrs: Any) -> str | None:
    if weight.rank != 2 or weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"a table {weight}"
    return None if indices.dtype in (torch.int64, torch.int32) else f"indices {indices}"


@aten_kernel(
    "embedding.default", legal=_legal, layouts={"weight": dense_last, "indices": contiguous}
)
def _embedding(
    cfg: Config, target: Target, weight: TensorType, indices: TensorType, **attrs: Any
) -> Call:
    out = as_rows(cfg.out)
    assert out is not None
    numbers = (
        indices.numel,
        weight.shape[1],
        _ROWS,
        weight.shape[0],
        weight.strides[0],
        out.stride,
        ELEMENT[indices.dtype],
        ELEMENT[weight.dtype],
        ELEMENT[cfg.out.dtype],
    )
    return Call(
        "infopt_embedding",
        ("indices", "weight", "out"),
        numbers,
        ceil_div(indices.numel, _ROWS),
        error="IndexError: index out of range in self",
    )
