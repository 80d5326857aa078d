"""What `weights=` names: integers or tables, and with them an optional remainder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch

from infopt.codegen.weight_formats.formats import FORMATS
from infopt.codegen.weight_formats.integers import Integers
from infopt.codegen.weight_formats.lookup import Lookup
from infopt.codegen.weight_formats.remainder import SparseEntries, added
from infopt.codegen.weight_formats.rounding import Moments, rounded_for

_NAME = re.compile(r"(.+)\+([0-9]+(?:\.[0-9]+)?)%")
_MOST = 0.05  # of a weight; beyond, wider codes hold more in the same bytes
_DAMPING = 1e-3  # of the mean: a column without input seen matters little, but not nothing
NAMES = (
    ", ".join(FORMATS)
    + f"; each also with up to {_MOST:.0%} of its weights kept exactly, as in 'int4-g32+0.5%'"
)


class StoredWeight(NamedTuple):
    """The tensors of a weight [N, K]; decoded: the matrix f32 [N, K] that they stand for."""

    values: torch.Tensor
    scales: torch.Tensor
    sums: torch.Tensor
    remainder: torch.Tensor | None
    decoded: torch.Tensor


@dataclass(frozen=True)
class WeightFormat:
    """dense: what every element has a code of; remainder: what is added to that."""

    dense: Integers
    remainder: SparseEntries | None = None

    @property
    def name(self) -> str:
        return self.dense.name + (f"+{self.remainder.name}" if self.remainder else "")

    @property
    def is_expression(self) -> bool:
        """Whether encoding is a short expression in torch, that a graph can hold."""
        return self.remainder is None and not isinstance(self.dense, Lookup)

    def bytes(self, n: int, k: int) -> int:
        """What an [n, k] weight occupies, without what only rounded activations read."""
        return self.dense.bytes(n, k) + (4 * self.remainder.length(n, k) if self.remainder else 0)

    def types(self, n: int, k: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each tensor of an [n, k] weight."""
        dense, held = self.dense, torch.int8 if self.dense.layout == 8 else torch.uint8
        found = {
            "values": ((n, dense.row_bytes(k)), held),
            "scales": ((n, dense.groups(k)), dense.scale_dtype),
            "sums": ((n,), torch.float32),
        }
        if self.remainder:
            found["remainder"] = ((self.remainder.length(n, k),), torch.int32)
        return found

    def store(self, weight: torch.Tensor, moments: Moments | None = None) -> StoredWeight:
        """A float weight [N, K] as it is stored; moments: of the inputs that it multiplies.

        A remainder takes the elements whose loss is largest after the dense part was made without
        those that weigh most. The dense part is then made again, for all others.
        """
        k, wanted, kept = weight.shape[1], weight.float(), None
        if self.remainder:
            kept = self._kept(wanted, moments)
        if moments is None:
            values, scales = self.dense.encode(weight, kept)
        else:
            (values, scales), wanted = rounded_for(self.dense, weight, moments, kept)
        decoded = self.dense.decode(values, scales, k)
        sums, remainder = self.dense.sums(values, scales, k), None
        if self.remainder and kept is not None:
            remainder = self.remainder.encode(wanted - decoded, kept)
            decoded = added(decoded, remainder)
        return StoredWeight(values, scales, sums, remainder, decoded)

    def _kept(self, weight: torch.Tensor, moments: Moments | None) -> torch.Tensor:
        assert self.remainder is not None
        matters = torch.ones(weight.shape[1])
        if moments is not None:
            seen = moments.sum.diagonal()
            matters = seen + _DAMPING * seen.mean()
        heavy = self.remainder.largest(weight.square() * matters)
        table, scales = self.dense.fitted(weight, matters, heavy)
        encoded = self.dense.pack(self.dense.nearest(weight, scales, table), scales, table)
        lost = self.dense.decode(*encoded, weight.shape[1]) - weight
        return self.remainder.largest(lost.square() * matters)


@cache
def weight_format(name: str) -> WeightFormat:
    """The format of that name. Raises KeyError where there is none."""
    found = _NAME.fullmatch(name)
    if found is None:
        return WeightFormat(FORMATS[name])
    share = float(found[2]) / 100
    if not 0 < share <= _MOST:
        raise KeyError(name)
    return WeightFormat(FORMATS[found[1]], SparseEntries(share))
