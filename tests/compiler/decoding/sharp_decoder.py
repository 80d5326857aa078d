"""A small decoder whose attention is sharp, so that differences in the cache show in its logits."""

import torch

from infopt.models.decoder import SMALL, Decoder, DecoderConfig


@torch.no_grad()
def sharp_decoder(factor: float, config: DecoderConfig = SMALL) -> Decoder:
    """models.decoder.SMALL, or another one, its matrices times `factor`."""
    torch.manual_seed(0)
    made = Decoder(config).eval()
    for name, parameter in made.named_parameters():
        if parameter.dim() > 1:
            parameter.mul_(0.05 if "token" in name else factor)
    return made
