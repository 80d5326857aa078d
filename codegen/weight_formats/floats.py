"""Weights as floats of 8 bits with factors.

Micikevicius et al., "FP8 Formats for Deep Learning" (2022). Steps grow with the value, so that a
few large weights of a row cost the small ones nothing; where there are none, bytes are nearer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from infopt.codegen.weight_formats.integers import Encoded, Integers

KINDS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


@dataclass(frozen=True)
class Floats(Integers):
    """Floats of 8 bits with a factor per group along K; what integers are to the other formats,
    these numbers are to this one.

    kind    "e4m3": 4 bits of exponent, 3 of mantissa, up to 448. "e5m2": 5 and 2, up to 57344
    values  uint8 [N, K], their bits. None is NaN or infinite: encoding ends at the largest
    """

    kind: str = "e4m3"

    @property
    def name(self) -> str:
        group = (f"-g{self.group}" if self.group else "") + ("-f32" if self.wide else "")
        return f"fp8-{self.kind}{group}"

    @property
    def layout(self) -> int:
        return 43 if self.kind == "e4m3" else 52

    @property
    def takes_bytes(self) -> bool:
        return False

    @property
    def level_dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def largest(self) -> float:
        return torch.finfo(KINDS[self.kind]).max

    def factors(self, weight: torch.Tensor) -> torch.Tensor:
        """[N, groups]: the largest magnitude of a group becomes the largest number there is."""
        scales = self.grouped(weight.float()).abs().amax(-1) / self.largest
        return scales.to(self.scale_dtype)

    def level(self, places: torch.Tensor, table: torch.Tensor | None) -> torch.Tensor:
        ends = places.clamp(-self.largest, self.largest)
        return ends.to(KINDS[self.kind]).float()

    def pack(
        self, integers: torch.Tensor, scales: torch.Tensor, table: torch.Tensor | None = None
    ) -> Encoded:
        """Numbers [N, K] that this format has, f32 or in 8 bits, as they are stored."""
        return Encoded(integers.contiguous().to(KINDS[self.kind]).view(torch.uint8), scales)

    def integers(self, values: torch.Tensor, k: int) -> torch.Tensor:
        """The stored numbers [N, K], f32."""
        return values.view(KINDS[self.kind]).float()

    def sums(self, values: torch.Tensor, scales: torch.Tensor, k: int) -> torch.Tensor:
        """f32 [N], the sum of each row of the matrix that is stored."""
        return self.decode(values, scales, k).sum(-1)
