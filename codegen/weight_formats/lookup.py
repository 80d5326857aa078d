"""Weights as codes of few bits into a table that every row has for itself.

Kim et al., "SqueezeLLM: Dense-and-Sparse Quantization" (2024): tables are found by k-means,
weighted by what a weight matters. Here a table holds bytes and is multiplied by factors, as
integers are, so that all that computes with integers computes with these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from infopt.codegen.weight_formats.integers import BLOCK, Encoded, Integers, halves, packed_halves
from infopt.codegen.weight_formats.kmeans import boundaries, centers

_ROUNDS = 3  # of finding a table for factors and factors for a table
_AT_ONCE = 1 << 20  # weights that are worked on together: what k-means keeps of one is 60 bytes


@dataclass(frozen=True)
class Lookup(Integers):
    """Signed bytes out of a row's ascending table of 2^bits, with a factor per group along K.

    values  uint8 [N, 2^bits + 8 bits ceil(K / 64)]: the table, as int8, and blocks of 64 codes.
            4 bits: as integers of 4 bits, without the 8. 3 bits: lane i, of 16, has the codes of
            4i to 4i + 3, the first in its lowest bits; byte i of the block are its low 8 bits, the
            4 others are half i // 2 of the 8 halves in bytes 16 to 19, for odd i 20 to 23
    """

    @property
    def name(self) -> str:
        return f"lut{self.bits}" + (f"-g{self.group}" if self.group else "")

    @property
    def layout(self) -> int:
        return 16 + self.bits

    @property
    def table_bytes(self) -> int:
        return 1 << self.bits

    def row_bytes(self, k: int) -> int:
        return self.table_bytes + -(-k // BLOCK) * BLOCK * self.bits // 8

    def encode(self, weight: torch.Tensor, kept: torch.Tensor | None = None) -> Encoded:
        """A weight [N, K] of which every element matters alike, but those that are `kept`."""
        table, scales = self.fitted(weight, torch.ones(weight.shape[1]), kept)
        return self.pack(self.nearest(weight, scales, table), scales, table)

    def fitted(
        self, weight: torch.Tensor, importance: torch.Tensor, kept: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A table int8 [N, 2^bits] and factors [N, groups] such that the squares of errors times
        importance are small; importance: [K] or [N, K]. Elements that are `kept`, bool [N, K], do
        not count."""
        weight = weight.float()
        spread = importance.float().expand_as(weight)
        if kept is not None:
            spread, weight = spread.masked_fill(kept, 0), weight.masked_fill(kept, 0)
        table, scales = _by_rows(self._fitted, weight, spread)
        return table, scales

    def _fitted(
        self, weight: torch.Tensor, importance: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        grouped, weights = self.grouped(weight), self.grouped(importance)
        where = grouped.abs().argmax(-1, keepdim=True)
        scales = grouped.gather(-1, where)[..., 0] / 127  # of either sign: the extreme is 127
        if not self.group:
            scales = scales.abs()
        for remaining in reversed(range(_ROUNDS if self.group else 1)):
            factors = self.divisors(scales)[..., None]
            matter = self._flat(weights * factors.square(), weight)
            found = centers(self._flat(grouped / factors, weight), matter, self.table_bytes)
            largest = found.abs().amax(-1, keepdim=True)
            stretch = torch.where(largest > 0, 127 / largest, 1)
            table = (found * stretch).round().clamp(-127, 127).to(torch.int8)
            scales = scales / stretch
            if remaining:
                held = self.grouped(self._nearest(weight, scales, table)[0].float())
                below = (weights * held.square()).sum(-1)
                best = (weights * held * grouped).sum(-1) / below
                scales = torch.where(below > 0, best, scales)
        return table, scales.to(self.scale_dtype)

    def nearest(
        self, weight: torch.Tensor, scales: torch.Tensor, table: torch.Tensor | None = None
    ) -> torch.Tensor:
        """int8 [N, K]: what of the table is nearest to a weight with these factors."""
        assert table is not None
        return _by_rows(self._nearest, weight, scales, table)[0]

    def _nearest(
        self, weight: torch.Tensor, scales: torch.Tensor, table: torch.Tensor
    ) -> tuple[torch.Tensor]:
        factors = self.divisors(scales)[..., None]
        places = self._flat(self.grouped(weight.float()) / factors, weight)
        return (self.level(places, table),)

    def level(self, places: torch.Tensor, table: torch.Tensor | None) -> torch.Tensor:
        """int8: the nearest value of its row's table for every element of [N, any]."""
        assert table is not None
        codes = torch.searchsorted(boundaries(table.float()), places.contiguous())
        return table.gather(-1, codes)

    def pack(
        self, integers: torch.Tensor, scales: torch.Tensor, table: torch.Tensor | None = None
    ) -> Encoded:
        """Values of the tables int8 [N, K], factors [N, groups] and tables as they are stored."""
        assert table is not None
        bytes = _by_rows(self._packed, integers, table)[0]
        return Encoded(torch.cat((table.view(torch.uint8), bytes), 1), scales)

    def _packed(self, integers: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor]:
        codes = torch.searchsorted(table.float().contiguous(), integers.float().contiguous())
        codes = torch.nn.functional.pad(codes, (0, -codes.shape[1] % BLOCK)).to(torch.uint8)
        return (packed_halves(codes) if self.bits == 4 else _packed_lanes(codes),)

    def integers(self, values: torch.Tensor, k: int) -> torch.Tensor:
        table = values[:, : self.table_bytes].view(torch.int8)
        blocks = values[:, self.table_bytes :]
        codes = halves(blocks) if self.bits == 4 else _lanes(blocks)
        return table.gather(-1, codes[:, :k].long())

    def _flat(self, grouped: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return grouped.reshape(weight.shape[0], -1)[:, : weight.shape[1]].contiguous()


def _packed_lanes(codes: torch.Tensor) -> torch.Tensor:
    """uint8 [N, 24 blocks] of codes below 8, uint8 [N, 64 blocks]."""
    four = codes.reshape(codes.shape[0], -1, 16, 4).short()
    lanes = four[..., 0] | four[..., 1] << 3 | four[..., 2] << 6 | four[..., 3] << 9
    rest = (lanes >> 8).reshape(*lanes.shape[:2], 4, 2, 2)  # pair of halves, its half, parity
    pairs = rest[..., 0, :] | rest[..., 1, :] << 4
    bytes = torch.cat((lanes & 255, pairs.transpose(-1, -2).flatten(-2)), -1)
    return bytes.to(torch.uint8).reshape(codes.shape[0], -1)


def _lanes(bytes: torch.Tensor) -> torch.Tensor:
    """What _packed_lanes was made of."""
    blocks = bytes.reshape(bytes.shape[0], -1, 24).short()
    pairs = blocks[..., 16:].reshape(*blocks.shape[:2], 2, 4).transpose(-1, -2)
    rest = torch.stack((pairs & 15, pairs >> 4), -2).flatten(-3)
    lanes = blocks[..., :16] | rest << 8
    four = torch.stack([lanes >> shift & 7 for shift in (0, 3, 6, 9)], -1)
    return four.to(torch.uint8).reshape(bytes.shape[0], -1)


def _by_rows(
    function: Callable[..., tuple[torch.Tensor, ...]], *matrices: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """function(*matrices), some rows at a time."""
    rows = max(1, _AT_ONCE // max(matrices[0].shape[1], 1))
    parts = [function(*part) for part in zip(*(m.split(rows) for m in matrices), strict=True)]
    return tuple(torch.cat(pieces) for pieces in zip(*parts, strict=True))
