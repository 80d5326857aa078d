"""RMS norm over the last dimension, with the dtypes of Llama's and Gemma's."""

from __future__ import annotations

from typing import Any

import torch

from infopt.codegen.kernel import Call, Config, aten_kernel, kernel_op
from infopt.codegen.kernels.layer_norm import FEW_ROWS, norm_call, norm_reason
from infopt.codegen.kernels.rows import contiguous, row_strides
from infopt.compiler.accuracy import Exact
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType

__all__ = ["FEW_ROWS", "add_rms_norm", "rms_norm"]


def _cases() -> Any:
    x, w = torch.randn(7, 50), torch.randn(50)
    yield (x, w), {"eps": 1e-6, "offset": 0.0, "cast_first": False}
    yield (x, w), {"eps": 1e-6, "offset": 1.0, "cast_first": False}
    half = (x.bfloat16(), w.bfloat16())
    yield half, {"eps": 1e-5, "offset": 0.0, "cast_first": True}
    yield half, {"eps": 1e-5, "offset": 1.0, "cast_first": False}


def _norm(
    x: torch.Tensor, weight: Any, eps: float, offset: float, cast_first: bool
) -> torch.Tensor:
    h = x if x.dtype is torch.float64 else x.to(torch.float32)
    h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    if cast_first:
        h = h.to(x.dtype)
    if weight is not None:
        w = weight.to(h.dtype)
        h = h * (w + offset if offset else w)
    return h.to(x.dtype)


@kernel_op(cases=_cases, tolerance=Exact())
def rms_norm(x, weight=None, *, eps, offset=0.0, cast_first=False):
    """x / sqrt(mean(x²) + eps) * (weight + offset), computed in f32, the result in x's dtype.

    cast_first: the normalised value is rounded to x's dtype before the weight (Llama), else after.
    """
    return _norm(x, weight, eps, offset, cast_first)


def _add_cases() -> Any:
    for (x, w), attrs in _cases():
        yield (x, torch.randn_like(x), w), attrs


@kernel_op(cases=_add_cases, tolerance=Exact())
def add_rms_norm(x, residual, weight=None, *, eps, offset=0.0, cast_first=False):
    """(rms_norm(x + residual, weight), x + residual)"""
    z = x + residual
    return _norm(z, weight, eps, offset, cast_first), z


def rms_norm_legal(
    target: Target, x: TensorType, weight: Any, *, eps: float, offset: float, cast_first: bool
) -> str | None:
    if offset not in (0.0, 1.0):
        return f"offset {offset}, expected 0 or 1"
    if offset and cast_first and x.dtype is not torch.float32:
        return "1 + weight rounded to 16 bits"
    return norm_reason(x, weight)


def add_rms_norm_legal(
    target: Target, x: TensorType, residual: TensorType, weight: Any, **attrs: Any
) -> str | None:
    if (residual.shape, residual.dtype) != (x.shape, x.dtype):
        return "a residual of another type"
    return rms_norm_legal(target, x, weight, **attrs)


LAYOUTS = {"x": row_strides, "residual": row_strides, "input": row_strides}
LAYOUTS |= {"weight": contiguous}


@rms_norm.kernel("cpu", legal=rms_norm_legal, layouts=LAYOUTS, over=("x",))
def _rms_norm(
    cfg: Config,
    target: Target,
    x: TensorType,
    weight: Any,
    *,
    eps: float,
    offset: float,
    cast_first: bool,
) -> Call:
    last = (0, int(cast_first), int(offset == 1.0))
    pointers = ("x", None, weight and "weight", None, "out", None)
    return norm_call("infopt_rms_norm", pointers, x, None, weight, cfg.out, None, eps, last)


@add_rms_norm.kernel("cpu", legal=add_rms_norm_legal, layouts=LAYOUTS)
def _add_rms_norm(
    cfg: Config,
    target: Target,
    x: TensorType,
    residual: TensorType,
    weight: Any,
    *,
    eps: float,
    offset: float,
    cast_first: bool,
) -> Call:
    out, total = cfg.outs
    last = (0, int(cast_first), int(offset == 1.0))
    pointers = ("x", "residual", weight and "weight", None, "out0", total and "out1")
    return norm_call("infopt_rms_norm", pointers, x, residual, weight, out, total, eps, last)


def aten_rms_norm_legal(
    target: Target, x: TensorType, weight: Any, *, normalized_shape: tuple, eps: Any
) -> str | None:
    if len(normalized_shape) != 1 or eps is None:
        return "several dimensions, or eps of the dtype"
    return norm_reason(x, weight)


@aten_kernel("rms_norm.default", legal=aten_rms_norm_legal, layouts=LAYOUTS, over=("input",))
def _aten_rms_norm(
    cfg: Config, target: Target, x: TensorType, weight: Any, *, normalized_shape: tuple, eps: float
) -> Call:
    pointers = ("input", None, weight and "weight", None, "out", None)
    return norm_call("infopt_rms_norm", pointers, x, None, weight, cfg.out, None, eps, (0, 0, 0))
