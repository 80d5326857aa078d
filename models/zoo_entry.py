"""What one architecture of the zoo is made of, and the example inputs of each kind of model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

VOCABULARY = 128
SIZES = (0, 1)
"""The two input sizes every architecture is run at; they differ in batch and, where a model allows,
in length.
"""

_BATCHES, _LENGTHS = (2, 3), (12, 21)


@dataclass(frozen=True)
class Entry:
    """One transformers architecture with a tiny random configuration.

    `model_type` is the name transformers registers the configuration under, `head` the rest of the
    name of an `AutoModel...` class, `config` what differs from the default configuration.
    """

    name: str
    family: str
    model_type: str
    head: str
    inputs: Callable[[int], dict[str, Tensor]]
    config: Mapping[str, Any] = field(default_factory=dict)


def tokens(size: int) -> dict[str, Tensor]:
    """Token ids and a mask whose last row is padded by three tokens."""
    batch, length = _BATCHES[size], _LENGTHS[size]
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[-1, -3:] = 0
    return {"input_ids": _ids(batch, length, seed=size), "attention_mask": mask}


def unmasked(size: int) -> dict[str, Tensor]:
    """Token ids only."""
    return {"input_ids": _ids(_BATCHES[size], _LENGTHS[size], seed=size)}


def source_and_target(size: int) -> dict[str, Tensor]:
    """An encoder's masked ids and a decoder's ids of another length."""
    return tokens(size) | {
        "decoder_input_ids": _ids(_BATCHES[size], _LENGTHS[size] - 5, seed=9 + size)
    }


def images(pixels: int, growing: bool = False) -> Callable[[int], dict[str, Tensor]]:
    """Square images; `growing` where a model takes any image size."""

    def make(size: int) -> dict[str, Tensor]:
        side = pixels * 2 if growing and size else pixels
        return {"pixel_values": _noise(_BATCHES[size], 3, side, side, seed=size)}

    return make


def images_and_tokens(pixels: int) -> Callable[[int], dict[str, Tensor]]:
    """As many images as texts."""
    return lambda size: tokens(size) | images(pixels)(size)


def waveform(samples: int) -> Callable[[int], dict[str, Tensor]]:
    """Raw audio; the second size is longer by half."""
    return lambda size: {
        "input_values": _noise(_BATCHES[size], samples + size * samples // 2, seed=size)
    }


def spectrogram(name: str, *shape: int) -> Callable[[int], dict[str, Tensor]]:
    """Audio features of a fixed shape under the name the model takes them by."""
    return lambda size: {name: _noise(_BATCHES[size], *shape, seed=size)}


def _ids(batch: int, length: int, seed: int) -> Tensor:
    # the lowest ids are padding, begin and end in most configurations
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, VOCABULARY - 5, (batch, length), generator=generator)


def _noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
