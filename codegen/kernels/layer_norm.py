"""Layer norm over the last dimension, and the sum that usually comes before it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from infopt.codegen.kernel import Call, Config, aten_kernel, kernel_op
from infopt.codegen.kernels.rows import (
    ELEMENT,
    FLOATS,
    as_rows,
    ceil_div,
    contiguous,
    is_positive,
    round_up,
    row_strides,
)
from infopt.compiler.accuracy import Exact
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

FEW_ROWS = 4  # rows of one task


def _cases() -> Any:
    for dtype in (torch.float32, torch.bfloat16):
        x, residual = torch.randn(3, 5, 50, dtype=dtype), torch.randn(3, 5, 50, dtype=dtype)
        yield (
            (x, residual, torch.randn(50, dtype=dtype), torch.randn(50, dtype=dtype)),
            {"eps": 1e-5},
        )


@kernel_op(cases=_cases, tolerance=Exact())
def add_layer_norm(x, residual, weight=None, bias=None, *, eps):
    """(layer_norm(x + residual, weight, bias), x + residual) over the last dimension."""
    z = x + residual
    return F.layer_norm(z, z.shape[-1:], weight, bias, eps), z


def norm_reason(x: TensorType, *weights: TensorType | None) -> str | None:
    """None where the row kernels can normalise x."""
    if x.dtype not in FLOATS or x.rank < 1:
        return f"x is {x}"
    if not is_positive(x.shape[-1]):
        return "a width that may be 0"
    given = [w for w in weights if w is not None]
    if any(
        w.dtype not in FLOATS or w.dtype != given[0].dtype or w.shape != x.shape[-1:] for w in given
    ):
        return f"weights {', '.join(map(str, given))}"
    return None


def norm_call(
    symbol: str,
    pointers: tuple,
    x: TensorType,
    residual: TensorType | None,
    weight: TensorType | None,
    out: TensorType | None,
    total: TensorType | None,
    eps: float,
    last: tuple[Size | float, ...] = (0,),
    per_task: int = FEW_ROWS,
) -> Call:
    """The call of either norm; pointers: x, residual, weight, bias, out, sum.

    last: numbers 14 and on. per_task: rows
    """
    assert out is not None, "a norm that nobody reads"
    rows, y = as_rows(x), as_rows(out)
    assert rows is not None and y is not None
    r = as_rows(residual) if residual is not None else None
    z = as_rows(total) if total is not None else None
    element = ELEMENT[x.dtype]
    numbers: tuple[Size | float, ...] = (
        rows.count,
        rows.width,
        per_task,
        rows.stride,
        r.stride if r else 0,
        y.stride,
        z.stride if z else 0,
        float(eps),
        0,
        element,
        ELEMENT[residual.dtype] if residual else element,
        ELEMENT[weight.dtype] if weight else element,
        ELEMENT[out.dtype],
        element,
        *last,
    )
    return Call(
        symbol,
        pointers,
        numbers,
        ceil_div(rows.count, per_task),
        scratch=72 * round_up(rows.width, 16),
    )


def layer_norm_legal(
    target: Target, x: TensorType, weight: Any, bias: Any, *, normalized_shape: tuple, **attrs: Any
) -> str | None:
    if len(normalized_shape) != 1:
        return "several normalised dimensions"
    return norm_reason(x, weight, bias)


def add_layer_norm_legal(
    target: Target, x: TensorType, residual: TensorType, weight: Any, bias: Any, *, eps: float
) -> str | None:
    if (residual.shape, residual.dtype) != (x.shape, x.dtype):
        return "a residual of another type"
    return norm_reason(x, weight, bias)


LAYOUTS = {"input": row_strides, "x": row_strides, "residual": row_strides}
LAYOUTS |= {"weight": contiguous, "bias": contiguous}


@aten_kernel("layer_norm.default", legal=layer_norm_legal, layouts=LAYOUTS, over=("input",))
def _layer_norm(
    cfg: Config,
    target: Target,
    x: TensorType,
    weight: Any,
    bias: Any,
    *,
    normalized_shape: tuple,
    eps: float,
    cudnn_enable: bool,
) -> Call:
    pointers = ("input", None, weight and "weight", bias and "bias", "out", None)
    return norm_call("infopt_layer_norm", pointers, x, None, weight or bias, cfg.out, None, eps)


@add_layer_norm.kernel("cpu", legal=add_layer_norm_legal, layouts=LAYOUTS)
def _add_layer_norm(
    cfg: Config,
    target: Target,
    x: TensorType,
    residual: TensorType,
    weight: Any,
    bias: Any,
    *,
    eps: float,
) -> Call:
    out, total = cfg.outs
    pointers = ("x", "residual", weight and "weight", bias and "bias", "out0", total and "out1")
    return norm_call("infopt_layer_norm", pointers, x, residual, weight or bias, out, total, eps)
