"""Counts of values in equal parts of a range; the text is csrc/histogram.h."""

from __future__ import annotations

from typing import Any

import torch

from infopt.codegen.kernel import Call, Config, aten_kernel
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType

_SYMBOL = "histogram_f32"
_TEXT = f"""INFOPT_EXPORT void {_SYMBOL}(const infopt_call *call, int64_t first, int64_t last) {{
  histogram(call, first, last);
}}
"""


def _legal(target: Target, x: TensorType, *, bins: Any, min: Any, max: Any) -> str | None:
    if x.dtype is not torch.float32 or x.rank != 1:
        return f"x is {x}"
    if not all(isinstance(v, int | float) for v in (bins, min, max)) or not min < max:
        return f"{bins} parts of the range from {min} to {max}"  # torch's default: that of x
    return None


@aten_kernel("histc.default", legal=_legal)
def _histogram(
    cfg: Config, target: Target, x: TensorType, *, bins: int, min: float, max: float
) -> Call:
    numbers = (x.shape[0], x.strides[0], bins, float(min), float(max))
    return Call(
        _SYMBOL, ("self", "out"), numbers, 1, 8 * bins, source=_TEXT, includes=("histogram.h",)
    )
