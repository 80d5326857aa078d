"""The plain cache as a policy: every token in its place, in one of the formats of infopt.KV."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from infopt.compiler.decoding.policy import LayerCache, LayerShape, Policy, Store
from infopt.runtime.decoding.layout import KV
from infopt.runtime.plan_check import dtype_of


@dataclass(frozen=True)
class Contiguous(Policy):
    """All tokens, one after the other."""

    kv: KV = field(default_factory=KV)

    @property
    def group(self) -> int:  # type: ignore[override]
        return self.kv.group

    def stores(self, shape: LayerShape, max_length: int) -> dict[str, Store]:
        made = {}
        for name, width in (("keys", shape.key_width), ("values", shape.value_width)):
            sizes, dtype = self.kv.store(shape.heads, max_length, width, str(shape.dtype))
            made[name] = Store(sizes, dtype_of(dtype, "stores"))
        return made

    def append(self, cache: LayerCache, k: Tensor, v: Tensor) -> None:
        ops = torch.ops.infopt
        for name, x in (("keys", k), ("values", v)):
            given = cache[name], x, cache.starts, cache.counts
            if self.kv.format == "int4":
                cache[name] = ops.kv_append_int4(*given, per_token=name == "values")
            elif self.kv.format == "int8":
                cache[name] = ops.kv_append_int8(*given)
            else:
                cache[name] = ops.kv_append(*given)

    def attend(
        self, cache: LayerCache, q: Tensor, *, scale: float, window: int, softcap: float
    ) -> Tensor:
        ops = torch.ops.infopt
        given = q, cache["keys"], cache["values"], cache.starts
        options = {"scale": scale, "window": window, "softcap": softcap}
        if self.kv.format == "int4":
            width = cache.shape.value_width
            return ops.kv_attention_int4(*given, cache.counts, width=width, **options)
        attend = ops.kv_attention_int8 if self.kv.format == "int8" else ops.kv_attention
        return attend(*given, **options)
