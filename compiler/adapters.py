"""What a user asks for so that low-rank adapters can be loaded into a compiled model."""

from __future__ import annotations

from dataclasses import dataclass

from infopt.compiler.errors import BadOption


@dataclass(frozen=True)
class Adapters:
    """Linear layers get room for low-rank adapters (LoRA), which each row of a batch may choose.

    rank    the largest rank of an adapter
    slots   how many adapters can be loaded at once
    layers  which layers: a pattern (fnmatch) of their names in the model, several with commas
            between, or a tuple of patterns
    """

    rank: int = 16
    slots: int = 8
    layers: str | tuple[str, ...] = "*"

    def __post_init__(self) -> None:
        for name in ("rank", "slots"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BadOption(f"{name}: expected a positive int, found {value!r}")
        patterns = self.patterns if isinstance(self.layers, str | tuple) else ()
        if not patterns or not all(isinstance(p, str) and p for p in patterns):
            raise BadOption(f"layers: expected a pattern or several, found {self.layers!r}")

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns of `layers`, one by one."""
        if isinstance(self.layers, str):
            return tuple(part.strip() for part in self.layers.split(","))
        return self.layers
