"""What a model that was quantized before it came here says of its weights, in ops.

Traced, such a model reads float matrices made of integers and factors, whatever its own classes
and packed layouts were. `keep-quantized` (passes/keep_quantized.py) gives them to kernels; where
none takes them, these references make the matrix.
"""

from __future__ import annotations

import torch

from infopt.compiler.ops import op


@op
def integer_weight(integers, scales, *, out=torch.float32):
    """The matrix [N, K] in dtype `out` that integers stand for: integers * scales, in f32.

    integers  int8 [N, K], zero points already taken off
    scales    [N, groups] f32, bf16 or f16: one for each run of K / groups neighbours of a row
    """
    factors = scales.float().repeat_interleave(integers.shape[1] // scales.shape[1], 1)
    return (integers.float() * factors).to(out)


@op
def byte_rows(x):
    """x [..., K] with every row rounded to bytes, see `quantize_rows`."""
    codes, steps, zeros = quantize_rows(x)
    return ((codes - zeros) * steps).to(x.dtype)


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of x [..., K] as bytes: (codes [..., K] in 0..255 as f32, steps, zeros), both [..., 1].

    A row stands for steps * (codes - zeros). The range of a row always contains 0, which is
    therefore exact. In f32, in this order: step = (hi - lo) / 255, and codes from
    x * (255 / (hi - lo)). A row with NaN or an infinity stands for NaN everywhere; one whose range
    is below 1e-35 for zeros.
    """
    x = x.float()
    low = x.amin(-1, keepdim=True).clamp(max=0)
    high = x.amax(-1, keepdim=True).clamp(min=0)
    width = high - low
    # not 255 / width, which torch computes as a product with the reciprocal
    quotient = torch.full_like(width, 255.0) / width
    inverse = torch.where(width > 1e-35, quotient, torch.zeros_like(width))
    zeros = torch.round(-low * inverse)
    codes = (torch.round(x * inverse) + zeros).clamp(0, 255)
    return codes, width / 255, zeros
