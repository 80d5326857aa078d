"""transformers' causal models, traced with a cache and an attention function of ours.

No model is known by name: transformers hands every model's keys and values to a Cache, and its
attention to a registered function, and both are ours while the model is traced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from infopt.compiler.decoding.tracing_cache import MetCache
from infopt.compiler.errors import TraceDeclined

NAME = "infopt"  # of the attention function
_REFUSED = ("s_aux", "position_bias", "attention_bias", "head_mask")


def is_transformers(model: torch.nn.Module) -> bool:
    return hasattr(model, "config") and hasattr(model.config, "_attn_implementation")


def call(model: Any, ids: Tensor, positions: Tensor, cache: MetCache, last: Callable) -> Tensor:
    """Logits of the positions that `last` picks of hidden states [B, T, W]."""
    with _own_attention(model, cache), _picked(model, last):
        out = model(
            input_ids=ids,
            position_ids=positions,
            past_key_values=_cache(cache),
            use_cache=True,
            return_dict=True,
        )
    return out.logits


def _cache(cache: MetCache) -> Any:
    from transformers.cache_utils import Cache, DynamicLayer

    class Handed(Cache):
        """What transformers' models are given as past_key_values."""

        def __init__(self) -> None:
            super().__init__(layer_class_to_replicate=DynamicLayer)

        def update(self, k: Tensor, v: Tensor, layer: int, *_: Any, **__: Any) -> Any:
            return cache.append(layer, k, v)

        def get_seq_length(self, *_: Any, **__: Any) -> int:
            return 0  # positions are given

    return Handed()


@contextmanager
def _own_attention(model: Any, cache: MetCache) -> Iterator[None]:
    from transformers import AttentionInterface

    def attend(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        is_causal: bool | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        for name in _REFUSED:
            if others.get(name) is not None:
                raise TraceDeclined(f"attention with {name} has no form with a compiled cache")
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if attention_mask is not None or not causal:
            raise TraceDeclined("attention that is not causal has no form with a compiled cache")
        if dropout:
            raise TraceDeclined(f"dropout is {dropout}; call model.eval() first")
        out = cache.attend(query, key, value, scale=scaling, window=sliding_window, softcap=softcap)
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register(NAME, attend)
    before = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before
        AttentionInterface._global_mapping.pop(NAME, None)


@contextmanager
def _picked(model: Any, last: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The head is applied to the rows that are asked for, not to all."""
    head = model.get_output_embeddings()
    if head is None:
        raise TraceDeclined(f"{type(model).__name__} has no output embeddings: not a causal model")
    hook = head.register_forward_pre_hook(lambda _, args: (last(args[0]), *args[1:]))
    try:
        yield
    finally:
        hook.remove()
