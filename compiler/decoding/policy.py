"""What a policy of the cache is: which stores a layer has, what an append and an attention do.

A policy is torch code that is traced into the program, so that a step stays native calls. It keeps
what it likes in stores (summaries of pages, scores of slots), writes them by the ops of
codegen/kernels/kv_*.py, and decides what attention reads: a scorer, a budget and the fate of what
exceeds it. PagePolicy and SlotPolicy have the two usual forms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infopt.compiler.target import Target


@dataclass(frozen=True)
class LayerShape:
    """What one layer keeps of a token: heads and features of its keys, features of its values.

    layer, layers: which one of how many; rotary: whether the model names its rotary frequencies
    """

    heads: int
    key_width: int
    value_width: int
    dtype: torch.dtype
    layer: int = 0
    layers: int = 1
    rotary: bool = False


@dataclass(frozen=True)
class Store:
    """One tensor of a layer's state: sizes behind the batch, dtype, and what it starts with."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    fill: float = 0


class LayerCache:
    """One layer's state while its program is traced: `cache["keys"]` is the value of a store so
    far, and setting it makes the next one.

    starts, counts: int64 [B], tokens in the cache and tokens that this call brings
    inverse_frequencies: f32 [D / 2], of rotary positions whose pairs are halves apart, if known
    table: int64 [B, P], the pages of each sequence, where all have theirs in one store
    """

    def __init__(
        self,
        shape: LayerShape,
        stores: Mapping[str, Tensor],
        starts: Tensor,
        counts: Tensor,
        inverse_frequencies: Tensor | None,
        table: Tensor | None = None,
    ) -> None:
        self.shape, self.starts, self.counts = shape, starts, counts
        self.inverse_frequencies, self.table = inverse_frequencies, table
        self.stores = dict(stores)

    def __getitem__(self, name: str) -> Tensor:
        return self.stores[name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        if name not in self.stores:
            raise KeyError(f"the policy declared no store {name!r}, only {sorted(self.stores)}")
        self.stores[name] = value

    def new_places(self, tokens: int) -> Tensor:
        """int64 [B, T]: where the call's tokens stand in the text, -1 for padding."""
        order = torch.arange(tokens, device=self.starts.device)
        place = self.starts[:, None] + order
        return torch.where(order < self.counts[:, None], place, -1)


class Policy:
    """How a cache is kept. Subclasses are dataclasses: their fields are the choices.

    chunk  the most tokens of one call; longer prompts are cut. None: any number
    group  with every so many tokens it changes what is kept of earlier ones, so that guessed tokens
           end before; 0: never, 1: with each, so that none are guessed
    pooled stores are of one page of so many tokens, [heads, pooled, width], and all sequences have
           pages of one pool (`LayerCache.table`); 0: stores are a sequence's own
    forgets whether tokens go, by where they stand in the text
    """

    chunk: int | None = None
    group: int = 0
    pooled: int = 0
    forgets: bool = False

    def stores(self, shape: LayerShape, max_length: int) -> dict[str, Store]:
        """The state of one layer, "keys" and "values" among it."""
        raise NotImplementedError

    def append(self, cache: LayerCache, k: Tensor, v: Tensor) -> None:
        """The call's tokens k, v [B, H, T, D] come into the cache."""
        raise NotImplementedError

    def attend(
        self, cache: LayerCache, q: Tensor, *, scale: float, window: int, softcap: float
    ) -> Tensor:
        """Attention of q [B, H * groups, T, D] to what is kept, after its tokens came."""
        raise NotImplementedError

    def declined(self, shape: LayerShape, max_length: int, machine: Target) -> str | None:
        """Why the plain cache serves better, with the two numbers, else None."""
        return None

    def endless(self, shape: LayerShape) -> bool:
        """Whether texts may be longer than the positions that the model knows."""
        return False

    def note(self) -> dict[str, Any]:
        """What a report says of it."""
        return {"policy": type(self).__name__, **getattr(self, "__dict__", {})}
