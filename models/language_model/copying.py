"""What teaches a language model to copy from its context: parts of windows that stand twice, and
attention that is told where to look.

A head copies when it attends to what followed the same tokens before (induction heads: Olsson et
al., 2022). Long runs learn that by themselves; a short one learns it sooner where the loss also
asks for it (supervised attention: Mi et al., 2016).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from infopt.models.decoder import Decoder, rotate, rotation

SHORTEST_PART = 6  # tokens; the longest is a third of the window
NAMES = 24  # at most, in a window
NAME = (2, 7)  # tokens of a name, beside the two before it that stay
# layer -> its heads that are told where to look: one behind the layers whose heads look at the
# token before, and the last
GUIDED = {3: (4, 5), 4: (0, 1, 3, 4)}


def repeat_parts(row: np.ndarray, copied: np.ndarray, random: np.random.Generator) -> None:
    """Write up to four parts of the row a second time further on, in place: of any size, short
    ones as often as long ones, at any distance. copied: like row, True from the third token of a
    second time on is written into it."""
    for _ in range(int(random.integers(1, 5))):
        longest = len(row) // 3
        size = round(SHORTEST_PART * (longest / SHORTEST_PART) ** random.random())
        first = int(random.integers(0, len(row) - 2 * size + 1))
        second = int(random.integers(first + size, len(row) - size + 1))
        row[second : second + size] = row[first : first + size]
        copied[second + 2 : second + size] = True


def repeat_names(
    row: np.ndarray, copied: np.ndarray, vocabulary: int, random: np.random.Generator
) -> None:
    """Write up to NAMES short parts a second time further on, in place, far ones as often as near
    ones, half of them with tokens drawn from the vocabulary behind the first two: nothing but the
    context foretells those."""
    for _ in range(int(random.integers(NAMES // 2, NAMES + 1))):
        size = 2 + int(random.integers(*NAME))
        distance = int(random.integers(size, len(row) - size + 1))
        first = int(random.integers(0, len(row) - size - distance + 1))
        name = row[first : first + size]
        if random.random() < 0.5:
            name[2:] = random.integers(1, vocabulary, size - 2)
        second = first + distance
        row[second : second + size] = name
        copied[second + 2 : second + size] = True


def followers(ids: Tensor) -> Tensor:
    """bool [B, T, T]: whether the two tokens before position j are those at i - 1 and i; j <= i.

    ids: int64 [B, T].
    """
    pairs = torch.full_like(ids, -1)  # (the token before, the token), as one number
    pairs[:, 1:] = ids[:, :-1] * (int(ids.max()) + 1) + ids[:, 1:]
    before = torch.full_like(pairs, -2)
    before[:, 1:] = pairs[:, :-1]
    return (pairs[:, :, None] == before[:, None, :]).tril()


class Guidance:
    """Watches the queries and keys of a model's guided heads, and says how far they look away."""

    def __init__(self, model: Decoder, guided: dict[int, tuple[int, ...]]) -> None:
        self.config, self.guided = model.config, guided
        self.seen: dict[tuple[int, str], Tensor] = {}
        for index in guided:
            for name in ("query", "key"):
                module = model.get_submodule(f"layers.{index}.attention.{name}")
                module.register_forward_hook(self._keep(index, name))

    def _keep(self, index: int, name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            self.seen[index, name] = output

        return hook

    def loss(self, ids: Tensor) -> Tensor:
        """Minus the logarithm of the attention that goes to `followers`, its mean over the heads
        and the positions that have any; zero where none has. ids: those the model just read."""
        batch, tokens = ids.shape
        width = self.config.head_width
        split = (batch, tokens, -1, width)
        right, causal = followers(ids), torch.ones(tokens, tokens, device=ids.device).tril().bool()
        asked = right.any(-1)
        total = torch.zeros((), device=ids.device)
        if not asked.any():
            return total
        cos, sin = rotation(torch.arange(tokens, device=ids.device), self.config, total)
        shared = self.config.heads // self.config.kv_heads
        for index, heads in self.guided.items():
            q, k = (
                rotate(self.seen[index, name].float().view(split).transpose(1, 2), cos, sin)
                for name in ("query", "key")
            )
            for head in heads:
                scores = q[:, head] @ k[:, head // shared].mT * width**-0.5
                scores = scores.masked_fill(~causal, -torch.inf)
                found = scores.masked_fill(~right, -torch.inf)[asked].logsumexp(-1)
                total = total + (scores[asked].logsumexp(-1) - found).mean()
        return total / sum(map(len, self.guided.values()))
