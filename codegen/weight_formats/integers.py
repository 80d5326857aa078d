"""Weights as signed integers with factors: encode, reference decode, layout, bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

_CLIPPING = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # shares of the extreme value that may be kept
BLOCK = 64  # a row of int4 is stored in blocks of 64 values: 32 bytes


class Encoded(NamedTuple):
    values: torch.Tensor
    scales: torch.Tensor


@dataclass(frozen=True)
class Integers:
    """Signed integers of 8 or 4 bits with a factor per group along K.

    bits   8: values int8 [N, K] in [-127, 127].
           4: values uint8 [N, 32 ceil(K / 64)] for integers in [-8, 7]; byte j of a block of 64
           holds integer j + 8 in its low half and integer j + 32, + 8, in its high half; the
           places from K on hold 8, that is 0
    group  values that share a factor; 0: a whole row. A row's factors are f32, a group's bf16:
           what the rounding of a factor costs is taken into account when integers are chosen
    wide   a group's factors are f32 too: for integers that somebody else chose
    """

    bits: int
    group: int = 0
    wide: bool = False

    @property
    def name(self) -> str:
        name = f"int{self.bits}" + (f"-g{self.group}" if self.group else "")
        return name + ("-f32" if self.wide else "")

    @property
    def scale_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.group and not self.wide else torch.float32

    def groups(self, k: int) -> int:
        return -(-k // self.group) if self.group else 1

    @property
    def layout(self) -> int:
        """The number by which kernels know how values lie."""
        return self.bits

    def row_bytes(self, k: int) -> int:
        """What the values of a row of k occupy."""
        return k if self.bits == 8 else -(-k // BLOCK) * BLOCK // 2

    def bytes(self, n: int, k: int) -> int:
        """What values and scales of an [n, k] weight occupy."""
        return n * (self.row_bytes(k) + self.groups(k) * self.scale_dtype.itemsize)

    @property
    def takes_bytes(self) -> bool:
        """Whether rows of activations in bytes can be multiplied with it: values are integers."""
        return True

    @property
    def level_dtype(self) -> torch.dtype:
        """Of what `level` gives."""
        return torch.int8

    @property
    def low(self) -> int:
        return -127 if self.bits == 8 else -8

    @property
    def high(self) -> int:
        return 127 if self.bits == 8 else 7

    def encode(self, weight: torch.Tensor, kept: torch.Tensor | None = None) -> Encoded:
        """The nearest integers to a float weight [N, K], computed in f32, with `factors`; of those
        elements that are not `kept` elsewhere, bool [N, K]."""
        scales = self.factors(weight if kept is None else weight.masked_fill(kept, 0))
        return self.pack(self.nearest(weight, scales), scales)

    def factors(self, weight: torch.Tensor) -> torch.Tensor:
        """[N, groups] factors that lose nothing at the ends.

        8 bits: the largest magnitude of a group becomes 127. 4 bits: it becomes -8, whatever its
        sign is, so that no code is lost (the factor may be negative).
        """
        grouped = self.grouped(weight.float())
        if self.bits == 8:
            scales = grouped.abs().amax(-1) / 127
        else:
            where = grouped.abs().argmax(-1, keepdim=True)
            scales = grouped.gather(-1, where)[..., 0] / -8
        return scales.to(self.scale_dtype)

    def divisors(self, scales: torch.Tensor) -> torch.Tensor:
        """Factors as they are stored, in f32, 1 in the place of 0."""
        stored = scales.to(self.scale_dtype).float()
        return torch.where(stored == 0, torch.ones_like(stored), stored)

    def fitted(
        self, weight: torch.Tensor, importance: torch.Tensor, kept: torch.Tensor | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """None, as there is no table, and of the factors that keep a share of each group's extreme
        the best for errors weighted by importance, [K]. Elements that are `kept`, bool [N, K], do
        not count."""
        if kept is not None:
            weight = weight.masked_fill(kept, 0)
        weights, grouped = self.grouped(importance[None]), self.grouped(weight.float())

        def error(scales: torch.Tensor) -> torch.Tensor:
            found = self.grouped(self.nearest(weight, scales).float()) * scales.float()[..., None]
            return ((found - grouped).square() * weights).sum(-1)

        usual = best = self.factors(weight)
        least = error(best)
        for share in _CLIPPING:
            scales = (usual.float() * share).to(self.scale_dtype)
            found = error(scales)
            best, least = torch.where(found < least, scales, best), torch.minimum(found, least)
        return None, best

    def nearest(
        self, weight: torch.Tensor, scales: torch.Tensor, table: torch.Tensor | None = None
    ) -> torch.Tensor:
        """int8 [N, K]: the integers nearest to a weight with these factors."""
        places = self.grouped(weight.float()) / self.divisors(scales)[..., None]
        integers = self.level(places, table)
        return integers.reshape(weight.shape[0], -1)[:, : weight.shape[1]]

    def level(self, places: torch.Tensor, table: torch.Tensor | None) -> torch.Tensor:
        """In `level_dtype`: the nearest value there is for every element."""
        return torch.round(places).clamp(self.low, self.high).to(torch.int8)

    def pack(
        self, integers: torch.Tensor, scales: torch.Tensor, table: torch.Tensor | None = None
    ) -> Encoded:
        """Integers int8 [N, K] and their factors [N, groups] as they are stored."""
        integers = integers.contiguous()
        return Encoded(integers if self.bits == 8 else _pack(integers), scales)

    def factors_of(self, scales: torch.Tensor, k: int) -> torch.Tensor:
        """Factors [N, groups] that somebody else chose, in as many and in the dtype of this format,
        whose groups are parts of theirs."""
        spread, count = scales.float(), self.groups(k)
        if scales.shape[1] > 1:
            spread = spread.repeat_interleave(count // scales.shape[1], 1)
        return spread.expand(-1, count).to(self.scale_dtype).contiguous()

    def grouped(self, matrix: torch.Tensor) -> torch.Tensor:
        """[N, groups, columns of a group], zeros behind the last column."""
        return _grouped(matrix, self.group or matrix.shape[1])

    def integers(self, values: torch.Tensor, k: int) -> torch.Tensor:
        """The stored integers [N, K], int8."""
        if self.bits == 8:
            return values
        return (halves(values)[:, :k].to(torch.int16) - 8).to(torch.int8)

    def sums(self, values: torch.Tensor, scales: torch.Tensor, k: int) -> torch.Tensor:
        """f32 [N], the sum of each row: of its integers (whole numbers, exact) where a row has one
        factor, else of the matrix that is stored."""
        if not self.group:
            return self.integers(values, k).sum(-1, dtype=torch.int32).float()
        return self.decode(values, scales, k).sum(-1)

    def decode(self, values: torch.Tensor, scales: torch.Tensor, k: int) -> torch.Tensor:
        """The f32 matrix [N, k] that is stored."""
        integers = self.integers(values, k).float()
        if not self.group:
            return integers * scales
        grouped = _grouped(integers, self.group) * scales.float()[..., None]
        return grouped.reshape(integers.shape[0], -1)[:, :k]


def _grouped(weight: torch.Tensor, group: int) -> torch.Tensor:
    """[N, groups, group], zeros behind the last column."""
    missing = -weight.shape[1] % group
    padded = torch.nn.functional.pad(weight, (0, missing))
    return padded.reshape(weight.shape[0], -1, group)


def _pack(integers: torch.Tensor) -> torch.Tensor:
    missing = -integers.shape[1] % BLOCK
    codes = torch.nn.functional.pad((integers.to(torch.int16) + 8), (0, missing), value=8)
    return packed_halves(codes.to(torch.uint8))


def packed_halves(codes: torch.Tensor) -> torch.Tensor:
    """uint8 [N, 32 blocks] of codes below 16, uint8 [N, 64 blocks]."""
    low, high = codes.reshape(codes.shape[0], -1, 2, BLOCK // 2).unbind(2)
    return (low | (high << 4)).reshape(codes.shape[0], -1)


def halves(bytes: torch.Tensor) -> torch.Tensor:
    """What packed_halves was made of."""
    blocks = bytes.reshape(bytes.shape[0], -1, BLOCK // 2)
    return torch.stack((blocks & 15, blocks >> 4), -2).reshape(bytes.shape[0], -1)
