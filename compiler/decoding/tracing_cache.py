"""The cache that a decoder meets while it is traced: it records the appends and the attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from infopt.compiler.decoding.policy import LayerCache, LayerShape, Policy
from infopt.compiler.errors import TraceDeclined


class MetCache(Protocol):
    """What a decoder calls while it is traced."""

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]: ...

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor: ...


class ShapeCache:
    """Finds the layers' shapes, and windows of attention, in a run on a few real tokens without a
    cache."""

    def __init__(self) -> None:
        self.layers: dict[int, LayerShape] = {}
        self.windows: set[int] = set()

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
        if window:
            self.windows.add(window)
        gqa = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=gqa)


class TracingCache:
    """A cache of fixed size as functional state: every append makes the next value of a store.

    shapes: of every layer; stores: all their stores in turn, as `policy` declares them
    """

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        stores: Sequence[Tensor],
        starts: Tensor,
        counts: Tensor,
        policy: Policy,
        max_length: int,
        inverse_frequencies: Tensor | None = None,
        table: Tensor | None = None,
    ) -> None:
        self.policy, self.read = policy, set[int]()
        left: Iterator[Tensor] = iter(stores)
        self._layers = []
        for shape in shapes:
            named = {name: next(left) for name in policy.stores(shape, max_length)}
            given = shape, named, starts, counts, inverse_frequencies, table
            self._layers.append(LayerCache(*given))
        self._returned: list[tuple[Tensor, int]] = []  # by append: keys, and of which layer

    @property
    def stores(self) -> list[Tensor]:
        """The stores' values so far."""
        return [value for layer in self._layers for value in layer.stores.values()]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's new keys and values [B, H, T, D] come into the cache; the tokens that a
        later `attend` names by what is returned."""
        self.policy.append(self._layers[layer], k, v)
        self._returned.append((k, layer))
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
        layer = next((n for x, n in self._returned if x is k), None)
        if layer is None:
            raise TraceDeclined("attention reads keys that are not those its cache returned")
        self.read.add(layer)
        return self.policy.attend(
            self._layers[layer],
            q,
            scale=q.shape[-1] ** -0.5 if scale is None else scale,
            window=window or 0,
            softcap=softcap or 0.0,
        )
