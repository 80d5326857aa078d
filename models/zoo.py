"""Public transformers architectures with tiny random weights, each buildable in well under three
seconds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infopt.models.zoo_entry import SIZES, Entry
from infopt.models.zoo_media import MEDIA
from infopt.models.zoo_text import TEXT

ZOO: dict[str, Entry] = {entry.name: entry for entry in TEXT + MEDIA}

__all__ = ["SIZES", "ZOO", "UnknownArchitecture", "build", "inputs"]


class UnknownArchitecture(KeyError):
    """The zoo has no architecture of that name."""


def entry(name: str) -> Entry:
    """The description of one architecture; raises UnknownArchitecture."""
    if name not in ZOO:
        raise UnknownArchitecture(f"{name!r} is not in the zoo; known: {', '.join(ZOO)}")
    return ZOO[name]


def build(name: str) -> nn.Module:
    """The architecture with random weights from a fixed seed, float32, in eval mode. Needs
    transformers.
    """
    import transformers

    found = entry(name)
    config = transformers.AutoConfig.for_model(found.model_type, **found.config)
    torch.manual_seed(0)
    model = getattr(transformers, f"AutoModel{found.head}").from_config(config)
    return model.eval()


def inputs(name: str, size: int) -> dict[str, Tensor]:
    """Keyword arguments of the architecture's forward at one of SIZES, the same on every call."""
    if size not in SIZES:
        raise ValueError(f"size {size}: known are {SIZES}")
    return entry(name).inputs(size)
