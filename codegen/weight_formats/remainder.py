"""What of a weight few bits would lose most, kept beside them: entries at their places.

Kim et al., "SqueezeLLM: Dense-and-Sparse Quantization" (2024).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

MOST_COLUMNS = 65536  # a column is 16 bits of an entry


@dataclass(frozen=True)
class SparseEntries:
    """A share of a matrix' elements, to be added to what the dense part stands for.

    int32 [N + 1 + count]: for each of N rows the number of entries before it, their count, then
    entries row by row, from left to right: the column in the low half, the value, in bf16, in the
    high half. A value is what the dense part lacks, so an element is off by 2^-9 of what it lost.
    """

    share: float

    @property
    def name(self) -> str:
        return f"{self.share * 100:g}%"

    def count(self, n: int, k: int) -> int:
        return max(1, round(n * k * self.share))

    def length(self, n: int, k: int) -> int:
        """Of the tensor, in elements of 4 bytes."""
        return n + 1 + self.count(n, k)

    def largest(self, losses: torch.Tensor) -> torch.Tensor:
        """bool [N, K]: as many elements as there is room for, the largest of losses [N, K]."""
        kept = torch.zeros(losses.numel(), dtype=torch.bool)
        kept[losses.flatten().topk(self.count(*losses.shape)).indices] = True
        return kept.reshape(losses.shape)

    def evenly(self, n: int, k: int) -> torch.Tensor:
        """Entries of a matrix [N, K] as far from each other as there is room: to measure time."""
        count = self.count(n, k)
        places = torch.arange(count) * (n * k) // count
        starts = torch.nn.functional.pad(torch.bincount(places // k, minlength=n).cumsum(0), (1, 0))
        return torch.cat((starts, places % k)).int()

    def encode(self, rest: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """The entries of a f32 matrix [N, K] at the places that `largest` chose."""
        starts = torch.nn.functional.pad(kept.sum(1).cumsum(0), (1, 0))
        columns = kept.nonzero()[:, 1]
        values = rest[kept].bfloat16().view(torch.int16).int() << 16
        return torch.cat((starts.int(), values | columns.int()))


def added(weight: torch.Tensor, remainder: torch.Tensor) -> torch.Tensor:
    """A f32 matrix [N, K] and the entries of a remainder."""
    rows = weight.shape[0]
    starts, entries = remainder[: rows + 1], remainder[rows + 1 :]
    places = torch.arange(entries.shape[0], dtype=torch.int32)
    row = torch.searchsorted(starts[1:].contiguous(), places, right=True)
    values = (entries & -65536).view(torch.float32)
    return weight.index_put((row, (entries & 65535).long()), values, accumulate=True)
