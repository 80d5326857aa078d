"""What the language model knows: perplexity of held-out files, recall of names from context."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Logits = Callable[[Tensor], Tensor]  # ids int64 [B, T] -> logits [B, T, vocabulary]

NAMES = ("harvest", "lantern", "quiver", "marble", "tundra", "velvet", "cobalt", "juniper")


@dataclass(frozen=True)
class Perplexity:
    """nats: mean loss per token; of a byte-level model the bits per byte can be compared."""

    nats: float
    tokens: int
    bits_per_byte: float

    def __str__(self) -> str:
        return (
            f"perplexity {math.exp(self.nats):.2f} per token ({self.nats:.3f} nats, "
            f"{self.bits_per_byte:.3f} bits per byte, {self.tokens} tokens)"
        )


def perplexity(model: Logits, ids: np.ndarray, window: int, windows: int, tokenizer) -> Perplexity:
    """Over `windows` windows spread evenly over the ids; a window's first token is given."""
    count = min(windows, (len(ids) - 1) // window)
    starts = np.linspace(0, len(ids) - window - 1, count).astype(int)
    total, size = 0.0, 0
    for start in starts:
        row = torch.from_numpy(ids[start : start + window + 1].astype(np.int64))
        with torch.no_grad():
            logits = model(row[None, :-1])[0].float()
        total += float(F.cross_entropy(logits, row[1:], reduction="sum"))
        size += len(tokenizer.decode(row[1:].tolist(), skip_special_tokens=False).encode())
    tokens = count * window
    return Perplexity(total / tokens, tokens, total / math.log(2) / size)


@dataclass(frozen=True)
class Recall:
    """Of how many names, defined `distance` tokens earlier, every token was the likeliest."""

    right: int
    asked: int
    distance: int

    def __str__(self) -> str:
        return f"recall of a name {self.distance} tokens earlier: {self.right} of {self.asked}"


def recall(model: Logits, filler: np.ndarray, distance: int, tokenizer) -> Recall:
    """`def load_<name>(...)`, then `distance` tokens of held-out source, then `x = load_`: does
    the model go on with the name? The name's first letters follow from nothing else."""
    right = 0
    for index, name in enumerate(NAMES):
        begin = index * 997 % (len(filler) - distance)
        middle = filler[begin : begin + distance].tolist()
        asked, wanted = question(name, tokenizer)
        ids = [*definition(name, tokenizer), *middle, *asked]
        with torch.no_grad():
            logits = model(torch.tensor([[*ids, *wanted]]))[0]
        best = logits[len(ids) - 1 : len(ids) - 1 + len(wanted)].argmax(-1)
        right += best.tolist() == wanted
    return Recall(right, len(NAMES), distance)


def definition(name: str, tokenizer) -> list[int]:
    """The tokens of a function called compute_<name>."""
    ids: list[int] = tokenizer.encode(f"def compute_{name}(value):\n    return value\n\n").ids
    return ids


def question(name: str, tokenizer) -> tuple[list[int], list[int]]:
    """A call of compute_<name>: the tokens up to the name's first letter, and those behind it."""
    asked = f"\n\nresult = compute_{name[0]}"
    tail = tokenizer.encode(asked).ids
    whole = tokenizer.encode(asked + name[1:] + "(").ids
    wanted = _rest(whole, tail)
    return whole[: len(whole) - len(wanted)], wanted


def _rest(whole: list[int], tail: list[int]) -> list[int]:
    """The tokens of `whole` behind those that it shares with `tail`."""
    same = 0
    while same < min(len(whole), len(tail)) and whole[same] == tail[same]:
        same += 1
    return whole[same:]
