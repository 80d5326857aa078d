"""The zoo is broad, reproducible, and says what it does not know."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from infopt.models import zoo
from infopt.models.agreement import tensors


def test_breadth() -> None:
    families = Counter(entry.family for entry in zoo.ZOO.values())
    assert len(zoo.ZOO) >= 45
    assert set(families) >= {
        "encoder",
        "decoder",
        "encoder-decoder",
        "mixture of experts",
        "vision",
        "audio",
        "multimodal",
    }


@pytest.mark.parametrize("name", ["bert", "llama", "vit", "wav2vec2"])
def test_same_weights_and_inputs_every_time(name: str) -> None:
    pytest.importorskip("transformers")
    with torch.no_grad():
        first, second = (zoo.build(name)(**zoo.inputs(name, 0)) for _ in range(2))
    for a, b in zip(tensors(first), tensors(second), strict=True):
        assert torch.equal(a, b)
        assert torch.isfinite(a).all()


def test_sizes_differ() -> None:
    for name in zoo.ZOO:
        small, large = ([x.shape for x in zoo.inputs(name, size).values()] for size in zoo.SIZES)
        assert small != large, name


def test_unknown_names_and_sizes() -> None:
    with pytest.raises(zoo.UnknownArchitecture, match="'nothing' is not in the zoo; known: bert"):
        zoo.build("nothing")
    with pytest.raises(ValueError, match="size 7: known are"):
        zoo.inputs("bert", 7)
