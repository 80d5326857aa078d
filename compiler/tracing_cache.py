"""The cache that a decoder meets while it is traced: it records the appends and the attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from infopt.compiler.errors import TraceDeclined
from infopt.runtime.kv_layout import KV


@dataclass(frozen=True)
class LayerShape:
    """What one layer keeps of a token: heads and features of its keys, features of its values."""

    heads: int
    key_width: int
    value_width: int
    dtype: torch.dtype


class ShapeCache:
    """Finds the layers' shapes in a run on a few real tokens without a cache."""

    def __init__(self) -> None:
        self.layers: dict[int, LayerShape] = {}

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if k.dim() != 4 or v.dim() != 4 or k.shape[:3] != v.shape[:3] or k.dtype != v.dtype:
            raise TraceDeclined(
                f"layer {layer} caches keys {tuple(k.shape)} and values {tuple(v.shape)}, expected "
                "[batch, heads, tokens, width]"
            )
        self.layers[layer] = LayerShape(k.shape[1], k.shape[3], v.shape[3], k.dtype)
        return k, v

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        gqa = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=gqa)


class TracingCache:
    """A cache of fixed size as functional state: every append makes the next value of a store.

    stores: keys and values of every layer, [B, H, S, D], in turn
    """

    def __init__(
        self, stores: Sequence[Tensor], starts: Tensor, counts: Tensor, layout: KV
    ) -> None:
        self.stores = list(stores)
        self.starts, self.counts = starts, counts
        self.layout = layout
        self.read: set[int] = set()
        self._layers: list[tuple[Tensor, int, int]] = []  # keys, features of values, layer

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's new keys and values [B, H, T, D] come into the cache; the tokens that a
        later `attend` names by what is returned."""
        ops = torch.ops.infopt
        for which, x in ((2 * layer, k), (2 * layer + 1, v)):
            given = self.stores[which], x, self.starts, self.counts
            if self.layout.format == "int4":
                self.stores[which] = ops.kv_append_int4(*given, per_token=bool(which % 2))
            elif self.layout.format == "int8":
                self.stores[which] = ops.kv_append_int8(*given)
            else:
                self.stores[which] = ops.kv_append(*given)
        self._layers.append((k, v.shape[-1], layer))
        return k, v

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """Attention of q [B, H, T, D] to all of the layer's tokens so far; k: from `append`."""
        found = next(((width, n) for x, width, n in self._layers if x is k), None)
        if found is None:
            raise TraceDeclined("attention reads keys that are not those its cache returned")
        width, layer = found
        self.read.add(layer)
        given = q, self.stores[2 * layer], self.stores[2 * layer + 1], self.starts
        options = {
            "scale": q.shape[-1] ** -0.5 if scale is None else scale,
            "window": window or 0,
            "softcap": softcap or 0.0,
        }
        ops = torch.ops.infopt
        if self.layout.format == "int4":
            return ops.kv_attention_int4(*given, self.counts, width=width, **options)
        attend = ops.kv_attention_int8 if self.layout.format == "int8" else ops.kv_attention
        return attend(*given, **options)
