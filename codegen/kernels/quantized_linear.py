"""Linear layers whose weight is stored in few bits, with activations as they are or in int8."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from infopt.codegen.formats import FORMATS
from infopt.codegen.kernel import kernel_op
from infopt.codegen.kernels.linear import activate
from infopt.compiler.accuracy import Bounded


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of x [..., K] as bytes: (codes [..., K] in 0..255 as f32, steps, zeros), both [..., 1].

    A row stands for steps * (codes - zeros). The range of a row always contains 0, which is
    therefore exact. In f32, in this order: step = (hi - lo) / 255, and codes from
    x * (255 / (hi - lo)).
    """
    x = x.float()
    low = x.amin(-1, keepdim=True).clamp(max=0)
    high = x.amax(-1, keepdim=True).clamp(min=0)
    width = high - low
    inverse = torch.where(width > 0, 255 / width, torch.zeros_like(width))
    zeros = torch.round(-low * inverse)
    codes = (torch.round(x * inverse) + zeros).clamp(0, 255)
    return codes, width / 255, zeros


def _product(
    x: torch.Tensor,
    values: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
    format: str,
    activations: str,
) -> torch.Tensor:
    k = x.shape[-1]
    if activations == "int8":
        codes, steps, zeros = quantize_rows(x)
        x = (codes - zeros) * steps
    elif activations == "bf16":
        x = x.to(torch.bfloat16)
    weight = FORMATS[format].decode(values, scales, k)
    if activations == "bf16":
        weight = weight.to(torch.bfloat16)
    return F.linear(x.float(), weight.float(), None if bias is None else bias.float())


def _cases() -> Any:
    for m in (1, 5, 37):
        x, w = torch.randn(m, 192), torch.randn(96, 192) / 8
        for name in ("int8", "int4-g32", "int4-g128"):
            for activations in ("none", "int8"):
                values, scales = FORMATS[name].encode(w)
                sums = FORMATS[name].decode(values, scales, 192).sum(-1)
                attrs = {"format": name, "activations": activations}
                yield (x, values, scales, sums), attrs
                yield (
                    (x, values, scales, sums, torch.randn(96), torch.randn(m, 96)),
                    {**attrs, "activation": "gelu"},
                )


@kernel_op(cases=_cases, tolerance=Bounded("rms_rel", 1e-3))
def quantized_linear(
    x,
    values,
    scales,
    sums,
    bias=None,
    residual=None,
    *,
    format="int8",
    activations="none",
    activation="none",
    out=torch.float32,
):
    """act(x wᵀ + bias) + residual, summed in f32 or exactly, given in dtype `out`.

    x            [..., K] f32 or bf16
    values, scales  the weight [N, K] in `format` (codegen/formats.py)
    sums         f32 [N], the sum of each row of the weight as it is stored: what a row's zero
                 point is multiplied with
    bias [N], residual [..., N]  f32 or bf16
    activations  "none": x as it is. "bf16": products of bf16 values. "int8": rows of x become
                 bytes (`quantize_rows`) and products are of integers
    """
    y = activate(_product(x, values, scales, bias, format, activations), activation)
    return (y if residual is None else y + residual).to(out)


@kernel_op(cases=lambda: (), tolerance=Bounded("rms_rel", 1e-3))
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
    *,
    format="int8",
    activations="none",
    activation="silu",
    out=torch.float32,
):
    """act(x gateᵀ + gate_bias) * (x upᵀ + up_bias) for two weights stored in the same format."""
    left = _product(x, gate, gate_scales, gate_bias, format, activations)
    right = _product(x, up, up_scales, up_bias, format, activations)
    return (activate(left, activation) * right).to(out)
