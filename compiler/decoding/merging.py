"""Merging instead of forgetting: what eviction gives away goes into the most similar token kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from infopt.compiler.decoding.policy import LayerCache, LayerShape, Store
from infopt.compiler.decoding.slots import Evict


@dataclass(frozen=True)
class D2O(Evict):
    """Evict, but keys and values of an evicted token are averaged into those of the kept one whose
    key has the largest cosine with its key, where that is at least the moving average of what this
    cosine was (D2O, Wan et al., 2024; each layer has the same number of slots here).

    The kept token counts e, an evicted one exp(cosine).

    pace  how much of the average the newest evictions make
    """

    pace: float = 0.7

    def stores(self, shape: LayerShape, max_length: int) -> dict[str, Store]:
        threshold = Store((shape.heads, 1), torch.float32, -2.0)  # below every cosine: none yet
        return super().stores(shape, max_length) | {"threshold": threshold}

    def given_away(self, cache: LayerCache, slots: Tensor) -> None:
        ops = torch.ops.infopt
        keys, values = cache["keys"], cache["values"]
        leaving = ops.kv_read(keys, slots[:, :, None])[:, :, 0].float()  # [B, H, T, D]
        leaves = ops.kv_read(cache["places"], slots[:, :, None])[:, :, 0, :, 0] >= 0
        leaves = leaves & (slots >= 0)
        every = torch.arange(keys.shape[2], device=keys.device)
        stays = cache["places"][..., 0] >= 0
        stays = stays & ~((slots[..., None] == every) & leaves[..., None]).any(2)
        cosine = _unit(leaving) @ _unit(keys.float()).transpose(2, 3)
        cosine = torch.where(stays[:, :, None], cosine, -1.0)
        into = ops.top_places(cosine, count=1, by_place=False)[..., 0]
        best = cosine.amax(-1)

        number = leaves.sum(-1, keepdim=True)
        mean = torch.where(leaves, best, 0.0).sum(-1, keepdim=True) / number.clamp(min=1)
        before = cache["threshold"]
        moved = torch.where(before < -1, mean, self.pace * mean + (1 - self.pace) * before)
        cache["threshold"] = threshold = torch.where(number > 0, moved, before)

        merges = leaves & (best >= threshold)
        same = (into[..., None] == into[:, :, None]) & merges[:, :, None]
        shares = torch.where(same, best.exp()[:, :, None], 0.0)  # [B, H, T, T]: into one slot
        whole = shares.sum(-1, keepdim=True) + math.e
        target = torch.where(merges, into, -1)
        for name, store in (("keys", keys), ("values", values)):
            given, kept = (
                ops.kv_read(store, places[:, :, None])[:, :, 0].float() for places in (slots, into)
            )
            rows = (math.e * kept + shares @ given) / whole
            cache[name] = ops.kv_write(store, rows.to(store.dtype), target)


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1; of length 0 where they are 0."""
    return x / (x * x).sum(-1, keepdim=True).sqrt().clamp(min=1e-6)
