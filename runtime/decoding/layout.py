"""How a compiled causal model keeps the keys and values of earlier tokens."""

from __future__ import annotations

from dataclasses import dataclass

FORMATS = ("same", "int8", "int4")
FACTOR = 4  # bytes of the factor behind the integers of a row
GROUP, RING = 32, 64  # tokens of a page of "int4", and those kept in full precision, at most


@dataclass(frozen=True)
class KV:
    """The layout of the cache.

    format  "same": in the dtype that the model computes them in. "int8": each row of a head's
            features as integers of 8 bits and a factor; lossy, half or a quarter of the bytes.
            "int4": 5 bits per feature: keys with a range per channel of 32 tokens, values with one
            per token and 32 features; tokens of an incomplete 32 in full precision (KIVI)

    page    0: each sequence has memory for max_length tokens of its own. Else all have pages of so
            many tokens, as they need them, of a common store: sequences with the same beginning
            have its pages in common (PagedAttention, Kwon et al., 2023). Not of "int4"

    Raises ValueError for another format, and for pages that there cannot be.
    """

    format: str = "same"
    page: int = 0

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format: expected one of {FORMATS}, found {self.format!r}")
        if self.page < 0 or (self.page and self.format == "int4"):
            raise ValueError(
                f"page: expected 0 or more tokens of a page, and 0 with int4, found {self}"
            )

    @property
    def group(self) -> int:
        """Tokens that change together how they are kept; 0: none do."""
        return GROUP if self.format == "int4" else 0

    def store(self, heads: int, tokens: int, width: int, dtype: str) -> tuple[tuple[int, ...], str]:
        """(sizes behind the batch, dtype's name) of one layer's keys or values."""
        if self.format == "int4":
            pages, wide = -(-tokens // GROUP), -(-width // GROUP) * GROUP
            return (heads, pages * 20 * wide + RING * width * 4), "torch.uint8"
        if self.format == "int8":
            return (heads, tokens, width + FACTOR), "torch.int8"
        return (heads, tokens, width), dtype
