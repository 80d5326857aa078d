"""How a compiled causal model keeps the keys and values of earlier tokens."""

from __future__ import annotations

from dataclasses import dataclass

FORMATS = ("same", "int8")
FACTOR = 4  # bytes of the factor behind the integers of a row


@dataclass(frozen=True)
class KV:
    """The layout of the cache.

    format  "same": in the dtype that the model computes them in. "int8": each row of a head's
            features as integers of 8 bits and a factor; lossy, half or a quarter of the bytes

    Raises ValueError for another format.
    """

    format: str = "same"

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format: expected one of {FORMATS}, found {self.format!r}")

    def store(self, heads: int, tokens: int, width: int, dtype: str) -> tuple[tuple[int, ...], str]:
        """(sizes behind the batch, dtype's name) of one layer's keys or values."""
        if self.format == "int8":
            return (heads, tokens, width + FACTOR), "torch.int8"
        return (heads, tokens, width), dtype
