"""The plain modules have the sizes of the public models they are named after."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from infopt.models import decoder, encoder, resnet, vision


def weights(build, config) -> int:
    with torch.device("meta"):
        model: nn.Module = build(config)
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("build", "config", "millions"),
    [
        (encoder.Encoder, encoder.BERT_BASE, 108.9),
        (encoder.Encoder, encoder.MINILM_L6, 22.6),
        (decoder.Decoder, decoder.LLAMA_1B, 1235.8),
        (vision.VisionTransformer, vision.VIT_BASE, 86.6),
        (resnet.ResNet, resnet.RESNET_50, 25.6),
    ],
)
def test_number_of_weights(build, config, millions: float) -> None:
    assert weights(build, config) / 1e6 == pytest.approx(millions, abs=0.05)


def test_a_later_token_changes_no_earlier_logits() -> None:
    model = decoder.Decoder(decoder.SMALL).eval()
    ids = torch.arange(1, 9)[None]
    changed = ids.clone()
    changed[0, 5] = 77
    with torch.no_grad():
        difference = (model(ids) - model(changed)).abs().amax((0, 2))
    assert difference[:5].max() == 0
    assert difference[5:].min() > 0


def test_padding_changes_no_real_token() -> None:
    config = encoder.EncoderConfig(vocabulary=50, width=32, layers=2, heads=4, hidden=64)
    model = encoder.Encoder(config).eval()
    ids = torch.arange(1, 7)[None]
    padded = torch.nn.functional.pad(ids, (0, 3))
    with torch.no_grad():
        torch.testing.assert_close(model(padded, (padded != 0))[:, :6], model(ids))
