"""What a model that was quantized before it came here says of its weights, in ops.

Traced, such a model reads float matrices made of integers and factors, whatever its own classes
and packed layouts were. `keep-quantized` (passes/keep_quantized.py) gives them to kernels; where
none takes them, these references make the matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class TorchaoRounding:
    """How torchao 0.18 rounds rows (quant_primitives.py, `choose_qparams_affine` and
    `quantize_affine`), every operation in the dtype in which it does it.

    symmetric  the zero point is 0; else a row has its own
    per_token  as IntxUnpackedToInt8Tensor, which calculates in the dtype of x throughout; else as
               Int8Tensor: steps are rounded to the dtype of x, at least f32's eps, and used in f32
    reduced    integers of -64..63 in place of -128..127
    """

    symmetric: bool = False
    per_token: bool = False
    reduced: bool = False

    def codes(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What `quantize_rows` returns. Where it differs from torchao by no bit, nothing that is
        made of it can differ by more than the order of rounding: a code has no small changes."""
        least, most = (-64, 63) if self.reduced else (-128, 127)
        low = x.amin(-1, keepdim=True).clamp(max=0)
        high = x.amax(-1, keepdim=True).clamp(min=0)
        smallest = torch.finfo(x.dtype).smallest_normal
        lowest_step = smallest if self.per_token else torch.finfo(torch.float32).eps
        if self.symmetric:
            steps = (torch.maximum(-low, high) / ((most - least) / 2)).clamp(min=lowest_step)
            zeros = torch.zeros_like(steps)
        else:
            steps = ((high - low) / (most - least)).clamp(min=lowest_step)
            zeros = (least - torch.round(low / steps)).clamp(least, most)
        used = steps if self.per_token else steps.float()
        codes = (torch.round(x * (1.0 / used)) + zeros).clamp(least, most)
        return codes.float() + 128, steps.float(), zeros.float() + 128


ROW_ROUNDINGS: dict[str, TorchaoRounding | None] = {
    "int8": None,
    "int8-symmetric": TorchaoRounding(symmetric=True),
    "int8-affine": TorchaoRounding(),
    "int8-affine-per-token": TorchaoRounding(per_token=True),
    "int8-symmetric-reduced": TorchaoRounding(symmetric=True, reduced=True),
    "int8-affine-reduced": TorchaoRounding(reduced=True),
    "int8-static": None,
}


@op
def byte_rows(x, *, rounding="int8", step=0.0, zero=0):
    """x [..., K] with every row rounded to bytes, see `quantize_rows`."""
    return rounded_rows(x, rounding, step, zero)


def rounded_rows(x: torch.Tensor, rounding: str, step: float = 0.0, zero: int = 0) -> torch.Tensor:
    """What `byte_rows` gives, in plain torch."""
    codes, steps, zeros = quantize_rows(x, rounding, step, zero)
    return ((codes - zeros) * steps).to(x.dtype)


def quantize_rows(
    x: torch.Tensor, rounding: str = "int8", step: float = 0.0, zero: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of x [..., K] as bytes: (codes [..., K] in 0..255 as f32, steps, zeros), both [..., 1].

    A row stands for steps * (codes - zeros). The range of a row always contains 0, which is
    therefore exact. A row with NaN or an infinity stands for NaN everywhere.
    rounding "int8": in f32, in this order: step = (hi - lo) / 255, and codes from
    x * (255 / (hi - lo)); a row whose range is below 1e-35 stands for zeros. "int8-static": all
    rows by the one step and zero point given, codes from x * (1 / step) + zero; what is beyond
    their range counts as its nearest end, NaN as its lower one. Other names of ROW_ROUNDINGS: as
    TorchaoRounding says.
    """
    if rounding == "int8-static":
        places = torch.nan_to_num(x.float() * (1 / step) + zero)
        one = torch.ones_like(x[..., :1], dtype=torch.float32)
        return torch.round(places.clamp(0, 255)), one * step, one * zero
    torchao = ROW_ROUNDINGS[rounding]
    if torchao is not None:
        return torchao.codes(x)
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
