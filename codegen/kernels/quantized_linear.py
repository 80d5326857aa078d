"""Linear layers whose weight is stored in few bits, with activations as they are or in int8."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from infopt.codegen.kernel import Call, Config, kernel_op
from infopt.codegen.kernels.linear import ACTIVATIONS, TILING, activate
from infopt.codegen.kernels.rows import dense_last, is_positive, row_strides
from infopt.codegen.kernels.stored_calls import (
    ROUNDED_BY_KERNELS,
    Stored,
    packed_bytes,
    stored_products,
)
from infopt.codegen.weight_formats.formats import FORMATS, stored_format
from infopt.codegen.weight_formats.remainder import MOST_COLUMNS, added
from infopt.compiler.accuracy import Bounded
from infopt.compiler.integer_weight import ROW_ROUNDINGS, quantize_rows, rounded_rows
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType


def _product(
    x: torch.Tensor,
    values: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
    remainder: torch.Tensor | None,
    format: str,
    activations: str,
    step: float,
    zero: int,
) -> torch.Tensor:
    k = x.shape[-1]
    if activations in ROW_ROUNDINGS:
        codes, steps, zeros = quantize_rows(x, activations, step, zero)
        x = (codes - zeros) * steps
    elif activations == "bf16":
        x = x.to(torch.bfloat16)
    weight = stored_format(format).decode(values, scales, k)
    if remainder is not None:
        weight = added(weight, remainder)
    if x.dtype is torch.bfloat16:
        weight = weight.to(torch.bfloat16)
    return F.linear(x.float(), weight.float(), None if bias is None else bias.float())


def _cases() -> Any:
    for m in (1, 5, 37):
        x, w = torch.randn(m, 192), torch.randn(96, 192) / 8
        for name in ("int8", "int8-g64", "int4-g32", "int4-g128"):
            for activations in ("none", "int8"):
                values, scales = FORMATS[name].encode(w)
                sums = FORMATS[name].sums(values, scales, 192)
                attrs = {"format": name, "activations": activations}
                yield (x, values, scales, sums), attrs
                yield (
                    (x, values, scales, sums, torch.randn(96), torch.randn(m, 96)),
                    {**attrs, "activation": "gelu"},
                )


@kernel_op(cases=_cases, tolerance=Bounded("rms_rel", 4e-3))
def quantized_linear(
    x,
    values,
    scales,
    sums,
    bias=None,
    residual=None,
    remainder=None,
    out_factors=None,
    *,
    format="int8",
    activations="none",
    activation="none",
    out=torch.float32,
    step=0.0,
    zero=0,
    out_step=0.0,
    out_zero=0,
):
    """act(x wᵀ + bias) + residual, summed in f32 or exactly, given in dtype `out`.

    x            [..., K] f32 or bf16
    values, scales  the weight [N, K] in `format` (codegen/weight_formats/formats.py)
    sums         f32 [N], what a row's zero point is multiplied with: see Integers.sums
    bias [N], residual [..., N]  f32 or bf16
    remainder    what is added to that weight: see codegen/weight_formats/remainder.py
    activations  "none": x as it is. "bf16": as if x were bf16. Products with a bf16 x are of bf16
                 values; of 8 rows or fewer, of the weight's f32 values, which is nearer. "int8":
                 rows of x become bytes (`quantize_rows`) and products are of integers; other
                 names of ROW_ROUNDINGS: the same, rounded as torchao does it, or ("int8-static")
                 with `step` and `zero`. "packed": rows of x were rounded to bytes where they were
                 made, and only those bytes are in memory
    out_step, out_zero  where out_step is not 0, the result, multiplied by out_factors [N] if they
                 are given, is rounded to bytes with them ("int8-static"), for layers that take
                 it packed
    """
    how = (format, activations, step, zero)
    y = activate(_product(x, values, scales, bias, remainder, *how), activation)
    y = y if residual is None else y + residual
    if out_step:
        y = y if out_factors is None else y * out_factors
        y = rounded_rows(y, "int8-static", out_step, out_zero)
    return y.to(out)


@kernel_op(cases=lambda: (), tolerance=Bounded("rms_rel", 4e-3))
def quantized_gated_linear(
    x,
    gate,
    gate_scales,
    gate_sums,
    up,
    up_scales,
    up_sums,
    gate_bias=None,
    up_bias=None,
    gate_remainder=None,
    up_remainder=None,
    *,
    format="int8",
    activations="none",
    activation="silu",
    out=torch.float32,
    step=0.0,
    zero=0,
):
    """act(x gateᵀ + gate_bias) * (x upᵀ + up_bias) for two weights stored in the same format."""
    how = (format, activations, step, zero)
    left = _product(x, gate, gate_scales, gate_bias, gate_remainder, *how)
    right = _product(x, up, up_scales, up_bias, up_remainder, *how)
    return (activate(left, activation) * right).to(out)


_WIDE = (torch.float32, torch.bfloat16)
_MOST_COLUMNS = 65536  # beyond, sums of products of bytes could leave 32 bits


def quantized_legal(
    target: Target,
    x: TensorType,
    values: TensorType,
    scales: TensorType,
    sums: TensorType,
    bias: Any,
    residual: Any,
    remainder: Any,
    out_factors: Any,
    *,
    format: str,
    activations: str,
    activation: str,
    out: torch.dtype,
    step: float = 0.0,
    zero: int = 0,
    out_step: float = 0.0,
    out_zero: int = 0,
) -> str | None:
    given = [t.dtype for t in (x, bias, residual) if t is not None]
    if any(d not in _WIDE for d in (*given, out)) or activation not in ACTIVATIONS:
        return f"dtypes {given}, activation {activation}"
    if remainder is not None and x.shape[-1] > MOST_COLUMNS:
        return f"a remainder of rows of {x.shape[-1]}"
    if not (is_positive(x.shape[-1]) and is_positive(values.shape[0])):
        return "an empty product"
    if out_factors is not None and (out_factors.dtype is not torch.float32 or not out_step):
        return f"factors {out_factors} with step {out_step}"
    if (activations == "int8-static") != (step > 0):
        return f"activations {activations} with step {step}"
    if (activations == "packed" or out_step) and (x.rank < 1 or x.dtype is not torch.float32):
        return f"packed rows of {x.dtype}"
    rounded = activations in ROW_ROUNDINGS or activations == "packed"
    if rounded and not stored_format(format).takes_bytes:
        return f"rows in bytes times {format}"
    if activations in ROW_ROUNDINGS:
        if remainder is not None:
            return "rows in bytes times a remainder"
        narrow = x.dtype is not torch.float32
        if activations not in ROUNDED_BY_KERNELS or (narrow and "per-token" in activations):
            return f"rows of {x.dtype} rounded as {activations}"
        if x.shape[-1] > _MOST_COLUMNS:  # a weight's, so never open
            return f"rows of {x.shape[-1]}"
    if residual is not None and residual.shape != (*x.shape[:-1], values.shape[0]):
        return "a residual that is broadcast"
    return None


def quantized_gated_legal(
    target: Target,
    x: TensorType,
    gate: TensorType,
    gate_scales: TensorType,
    gate_sums: TensorType,
    up: TensorType,
    up_scales: TensorType,
    up_sums: TensorType,
    gate_bias: Any,
    up_bias: Any,
    gate_remainder: Any,
    up_remainder: Any,
    **attrs: Any,
) -> str | None:
    if gate.shape != up.shape or (gate_bias is None) != (up_bias is None):
        return "gate and up differ"
    if gate_bias is not None and gate_bias.dtype != up_bias.dtype:
        return "biases of gate and up differ"
    if (gate_remainder is None) != (up_remainder is None):
        return "remainders of gate and up differ"
    given = (gate, gate_scales, gate_sums, gate_bias, None, gate_remainder, None)
    return quantized_legal(target, x, *given, **attrs)


LAYOUTS = dict.fromkeys(
    ("values", "scales", "sums", "bias", "gate", "gate_scales", "up", "up_scales", "out_factors"),
    dense_last,
)
LAYOUTS |= dict.fromkeys(("gate_bias", "up_bias"), dense_last)
LAYOUTS |= dict.fromkeys(("remainder", "gate_remainder", "up_remainder"), dense_last)
LAYOUTS |= {"x": row_strides, "residual": row_strides}


def _packed(x: TensorType, values: TensorType, *rest: Any, **attrs: Any) -> tuple[Size | None]:
    """Bytes of the result in packed form, where it is to be that."""
    if not attrs["out_step"]:
        return (None,)
    return (packed_bytes(TensorType.dense((*x.shape[:-1], values.shape[0]), torch.float32)),)


def _takes_packed(activations: str, **attrs: Any) -> tuple[str, ...]:
    return ("x",) if activations == "packed" else ()


@quantized_linear.kernel(
    "cpu",
    legal=quantized_legal,
    layouts=LAYOUTS,
    packed=_packed,
    takes_packed=_takes_packed,
    over=("residual",),
    **TILING,
)
def _quantized_linear(
    cfg: Config,
    target: Target,
    x: TensorType,
    values: TensorType,
    scales: TensorType,
    sums: TensorType,
    bias: Any,
    residual: Any,
    remainder: Any,
    out_factors: Any,
    *,
    format: str,
    activations: str,
    activation: str,
    out: torch.dtype,
    step: float,
    zero: int,
    out_step: float,
    out_zero: int,
) -> list[Call]:
    names = {"x": "x", "w": "values", "scales": "scales", "sums": "sums"}
    names |= {"bias": bias and "bias", "residual": residual and "residual"}
    names |= {"remainder": remainder and "remainder", "out_factors": out_factors and "out_factors"}
    fixed = (step, zero, out_step, out_zero)
    stored = Stored(stored_format(format), activations, values, scales, *fixed)
    return stored_products(cfg, target, x, stored, names, activation, bias, residual)


@quantized_gated_linear.kernel("cpu", legal=quantized_gated_legal, layouts=LAYOUTS, **TILING)
def _quantized_gated(
    cfg: Config,
    target: Target,
    x: TensorType,
    gate: TensorType,
    gate_scales: TensorType,
    gate_sums: TensorType,
    up: TensorType,
    up_scales: TensorType,
    up_sums: TensorType,
    gate_bias: Any,
    up_bias: Any,
    gate_remainder: Any,
    up_remainder: Any,
    *,
    format: str,
    activations: str,
    activation: str,
    out: torch.dtype,
    step: float,
    zero: int,
) -> list[Call]:
    names = {"x": "x", "w": "gate", "scales": "gate_scales", "sums": "gate_sums"}
    names |= {"up": "up", "up_scales": "up_scales", "up_sums": "up_sums"}
    names |= {"bias": gate_bias and "gate_bias", "up_bias": up_bias and "up_bias"}
    names |= {"remainder": gate_remainder and "gate_remainder"}
    names |= {"up_remainder": up_remainder and "up_remainder"}
    stored = Stored(stored_format(format), activations, gate, gate_scales, step, zero)
    return stored_products(cfg, target, x, stored, names, activation, gate_bias)
