"""What a user allows merging and dropping of tokens to do."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from infopt.compiler.errors import BadOption

SCORES = {"merge": ("states", "keys"), "prune": ("attention", "norm")}
SCHEDULES = ("even", "early")
_WHOLE = 1000  # shares are counted in thousandths, so that sums of them are whole
_STEP = 0.55  # matching pairs leaves half of the tokens at the least, and sizes are rounded


@dataclass(frozen=True)
class Tokens:
    """Tokens are merged or dropped between attention and feed-forward part of every layer.

    keep      the share of tokens left after the last layer that loses some
    method    "merge": the most similar pairs become their mean, and count as two from there on.
              "prune": those of the lowest score go; where all are wanted in the end, they come
              back as they left
    score     what pairs or single tokens are judged by. Of merge: the "states" between layers or
              the "keys" of attention; of prune: "attention" received, or the "norm" of states.
              None: the first of these
    schedule  "even": every layer loses as many. "early": the first lose most, evenly less after
    limit     the largest relative RMS error of the model's results, measured on the example inputs
    """

    keep: float = 0.5
    method: str = "merge"
    score: str | None = None
    schedule: str = "even"
    limit: float = 0.5

    def __post_init__(self) -> None:
        if self.method not in SCORES:
            raise BadOption(f"method: expected 'merge' or 'prune', found {self.method!r}")
        for name, low in (("keep", 0), ("limit", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > low:
                raise BadOption(f"{name}: expected a number above 0, found {value!r}")
        if self.keep >= 1:
            raise BadOption(f"keep: expected a share of tokens below 1, found {self.keep!r}")
        if self.score is not None and self.score not in SCORES[self.method]:
            known = ", ".join(SCORES[self.method])
            raise BadOption(f"score of {self.method}: expected {known}, found {self.score!r}")
        if self.schedule not in SCHEDULES:
            raise BadOption(f"schedule: expected {' or '.join(SCHEDULES)}, found {self.schedule!r}")

    @property
    def judged_by(self) -> str:
        """The score that counts."""
        return self.score or SCORES[self.method][0]

    def left(self, tokens: int, layers: int) -> list[int] | str:
        """How many of the tokens are left after each layer, or why that cannot be."""
        shares = self._removed(layers)
        steps = pairwise([0, *shares])
        if self.method == "merge" and any(_WHOLE - b < _STEP * (_WHOLE - a) for a, b in steps):
            return (
                f"{layers} layers cannot merge to {self.keep:.0%}: a layer merges pairs, "
                f"so {1 - _STEP:.0%} of its tokens at most"
            )
        return [tokens - tokens * share // _WHOLE for share in shares]

    def _removed(self, layers: int) -> list[int]:
        """Thousandths of all tokens that are gone after each layer."""
        parts = [layers - i if self.schedule == "early" else 1 for i in range(layers)]
        gone = (1 - self.keep) * _WHOLE / sum(parts)
        return [round(gone * sum(parts[: i + 1])) for i in range(layers)]
