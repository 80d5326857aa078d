"""Convolutions of an f32 model in bf16: products of rounded operands, f32 everywhere else."""

from __future__ import annotations

from typing import Any

import torch

from infopt.codegen.kernel import Call, Config, kernel_op
from infopt.codegen.kernels.conv import LAYOUTS, conv_act, convolution, is_depthwise
from infopt.codegen.kernels.linear import ACTIVATIONS
from infopt.codegen.kernels.rows import is_positive
from infopt.codegen.kernels.window import neighbouring_columns, window_of
from infopt.compiler.accuracy import Bounded
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType

F32, BF16 = torch.float32, torch.bfloat16


def _cases() -> Any:
    x, w = torch.randn(2, 6, 9, 11), torch.randn(10, 6, 3, 3) / 7
    scale, shift, residual = torch.rand(10) + 0.5, torch.randn(10), torch.randn(2, 10, 5, 11)
    attrs = {"stride": (2, 1), "padding": (1, 1), "activation": "relu"}
    yield (x, w, scale, shift, residual), attrs | {"add_first": True}
    yield (x.to(BF16), w.to(BF16), scale, shift), attrs | {"out": BF16}
    yield (x, w.to(BF16)), {"out": BF16}


@kernel_op(cases=_cases, tolerance=Bounded("rms_rel", 8e-3))
def narrow_conv(
    x,
    weight,
    scale=None,
    shift=None,
    residual=None,
    *,
    stride=(1,),
    padding=(0,),
    dilation=(1,),
    groups=1,
    activation="none",
    add_first=False,
    out=torch.float32,
):
    """conv_act of bf16(x) and bf16(weight), summed in f32, given in dtype `out`.

    x and weight f32 or bf16, scale, shift and residual f32; a residual asks for an f32 result.
    """
    rounded = (v.to(torch.bfloat16).float() for v in (x, weight))
    y = conv_act(
        *rounded,
        scale,
        shift,
        residual,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        activation=activation,
        add_first=add_first,
    )
    return y.to(out)


def narrow_conv_legal(
    target: Target,
    x: TensorType,
    weight: TensorType,
    scale: Any,
    shift: Any,
    residual: Any,
    *,
    activation: str,
    out: torch.dtype,
    groups: int,
    **attrs: Any,
) -> str | None:
    if x.rank not in (3, 4) or weight.rank != x.rank:
        return f"x is {x}, weight {weight}: expected a batch of lines or images"
    given = [t.dtype for t in (x, weight)]
    if any(d not in (F32, BF16) for d in (*given, out)) or activation not in ACTIVATIONS:
        return f"dtypes {given}, activation {activation}"
    if any(v is not None and v.dtype != F32 for v in (scale, shift, residual)):
        return "scale, shift or residual that is not f32"
    if residual is not None and out != F32:
        return f"a residual and a result in {out}"
    if is_depthwise(weight, groups):
        return "a depthwise convolution, which has no products to narrow"
    if not all(isinstance(n, int) and is_positive(n) for n in weight.shape):
        return f"weight {weight}: expected known sizes"
    return None


@narrow_conv.kernel(
    "cpu",
    legal=narrow_conv_legal,
    layouts=LAYOUTS | {"x": neighbouring_columns},
    over=("residual",),
)
def _narrow_conv(
    cfg: Config,
    target: Target,
    x: TensorType,
    weight: TensorType,
    scale: Any,
    shift: Any,
    residual: Any,
    *,
    activation: str,
    add_first: bool,
    out: torch.dtype,
    **attrs: Any,
) -> Call:
    return convolution(
        x,
        weight,
        cfg.out,
        ("x", "weight", scale and "scale", shift and "shift", residual and "residual"),
        window_of(weight, attrs),
        target,
        scale=scale,
        shift=shift,
        activation=activation,
        add_first=add_first,
        narrow=True,
    )
