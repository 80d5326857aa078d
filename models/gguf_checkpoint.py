"""Llama-type decoders from GGUF files, by the `gguf` package: F16, Q8_0, Q4_0, Q4_K and others.

Values are decoded when the file is read; infopt.compile_causal_lm(..., weights=...) stores them in
few bits again. Files of llama.cpp hold queries and keys with neighbouring features as rotary pairs;
`Decoder` pairs the halves, so their rows are put in that order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infopt.models.decoder import Decoder, DecoderConfig

_LAYER = {
    "attention_norm.weight": "attn_norm.weight",
    "attention.query.weight": "attn_q.weight",
    "attention.key.weight": "attn_k.weight",
    "attention.value.weight": "attn_v.weight",
    "attention.output.weight": "attn_output.weight",
    "hidden_norm.weight": "ffn_norm.weight",
    "gate.weight": "ffn_gate.weight",
    "up.weight": "ffn_up.weight",
    "down.weight": "ffn_down.weight",
}


class UnknownCheckpoint(RuntimeError):
    """A GGUF file holds a model that `Decoder` is not, or the package gguf is not installed."""


def load_gguf(path: str | Path, dtype: torch.dtype = torch.float32) -> Decoder:
    """The file's model with its weights decoded to `dtype`, in eval mode.

    Raises UnknownCheckpoint: another architecture than "llama", scaled rotary angles, a tensor that
    is missing or that has no place; FileNotFoundError.
    """
    try:
        import gguf
    except ImportError as missing:
        raise UnknownCheckpoint("pip install gguf: it reads the file") from missing
    reader = gguf.GGUFReader(path)
    tensors = {t.name: t for t in reader.tensors}
    config = _config(reader, tensors)

    def decoded(name: str) -> Tensor:
        if name not in tensors:
            raise UnknownCheckpoint(f"{path}: expected a tensor {name}, found none")
        found = tensors.pop(name)
        values = np.array(gguf.dequantize(found.data, found.tensor_type), dtype=np.float32)
        return torch.from_numpy(values).to(dtype)

    weights = {"token.weight": decoded("token_embd.weight")}
    weights["norm.weight"] = decoded("output_norm.weight")
    if not config.tied:
        weights["head.weight"] = decoded("output.weight")
    heads = {"query": config.heads, "key": config.kv_heads}
    for layer in range(config.layers):
        for ours, theirs in _LAYER.items():
            value = decoded(f"blk.{layer}.{theirs}")
            count = heads.get(ours.split(".")[1])
            weights[f"layers.{layer}.{ours}"] = value if count is None else _halves(value, count)
    if tensors:
        raise UnknownCheckpoint(f"{path}: nothing is known of the tensors {sorted(tensors)[:4]}")
    with torch.device("meta"):
        model = Decoder(config)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def _halves(rows: Tensor, heads: int) -> Tensor:
    """[heads * width, inputs] with each head's features 0, 1, 2, ... as 0, 2, ..., 1, 3, ..."""
    width = rows.shape[0] // heads
    pairs = rows.reshape(heads, width // 2, 2, rows.shape[1])
    return pairs.transpose(1, 2).reshape(rows.shape)


def _config(reader: Any, tensors: dict[str, Any]) -> DecoderConfig:
    def value(key: str, *default: Any) -> Any:
        field = reader.get_field(key)
        if field is None:
            if default:
                return default[0]
            raise UnknownCheckpoint(f"expected {key} in the file, found none")
        return field.contents()

    architecture = value("general.architecture")
    if architecture != "llama":
        raise UnknownCheckpoint(f"architecture: expected 'llama', found {architecture!r}")
    scaling = value("llama.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in tensors:
        raise UnknownCheckpoint(f"rotary angles are scaled ({scaling}): Decoder has no such form")
    embedding = tensors.get("token_embd.weight")
    if embedding is None:
        raise UnknownCheckpoint("expected a tensor token_embd.weight, found none")
    heads, width = value("llama.attention.head_count"), value("llama.embedding_length")
    if value("llama.rope.dimension_count", width // heads) != width // heads:
        raise UnknownCheckpoint("only a part of each head is rotated: Decoder rotates all")
    return DecoderConfig(
        vocabulary=int(embedding.shape[1]),
        width=width,
        layers=value("llama.block_count"),
        heads=heads,
        kv_heads=value("llama.attention.head_count_kv", heads),
        hidden=value("llama.feed_forward_length"),
        rope_base=value("llama.rope.freq_base", 10000.0),
        norm_eps=value("llama.attention.layer_norm_rms_epsilon"),
        tied="output.weight" not in tensors,
    )
