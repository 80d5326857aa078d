"""A pre-norm causal decoder of the Llama type (Touvron et al., 2023) in plain torch.

Without a cache it reads whole sequences; infopt.compile_causal_lm gives it positions and a cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a decoder; the defaults are those of a public 1B model with tied embeddings."""

    vocabulary: int = 128256
    width: int = 2048
    layers: int = 16
    heads: int = 32
    kv_heads: int = 8
    hidden: int = 8192
    rope_base: float = 500000.0
    norm_eps: float = 1e-5
    tied: bool = True  # the head shares the embedding's weight

    @property
    def head_width(self) -> int:
        return self.width // self.heads


LLAMA_1B = DecoderConfig()
DECODER_340M = DecoderConfig(
    vocabulary=32000, width=1024, layers=24, heads=16, kv_heads=16, hidden=2816
)
SMALL = DecoderConfig(vocabulary=512, width=64, layers=2, heads=4, kv_heads=2, hidden=192)


class Cache(Protocol):
    """The keys and values of earlier tokens, as compile_causal_lm hands it to a module."""

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k and v [B, heads, T, D] of new tokens; what is returned goes to `attend`."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
        """Causal attention of q [B, heads, T, D] to all tokens so far."""
        ...


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight, with the mean taken in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rotation(positions: Tensor, config: DecoderConfig, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary angles of positions [...], [..., head_width] in like's dtype."""
    half = torch.arange(0, config.head_width, 2, device=like.device).float() / config.head_width
    angles = positions.float()[..., None] / config.rope_base**half
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [B, heads, T, head_width] with the halves as pairs."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions and no biases."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        kv_width = config.kv_heads * config.head_width
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.key = nn.Linear(config.width, kv_width, bias=False)
        self.value = nn.Linear(config.width, kv_width, bias=False)
        self.output = nn.Linear(config.width, config.width, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: Cache | None = None, layer: int = 0
    ) -> Tensor:
        batch, tokens, width = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(batch, tokens, -1, self.config.head_width).transpose(1, 2)

        q = rotate(split(self.query(x)), cos, sin)
        k = rotate(split(self.key(x)), cos, sin)
        v = split(self.value(x))
        if cache is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            y = cache.attend(q, *cache.append(layer, k, v))
        return self.output(y.transpose(1, 2).reshape(batch, tokens, width))


class Layer(nn.Module):
    """Attention and a SiLU-gated feed-forward on normalised inputs, each added to the stream."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config)
        self.hidden_norm = RMSNorm(config.width, config.norm_eps)
        self.gate = nn.Linear(config.width, config.hidden, bias=False)
        self.up = nn.Linear(config.width, config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.width, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: Cache | None = None, layer: int = 0
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, cache, layer)
        y = self.hidden_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """ids int64 [B, T] -> logits [B, T, vocabulary]; the head may share the embedding's weight.

    positions int64 [B, T], with a cache of earlier tokens: where the tokens stand.
    """

    def __init__(self, config: DecoderConfig = LLAMA_1B) -> None:
        super().__init__()
        self.config = config
        self.token = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = None
        if not config.tied:
            self.head = nn.Linear(config.width, config.vocabulary, bias=False)

    def forward(
        self, ids: Tensor, positions: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        x = self.token(ids)
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)
        cos, sin = rotation(positions, self.config, x)
        if positions.dim() == 2:
            cos, sin = cos[:, None], sin[:, None]  # beside the heads
        for index, layer in enumerate(self.layers):
            x = layer(x, cos, sin, cache, index)
        head = self.token if self.head is None else self.head
        return F.linear(self.norm(x), head.weight)
