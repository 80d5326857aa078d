"""Linear layers of an f32 model in bf16: products of rounded operands, f32 everywhere else."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from infopt.codegen.kernel import Call, Config, kernel_op
from infopt.codegen.kernels.linear import ACTIVATIONS, TILING, activate, products
from infopt.codegen.kernels.rows import as_rows, dense_last, is_positive, row_stride, row_strides
from infopt.compiler.accuracy import Bounded
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType

_WIDE = (torch.float32, torch.bfloat16)


def _rounded(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.bfloat16).float()


def _cases() -> Any:
    for m in (3, 37, 130):
        x, w = torch.randn(m, 64), torch.randn(96, 64) / 8
        yield (x, w, torch.randn(96), torch.randn(m, 96)), {"activation": "gelu"}
        yield (x.bfloat16(), w.bfloat16()), {"out": torch.bfloat16}


@kernel_op(cases=_cases, tolerance=Bounded("rms_rel", 8e-3))
def narrow_linear(x, weight, bias=None, residual=None, *, activation="none", out=torch.float32):
    """act(bf16(x) bf16(weight)ᵀ + bias) + residual, summed in f32, given in dtype `out`.

    x [..., K] and weight [N, K] f32 or bf16, bias [N] and residual [..., N] f32. With 8 rows or
    fewer the kernel multiplies f32 weights as they are, which is nearer to the f32 result.
    """
    y = F.linear(_rounded(x), _rounded(weight), None if bias is None else bias.float())
    y = activate(y, activation)
    return (y if residual is None else y + residual).to(out)


@kernel_op(cases=lambda: (), tolerance=Bounded("rms_rel", 8e-3))
def narrow_gated_linear(
    x, gate, up, gate_bias=None, up_bias=None, *, activation="silu", out=torch.float32
):
    """act(bf16(x) bf16(gate)ᵀ + gate_bias) * (bf16(x) bf16(up)ᵀ + up_bias), summed in f32."""
    rounded = _rounded(x)
    left = F.linear(rounded, _rounded(gate), None if gate_bias is None else gate_bias.float())
    right = F.linear(rounded, _rounded(up), None if up_bias is None else up_bias.float())
    return (activate(left, activation) * right).to(out)


def _legal(
    target: Target,
    x: TensorType,
    weight: TensorType,
    bias: Any,
    residual: Any,
    *,
    activation: str,
    out: torch.dtype,
) -> str | None:
    if weight.rank != 2 or x.rank < 1 or (bias is not None and bias.rank != 1):
        return f"weight {weight}, bias {bias}"
    given = [t.dtype for t in (x, weight, bias, residual) if t is not None]
    if any(d not in _WIDE for d in (*given, out)) or activation not in ACTIVATIONS:
        return f"dtypes {given}, activation {activation}"
    if not (is_positive(x.shape[-1]) and is_positive(weight.shape[0])):
        return "an empty product"
    if residual is not None and residual.shape != (*x.shape[:-1], weight.shape[0]):
        return "a residual that is broadcast"
    return None


def _gated_legal(
    target: Target,
    x: TensorType,
    gate: TensorType,
    up: TensorType,
    gate_bias: Any,
    up_bias: Any,
    **attrs: Any,
) -> str | None:
    if (gate.shape, gate.dtype) != (up.shape, up.dtype) or (gate_bias is None) != (up_bias is None):
        return "gate and up differ"
    if gate.rank == up.rank == 2 and row_stride(gate) != row_stride(up):
        return "rows of gate and up that lie differently"
    return _legal(target, x, gate, gate_bias, None, **attrs)


_LAYOUTS = dict.fromkeys(("weight", "bias", "gate", "up", "gate_bias", "up_bias"), dense_last)
_LAYOUTS |= {"x": row_strides, "residual": row_strides}


@narrow_linear.kernel("cpu", legal=_legal, layouts=_LAYOUTS, over=("residual",), **TILING)
def _narrow_linear(
    cfg: Config,
    target: Target,
    x: TensorType,
    weight: TensorType,
    bias: Any,
    residual: Any,
    *,
    activation: str,
    out: torch.dtype,
) -> list[Call]:
    assert as_rows(x) is not None
    names = {"x": "x", "w": "weight", "bias": bias and "bias", "residual": residual and "residual"}
    return products(x, cfg, weight, names, activation, target, residual, narrow=True, bias=bias)


@narrow_gated_linear.kernel("cpu", legal=_gated_legal, layouts=_LAYOUTS, **TILING)
def _narrow_gated(
    cfg: Config,
    target: Target,
    x: TensorType,
    gate: TensorType,
    up: TensorType,
    gate_bias: Any,
    up_bias: Any,
    *,
    activation: str,
    out: torch.dtype,
) -> list[Call]:
    names = {
        "x": "x",
        "w": "gate",
        "up": "up",
        "bias": gate_bias and "gate_bias",
        "up_bias": up_bias and "up_bias",
    }
    return products(x, cfg, gate, names, activation, target, narrow=True, bias=gate_bias)
