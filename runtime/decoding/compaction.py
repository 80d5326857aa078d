"""Long prompts cut to the tokens that matter, each at its own position in the text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from infopt.runtime.decoding.prompts import padded_rows
from infopt.runtime.errors import BadTokens

FILTER = "prompt-filter.infopt"  # the program that says what tokens are worth, in an artifact
Run = Callable[[list[Any]], list[Tensor]]
SINKS = 1  # first tokens that stay: softmax rests on them


@dataclass(frozen=True)
class Compaction:
    """How prompts are cut: the last tokens' attention in an early layer of the model chooses what
    all layers then read (GemFilter, Shi et al., 2024; unlike there, tokens keep their positions).

    keep        so much of a prompt stays
    layer       whose attention is asked, from 0: the layers before it read the whole prompt. None:
                two fifths of the way
    asking      so many last tokens are asked for the mean of their attention; they all stay
    neighbours  a token is worth the most of those up to so many places away: words stay whole
    least       prompts of fewer tokens stay whole

    Raises ValueError for numbers that there cannot be.
    """

    keep: float = 0.25
    layer: int | None = None
    asking: int = 8
    neighbours: int = 2
    least: int = 256

    def __post_init__(self) -> None:
        whole = {"asking": 1, "neighbours": 0, "least": 1}
        if self.layer is not None:
            whole["layer"] = 0
        numbers = {name: getattr(self, name) for name in whole}
        fits = all(type(n) is int and n >= whole[name] for name, n in numbers.items())
        if not fits or type(self.keep) not in (int, float) or not 0 < self.keep <= 1:
            raise ValueError(
                "expected 0 < keep <= 1, and ints: layer and neighbours >= 0, asking and least "
                f">= 1; found {self}"
            )

    def kept(self, tokens: int, keep: float | None = None) -> int:
        """How many of so many tokens stay."""
        if tokens < self.least:
            return tokens
        share = math.ceil(tokens * (self.keep if keep is None else keep))
        return min(tokens, max(share, SINKS + self.asking))

    def choose(self, worth: Tensor, tokens: int, keep: float | None = None) -> Tensor:
        """Which of a prompt's tokens stay, int64, ascending; worth: f32 [tokens or more]."""
        own, near = worth[:tokens], self.neighbours
        most = F.max_pool1d(own[None], 2 * near + 1, stride=1, padding=near)[0]
        most[:SINKS] = math.inf
        most[tokens - self.asking :] = math.inf
        # of neighbours that are worth the same, the one first that the others have it from
        order = own.argsort(descending=True, stable=True)
        order = order[most[order].argsort(descending=True, stable=True)]
        return order[: self.kept(tokens, keep)].sort().values

    def places(
        self, prompts: Sequence[Tensor], run: Run, keep: float | None = None
    ) -> list[Tensor]:
        """Which tokens of each prompt stay; run: the filter's program, of ids and counts."""
        kept = [torch.arange(len(p)) for p in prompts]
        cut = [n for n, p in enumerate(prompts) if self.kept(len(p), keep) < len(p)]
        if cut:
            counts = torch.tensor([len(prompts[n]) for n in cut])
            (worth,) = run([padded_rows([prompts[n] for n in cut]), counts])
            for row, n in enumerate(cut):
                kept[n] = self.choose(worth[row], len(prompts[n]), keep)
        return kept

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Compaction:
        return cls(**record)


def check_places(places: Sequence[Any], prompts: Sequence[Tensor]) -> list[Tensor]:
    """Numbers of tokens of each prompt, ascending, the last among them. Raises BadTokens."""
    if len(places) != len(prompts):
        raise BadTokens(f"places: expected {len(prompts)} sequences, found {len(places)}")
    made = []
    for number, (given, prompt) in enumerate(zip(places, prompts)):
        found, last = torch.as_tensor(given), len(prompt) - 1
        whole = found.dtype is torch.int64 and found.dim() == 1 and found.numel() > 0
        if not whole or found[0] < 0 or found[-1] != last or not bool((found.diff() > 0).all()):
            raise BadTokens(
                f"places of sequence {number}: expected ascending numbers of its tokens that end "
                f"with {last}, the last, found {given!r:.80}"
            )
        made.append(found)
    return made
