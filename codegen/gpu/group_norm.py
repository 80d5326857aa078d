"""Group norm on a GPU: a program makes one group of one image and reads it three times."""

from __future__ import annotations

from torch.utils._sympy.functions import FloorDiv

from infopt.codegen.gpu.text import HEADER, launch
from infopt.codegen.kernel import Config, aten_kernel
from infopt.codegen.kernels.group_norm import group_norm_legal
from infopt.codegen.kernels.rows import contiguous
from infopt.codegen.launch import Launch, Pointer
from infopt.codegen.sizes import product
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType

SOURCE = (
    HEADER
    + '''

@triton.jit
def group_norm(x, weight, bias, out, groups, channels, places, eps, BLOCK: tl.constexpr):
    """(x - mean) / sqrt(variance + eps) of one group, times weight plus bias of its channels."""
    size = channels * places
    x += tl.program_id(0).to(tl.int64) * size
    out += tl.program_id(0).to(tl.int64) * size
    first = tl.program_id(0) % groups * channels
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, size, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(x + i, mask=i < size, other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=0) / size
    square = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, size, BLOCK):
        i = start + tl.arange(0, BLOCK)
        z = tl.load(x + i, mask=i < size, other=0.0).to(tl.float32) - mean
        square += tl.where(i < size, z * z, 0.0)
    factor = tl.rsqrt(tl.sum(square, axis=0) / size + eps)
    for start in range(0, size, BLOCK):
        i = start + tl.arange(0, BLOCK)
        y = (tl.load(x + i, mask=i < size, other=0.0).to(tl.float32) - mean) * factor
        channel = first + i // places
        if weight is not None:
            y *= tl.load(weight + channel, mask=i < size, other=0.0).to(tl.float32)
        if bias is not None:
            y += tl.load(bias + channel, mask=i < size, other=0.0).to(tl.float32)
        tl.store(out + i, y.to(out.dtype.element_ty), mask=i < size)
'''
)
_BLOCK = 2048


@aten_kernel(
    "group_norm.default",
    kind="gpu",
    legal=group_norm_legal,
    layouts=dict.fromkeys(("input", "weight", "bias"), contiguous),
)
def _group_norm(
    cfg: Config,
    target: Target,
    x: TensorType,
    weight: TensorType | None,
    bias: TensorType | None,
    *,
    num_groups: int,
    eps: float,
    cudnn_enabled: bool,
) -> Launch:
    channels = x.shape[1]
    return launch(
        SOURCE,
        "group_norm",
        grid=(product((x.shape[0], num_groups)),),
        warps=8,
        x=Pointer("input", x.dtype),
        weight=weight and Pointer("weight", weight.dtype),
        bias=bias and Pointer("bias", bias.dtype),
        out=Pointer("out", cfg.out.dtype),
        groups=num_groups,
        channels=channels // num_groups
        if isinstance(channels, int)
        else FloorDiv(channels, num_groups),
        places=product(x.shape[2:]),
        eps=float(eps),
        BLOCK=_BLOCK,
    )
