"""A block of a diffusion model's U-Net (Rombach et al., 2022) in plain torch: convolutions told the
time, attention over the image, attention over a text."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of a block; the defaults are those of the widest images in Stable Diffusion 1.5, of
    which `image` is the side in its latent space."""

    channels: int = 320
    image: int = 64
    heads: int = 8
    groups: int = 32
    time: int = 1280
    context: int = 768  # width of a text's tokens
    tokens: int = 77  # of a text


UNET_BLOCK = UNetConfig()
SMALL = UNetConfig(channels=32, image=8, heads=2, groups=4, time=16, context=24, tokens=5)


class Residual(nn.Module):
    """Two convolutions of normalised, activated images, the time added between them."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        c = config.channels
        self.norm_in, self.norm_out = (nn.GroupNorm(config.groups, c) for _ in range(2))
        self.conv_in, self.conv_out = (nn.Conv2d(c, c, 3, padding=1) for _ in range(2))
        self.time = nn.Linear(config.time, c)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.conv_in(F.silu(self.norm_in(x)))
        y = y + self.time(F.silu(time))[:, :, None, None]
        return x + self.conv_out(F.silu(self.norm_out(y)))


class Attention(nn.Module):
    """Attention of an image's places to themselves, or to a text."""

    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key, self.value = (nn.Linear(context, width, bias=False) for _ in range(2))
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.view(*y.shape[:2], self.heads, -1).transpose(1, 2)

        q, k, v = (split(f) for f in (self.query(x), self.key(context), self.value(context)))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.output(y.transpose(1, 2).reshape(x.shape))


class UNetBlock(nn.Module):
    """images [B, C, side, side], time [B, its width], texts [B, tokens, their width] -> images"""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        c = config.channels
        self.residual = Residual(config)
        self.norm_image = nn.GroupNorm(config.groups, c)
        self.enter, self.leave = (nn.Conv2d(c, c, 1) for _ in range(2))
        self.norm_self, self.norm_text, self.norm_hidden = (nn.LayerNorm(c) for _ in range(3))
        self.to_self = Attention(c, c, config.heads)
        self.to_text = Attention(c, config.context, config.heads)
        self.gate_up, self.down = nn.Linear(c, 8 * c), nn.Linear(4 * c, c)

    def forward(self, images: Tensor, time: Tensor, texts: Tensor) -> Tensor:
        images = self.residual(images, time)
        x = self.enter(self.norm_image(images)).flatten(2).transpose(1, 2)
        y = self.norm_self(x)
        x = x + self.to_self(y, y)
        x = x + self.to_text(self.norm_text(x), texts)
        up, gate = self.gate_up(self.norm_hidden(x)).chunk(2, -1)
        x = x + self.down(up * F.gelu(gate))
        return images + self.leave(x.transpose(1, 2).reshape(images.shape))
