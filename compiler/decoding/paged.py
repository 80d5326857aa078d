"""The plain cache in pages of a common store, which texts with the same beginning share."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from infopt.compiler.decoding.contiguous import Contiguous
from infopt.compiler.decoding.policy import LayerCache, LayerShape, Store
from infopt.runtime.decoding.layout import KV


@dataclass(frozen=True)
class Paged(Contiguous):
    """All tokens, in pages of kv.page of them."""

    kv: KV = field(default_factory=lambda: KV(page=16))

    @property
    def pooled(self) -> int:  # type: ignore[override]
        return self.kv.page

    def stores(self, shape: LayerShape, max_length: int) -> dict[str, Store]:
        return super().stores(shape, self.kv.page)

    def append(self, cache: LayerCache, k: Tensor, v: Tensor) -> None:
        for name, x in (("keys", k), ("values", v)):
            given = cache[name], x, cache.starts, cache.counts, cache.table
            cache[name] = torch.ops.infopt.kv_append_paged(*given, page=self.kv.page)

    def attend(
        self, cache: LayerCache, q: Tensor, *, scale: float, window: int, softcap: float
    ) -> Tensor:
        given = q, cache["keys"], cache["values"], cache.starts, cache.table
        options = {"scale": scale, "window": window, "softcap": softcap}
        return torch.ops.infopt.kv_attention_paged(*given, page=self.kv.page, **options)
