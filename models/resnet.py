"""A residual convolutional network of the ResNet type (He et al., 2015) in plain torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ResNetConfig:
    """Bottleneck blocks per stage and the width of the first stage; the defaults are ResNet-50."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    classes: int = 1000
    expansion: int = 4


RESNET_50 = ResNetConfig()
SMALL = ResNetConfig(blocks=(1, 1), width=8, classes=10)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with batch norms, added to the (projected) input."""

    def __init__(self, inputs: int, width: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(inputs, width, 1, bias=False)
        self.reduce_norm = nn.BatchNorm2d(width)
        self.spatial = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.spatial_norm = nn.BatchNorm2d(width)
        self.expand = nn.Conv2d(width, outputs, 1, bias=False)
        self.expand_norm = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.reduce_norm(self.reduce(x)))
        y = F.relu(self.spatial_norm(self.spatial(y)))
        return F.relu(self.expand_norm(self.expand(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """images float [B, 3, H, W] -> logits [B, classes]."""

    def __init__(self, config: ResNetConfig = RESNET_50) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, config.width, 7, stride=2, padding=3, bias=False)
        self.stem_norm = nn.BatchNorm2d(config.width)
        blocks, inputs = [], config.width
        for stage, count in enumerate(config.blocks):
            width = config.width * 2**stage
            for index in range(count):
                stride = 2 if stage and not index else 1
                blocks.append(Bottleneck(inputs, width, width * config.expansion, stride))
                inputs = width * config.expansion
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, config.classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem_norm(self.stem(images))), 3, stride=2, padding=1)
        return self.head(self.blocks(x).mean((2, 3)))
