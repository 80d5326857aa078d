"""Choosing the next token from logits: greedily, or by temperature, top-k and top-p with a seed."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from infopt.runtime.door import CPU


@dataclass
class Sampler:
    """temperature 0: the largest logit. top_k: of so many largest; top_p: of the fewest whose
    probabilities sum to it (nucleus sampling, Holtzman et al., 2020). Raises ValueError.

    One seed, one sequence of choices.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    where: torch.device = CPU  # of the logits; choices by chance are another device's others
    _random: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature: expected 0 or more, found {self.temperature!r}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k: expected 1 or more, found {self.top_k!r}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected a number in (0, 1], found {self.top_p!r}")
        if self.temperature == 0 and (self.top_k, self.top_p, self.seed) != (None, None, None):
            raise ValueError("top_k, top_p and seed choose by chance: give a temperature too")
        self._random = torch.Generator(self.where)
        if self.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(self.seed)

    def __call__(self, logits: Tensor) -> Tensor:
        """int64 [B, 1] from logits [B, V]."""
        if self.temperature == 0:
            return logits.argmax(-1, keepdim=True)
        scores = logits.float() / self.temperature
        if self.top_k is not None and self.top_k < scores.shape[-1]:
            least = scores.topk(self.top_k).values[:, -1:]
            scores = scores.masked_fill(scores < least, float("-inf"))
        if self.top_p is not None:
            scores = nucleus(scores, self.top_p)
        return torch.multinomial(scores.softmax(-1), 1, generator=self._random)


def nucleus(scores: Tensor, share: float) -> Tensor:
    """The scores without the tokens beyond the fewest whose probabilities sum to `share`."""
    ordered, order = scores.sort(-1, descending=True)
    weights = ordered.softmax(-1)
    before = weights.cumsum(-1) - weights  # of the tokens that come first
    hidden = ordered.masked_fill(before >= share, float("-inf"))
    return torch.empty_like(scores).scatter_(-1, order, hidden)
