"""Layer norm whose rows are also rounded to bytes, in panels, while they are in cache."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from infopt.codegen.kernel import Call, Config, kernel_op
from infopt.codegen.kernels.layer_norm import LAYOUTS, norm_call, norm_reason
from infopt.codegen.kernels.rows import contiguous
from infopt.codegen.kernels.stored_calls import ROUNDED_BY_KERNELS, packed_bytes
from infopt.compiler.accuracy import Bounded
from infopt.compiler.integer_weight import rounded_rows
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

PANEL = 16  # rows of one task: a panel is written by one


@kernel_op(cases=lambda: (), tolerance=Bounded("rms_rel", 4e-3))
def packed_layer_norm(
    x,
    residual=None,
    weight=None,
    bias=None,
    factors=None,
    *,
    eps,
    rounding="int8",
    step=0.0,
    zero=0,
):
    """(y, y * factors rounded to bytes, z), f32: y = layer_norm(z, weight, bias), z = x + residual.

    x, residual  [..., K] f32. weight, bias  [K]. factors  [K] f32, None: 1
    rounding, step, zero  as in `byte_rows`. Those rows are in memory as bytes only, for layers
                 that take them packed
    """
    z = x if residual is None else x + residual
    y = F.layer_norm(z, z.shape[-1:], weight, bias, eps)
    scaled = y if factors is None else y * factors
    return y, rounded_rows(scaled, rounding, step, zero), z.clone()


def _legal(
    target: Target,
    x: TensorType,
    residual: TensorType | None,
    weight: Any,
    bias: Any,
    factors: Any,
    *,
    eps: float,
    rounding: str,
    step: float,
    zero: int,
) -> str | None:
    if x.dtype is not torch.float32 or (residual and residual.dtype is not torch.float32):
        return f"bytes of rows of {x.dtype}"
    if residual is not None and residual.shape != x.shape:
        return "a residual that is broadcast"
    if rounding not in ROUNDED_BY_KERNELS or (rounding == "int8-static") != (step > 0):
        return f"rows rounded as {rounding} with step {step}"
    if factors is not None and (factors.dtype, factors.shape) != (x.dtype, x.shape[-1:]):
        return f"factors {factors}"
    return norm_reason(x, weight, bias)


def _packed(x: TensorType, *rest: Any, **attrs: Any) -> tuple[Size | None, ...]:
    return None, packed_bytes(TensorType.dense(x.shape, x.dtype)), None


@packed_layer_norm.kernel(
    "cpu", legal=_legal, layouts=LAYOUTS | {"factors": contiguous}, packed=_packed
)
def _packed_layer_norm(
    cfg: Config,
    target: Target,
    x: TensorType,
    residual: TensorType | None,
    weight: Any,
    bias: Any,
    factors: Any,
    *,
    eps: float,
    rounding: str,
    step: float,
    zero: int,
) -> Call:
    out, packed, total = cfg.outs
    kept = out or TensorType.dense(x.shape, x.dtype)
    pointers = (
        *("x", residual and "residual", weight and "weight", bias and "bias"),
        *(out and "out0", total and "out2", factors and "factors", packed and "out1"),
    )
    how = (ROUNDED_BY_KERNELS.index(rounding), float(step), zero)
    return norm_call(
        *("infopt_layer_norm_bytes", pointers, x, residual, weight or bias, kept, total, eps),
        last=how,
        per_task=PANEL,
    )
