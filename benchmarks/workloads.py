"""The workloads: real MiniLM on real sentences; BERT-base, ViT-base, ResNet-50 and the prefill of a
Llama-type decoder at public shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from infopt.models.decoder import DECODER_340M, Decoder, DecoderConfig
from infopt.models.encoder import BERT_BASE, MINILM_L6, Encoder, EncoderConfig
from infopt.models.minilm import load_minilm, tokenize
from infopt.models.resnet import RESNET_50, ResNet
from infopt.models.sentences import SENTENCES
from infopt.models.vision import VIT_BASE, VisionTransformer


@dataclass(frozen=True)
class Workload:
    """A model, its positional inputs, and the least work the answer needs: per-sequence token
    counts.
    """

    name: str
    model: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    shape: EncoderConfig
    extra_flops: float = 0.0
    causal_and_gated: bool = False

    def lengths(self) -> list[int]:
        """Tokens of every sequence, padding not counted."""
        given = self.inputs()
        if len(given) == 2:
            return given[1].sum(1).tolist()
        batch = given[0].shape[0]
        return [given[0].shape[1] if given[0].dim() == 2 else VIT_BASE.patches + 1] * batch

    def flops(self) -> float:
        """Multiplications and additions of the matrix products over real tokens."""
        lengths = self.lengths()
        linears = 2 * sum(lengths) * self.layer_weights()
        attention = 4 * sum(n * n for n in lengths) * self.shape.width
        if self.causal_and_gated:
            attention //= 2
        return self.shape.layers * (linears + attention) + self.extra_flops * len(lengths)

    def weight_bytes(self, bytes_per_weight: int) -> float:
        """Weights of the layers, each read once."""
        return bytes_per_weight * self.shape.layers * self.layer_weights()

    def layer_weights(self) -> int:
        """Weights of one layer's matrices."""
        width, hidden = self.shape.width, self.shape.hidden
        return 4 * width * width + (3 if self.causal_and_gated else 2) * width * hidden


def texts(count: int, tokens: int) -> list[str]:
    """Passages of at least `tokens` tokens each, joined from consecutive sentences."""
    found: list[str] = []
    position = 0
    while len(found) < count:
        passage: list[str] = []
        while not passage or int(tokenize([" ".join(passage)]).mask.sum()) < tokens:
            passage.append(SENTENCES[position % len(SENTENCES)])
            position += 1
        found.append(" ".join(passage))
    return found


def full(batch: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Real text without padding, with its mask of ones as a tokenizer gives it."""
    made = tokenize(texts(batch, tokens), length=tokens)
    return made.ids, made.mask


def ragged() -> tuple[Tensor, Tensor]:
    """Sixteen texts from one short sentence to 128 tokens, padded to the longest."""
    counts = tokenize(SENTENCES).mask.sum(1).tolist()
    shortest_first = [SENTENCES[i] for i in sorted(range(len(counts)), key=counts.__getitem__)]
    single = [shortest_first[i * (len(counts) - 1) // 9] for i in range(10)]
    joined = [texts(i + 1, n)[i] for i, n in enumerate((44, 56, 72, 88, 104, 120))]
    made = tokenize(single + joined)
    return made.ids[:, :128], made.mask[:, :128]


def random_ids(batch: int, tokens: int, vocabulary: int = BERT_BASE.vocabulary) -> tuple[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (torch.randint(1000, vocabulary, (batch, tokens), generator=generator),)


def random_images(batch: int) -> tuple[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(batch, 3, VIT_BASE.image, VIT_BASE.image, generator=generator),)


def build_bert() -> nn.Module:
    torch.manual_seed(0)
    return Encoder(BERT_BASE).eval()


class Prefill(nn.Module):
    """A prompt's last logits, all that generation asks of it."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.decoder = Decoder(config)

    def forward(self, ids: Tensor) -> Tensor:
        return self.decoder(ids)[:, -1]


def build_prefill() -> nn.Module:
    torch.manual_seed(0)
    return Prefill(DECODER_340M).eval()


def deep(layers: int) -> Workload:
    """A narrow encoder of any depth, to see how compile time grows with it."""
    shape = EncoderConfig(width=128, heads=4, hidden=512, layers=layers)

    def build() -> nn.Module:
        torch.manual_seed(0)
        return Encoder(shape).eval()

    return Workload(f"deep-{layers}", "deep", build, lambda: random_ids(2, 32), shape)


def build_vit() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(VIT_BASE).eval()


@dataclass(frozen=True)
class ConvWorkload(Workload):
    """A convolutional network: its work is that of one image, counted by torch, times the batch."""

    image_flops: float = 0.0
    weights: int = 0

    def flops(self) -> float:
        return self.image_flops * self.inputs()[0].shape[0]

    def weight_bytes(self, bytes_per_weight: int) -> float:
        return float(bytes_per_weight * self.weights)


def build_resnet() -> nn.Module:
    """ResNet-50 whose norms have seen data: statistics that are not 0 and 1."""
    torch.manual_seed(0)
    model = ResNet(RESNET_50)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    return model.eval()


def resnet(batch: int) -> Workload:
    return ConvWorkload(
        f"resnet-{batch}",
        "resnet",
        build_resnet,
        lambda: random_images(batch),
        _VIT_SHAPE,
        image_flops=_RESNET_FLOPS,
        weights=_RESNET_WEIGHTS,
    )


_VIT_SHAPE = EncoderConfig(width=VIT_BASE.width, layers=VIT_BASE.layers, hidden=VIT_BASE.hidden)
_DECODER_SHAPE = EncoderConfig(
    width=DECODER_340M.width, layers=DECODER_340M.layers, hidden=DECODER_340M.hidden
)
_RESNET_FLOPS, _RESNET_WEIGHTS = 8_178_368_512.0, 25_502_912
_PATCH_FLOPS = 2.0 * VIT_BASE.patches * 3 * VIT_BASE.patch**2 * VIT_BASE.width


@cache
def workloads() -> dict[str, Workload]:
    """All workloads by name."""
    found = [
        Workload("minilm-1x128", "minilm", load_minilm, lambda: full(1, 128), MINILM_L6),
        Workload("minilm-32x128", "minilm", load_minilm, lambda: full(32, 128), MINILM_L6),
        Workload("minilm-16-ragged", "minilm", load_minilm, ragged, MINILM_L6),
        Workload("bert-1x128", "bert", build_bert, lambda: random_ids(1, 128), BERT_BASE),
        Workload("bert-8x384", "bert", build_bert, lambda: random_ids(8, 384), BERT_BASE),
        Workload("vit-1", "vit", build_vit, lambda: random_images(1), _VIT_SHAPE, _PATCH_FLOPS),
        Workload("vit-8", "vit", build_vit, lambda: random_images(8), _VIT_SHAPE, _PATCH_FLOPS),
        Workload(
            "prefill-512",
            "decoder",
            build_prefill,
            lambda: random_ids(1, 512, DECODER_340M.vocabulary),
            _DECODER_SHAPE,
            causal_and_gated=True,
        ),
    ]
    found += [resnet(1), resnet(8), deep(2), deep(48)]
    return {workload.name: workload for workload in found}
