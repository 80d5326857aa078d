"""Formats of stored weights: what a matrix becomes in memory, and which matrix that stands for.

One declaration per format: encode, reference decode, layout, bytes. A weight [N, K] becomes

    values   the integers, see the format
    scales   [N, groups]: one factor for each run of `group` neighbours along K, or for a row

and stands for  decode(values, scales, K)[n, k] = integer[n, k] * scales[n, k // group].
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch

_LEAST_GROUP, _GROUP = 32, 128  # what kernels take, and what a row is cut into
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

    def bytes(self, n: int, k: int) -> int:
        """What values and scales of an [n, k] weight occupy."""
        row = k if self.bits == 8 else -(-k // BLOCK) * BLOCK // 2
        return n * (row + self.groups(k) * self.scale_dtype.itemsize)

    @property
    def low(self) -> int:
        return -127 if self.bits == 8 else -8

    @property
    def high(self) -> int:
        return 127 if self.bits == 8 else 7

    def encode(self, weight: torch.Tensor) -> Encoded:
        """The nearest integers to a float weight [N, K], computed in f32, with `factors`."""
        scales = self.factors(weight)
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

    def nearest(self, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """int8 [N, K]: the integers nearest to a weight with these factors."""
        factor = torch.where(scales == 0, torch.ones_like(scales), scales).float()[..., None]
        integers = torch.round(self.grouped(weight.float()) / factor).clamp(self.low, self.high)
        return integers.to(torch.int8).reshape(weight.shape[0], -1)[:, : weight.shape[1]]

    def pack(self, integers: torch.Tensor, scales: torch.Tensor) -> Encoded:
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
        blocks = values.reshape(values.shape[0], -1, BLOCK // 2)
        halves = torch.stack((blocks & 15, blocks >> 4), -2)
        return (halves.reshape(values.shape[0], -1)[:, :k].to(torch.int16) - 8).to(torch.int8)

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
    n, k = integers.shape
    codes = torch.nn.functional.pad((integers.to(torch.int16) + 8), (0, -k % BLOCK), value=8)
    low, high = codes.to(torch.uint8).reshape(n, -1, 2, BLOCK // 2).unbind(2)
    return (low | (high << 4)).reshape(n, -1)


FORMATS = {
    f.name: f
    for f in (
        Integers(8),
        Integers(8, 32),
        Integers(8, 64),
        Integers(8, 128),
        Integers(4, 32),
        Integers(4, 64),
        Integers(4, 128),
    )
}

_NAME = re.compile(r"int(8|4)-g([0-9]+)(-f32)?")


@cache
def stored_format(name: str) -> Integers:
    """The format of that name: one of FORMATS, or one that `format_of` found.

    Raises KeyError for other names.
    """
    found = _NAME.fullmatch(name)
    if name in FORMATS or not found:
        return FORMATS[name]
    return Integers(int(found[1]), int(found[2]), bool(found[3]))


def format_of(integers: torch.Tensor, scales: torch.Tensor) -> tuple[Integers, torch.Tensor] | str:
    """The least format that holds integers int8 [N, K] with factors [N, groups] as they are, and
    the factors [N, its groups] in it; or the reason why there is none."""
    k, groups = integers.shape[1], scales.shape[1]
    narrow = bool((integers >= -8).all()) and bool((integers <= 7).all())
    if groups == 1 and not narrow:
        return FORMATS["int8"], scales.float()
    run = _GROUP if groups == 1 else k // groups
    group = min(run & -run, _GROUP)
    if group < _LEAST_GROUP:
        return f"a factor for every {run} weights, expected a multiple of {_LEAST_GROUP}"
    factors = scales.float()
    wide = not torch.equal(factors.bfloat16().float(), factors)
    codec = Integers(4 if narrow else 8, group, wide)
    return codec, codec.factors_of(scales, k)
