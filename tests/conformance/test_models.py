"""Whole models against eager: the plain modules of models/, and architectures of the zoo with
dynamic sizes.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from infopt.models import decoder, encoder, resnet, vision, zoo
from infopt.models.agreement import close, tensors
from tests.conformance.harness import check, compiled, exact_outcome

QUICK = ("bert", "llama", "convnext")
SMALL_ENCODER = encoder.EncoderConfig(
    vocabulary=100, width=48, layers=2, heads=4, hidden=96, positions=32
)
SMALL_VISION = vision.VisionConfig(
    image=32, patch=8, width=48, layers=2, heads=4, hidden=96, classes=7
)


def ids(batch: int, length: int, vocabulary: int = 100) -> torch.Tensor:
    return torch.randint(0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(0))


def padded(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[-1, length // 2 :] = 0
    return ids(batch, length), mask


def plain_models() -> dict[str, tuple[torch.nn.Module, list[tuple[Any, ...]]]]:
    torch.manual_seed(0)
    return {
        "encoder": (encoder.Encoder(SMALL_ENCODER), [padded(2, 9), padded(3, 16), padded(1, 32)]),
        "encoder without mask": (encoder.Encoder(SMALL_ENCODER), [(ids(2, 4),), (ids(4, 4),)]),
        "decoder": (decoder.Decoder(decoder.SMALL), [(ids(1, 7),), (ids(2, 4),), (ids(1, 1),)]),
        "vision": (
            vision.VisionTransformer(SMALL_VISION),
            [(torch.randn(b, 3, 32, 32),) for b in (1, 4, 2)],
        ),
        "resnet": (
            resnet.ResNet(resnet.SMALL),
            [(torch.randn(b, 3, s, s),) for b, s in ((1, 32), (2, 48))],
        ),
    }


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in plain_models()]
    + [(name, torch.bfloat16) for name in ("encoder", "decoder")]
    + [pytest.param("vision", torch.bfloat16, marks=pytest.mark.slow)],
)
def test_plain_model(name: str, dtype: torch.dtype) -> None:
    model, calls = plain_models()[name]
    model = model.eval().to(dtype)
    typed = [tuple(x.to(dtype) if x.is_floating_point() else x for x in call) for call in calls]
    with torch.no_grad():
        check(model, *typed, rule="same")


class ByName(torch.nn.Module):
    """A model called with one dict, so that its float64 copy can be."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs):
        return self.model(**inputs)


def compare_at_both_sizes(name: str) -> None:
    model = zoo.build(name)
    run = compiled(model, dynamic=True)
    for size in zoo.SIZES:
        inputs = zoo.inputs(name, size)
        with torch.no_grad():
            expected, actual = model(**inputs), run(**inputs)
            exact = exact_outcome(ByName(model), (inputs,))
        assert type(actual) is type(expected)
        assert list(actual.keys()) == list(expected.keys())
        widened = tensors(exact.leaves) if exact else []
        pairs = list(zip(tensors(expected), tensors(actual), strict=True))
        if len(widened) != len(pairs):
            widened = [None] * len(pairs)
        for (e, a), w in zip(pairs, widened, strict=True):
            assert a.stride() == e.stride()
            assert close(e, a, w), f"size {size}: {(a - e).abs().max()}"


@pytest.mark.parametrize("name", QUICK)
def test_architecture(name: str) -> None:
    pytest.importorskip("transformers")
    compare_at_both_sizes(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in zoo.ZOO if name not in QUICK])
def test_more_architectures(name: str) -> None:
    pytest.importorskip("transformers")
    compare_at_both_sizes(name)
