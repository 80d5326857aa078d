"""The trained language model: its sizes, and its checkpoint in transformers' Llama layout."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from infopt.models.decoder import Decoder, DecoderConfig

FOLDER = Path(__file__).parent / "weights"
CONTEXT = 1024
LANGUAGE_MODEL = DecoderConfig(
    vocabulary=4096, width=384, layers=5, heads=6, kv_heads=2, hidden=896, rope_base=10000.0
)


class LanguageModelMissing(RuntimeError):
    """The checkpoint is not where it should be, or a library that reads it is not installed."""


def llama_name(name: str) -> str:
    """The name in transformers' Llama of a weight of `Decoder`."""
    for ours, theirs in (
        ("token.", "embed_tokens."),
        ("attention_norm.", "input_layernorm."),
        ("hidden_norm.", "post_attention_layernorm."),
        ("attention.query", "self_attn.q_proj"),
        ("attention.key", "self_attn.k_proj"),
        ("attention.value", "self_attn.v_proj"),
        ("attention.output", "self_attn.o_proj"),
        ("gate.", "mlp.gate_proj."),
        ("up.", "mlp.up_proj."),
        ("down.", "mlp.down_proj."),
    ):
        name = name.replace(ours, theirs)
    return f"model.{name}"


def llama_config(config: DecoderConfig, context: int) -> dict[str, object]:
    """config.json of a transformers Llama of these sizes."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.hidden,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "max_position_embeddings": context,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": "bfloat16",
    }


def export(weights: dict[str, Tensor], folder: Path, note: dict[str, str]) -> None:
    """Write config.json and model.safetensors (bf16) from `Decoder`'s state."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = {llama_name(k): v.to(torch.bfloat16).contiguous() for k, v in weights.items()}
    save_file(stored, folder / "model.safetensors", {"format": "pt", **note})
    config = llama_config(LANGUAGE_MODEL, CONTEXT)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def load_language_model(folder: Path = FOLDER) -> Decoder:
    """The checkpoint in `Decoder`, float32, in eval mode; raises LanguageModelMissing."""
    path = folder / "model.safetensors"
    if not path.exists():
        raise LanguageModelMissing(
            f"no checkpoint at {path}: python -m infopt.models.language_model train makes one"
        )
    stored = load_file(path)
    with torch.device("meta"):
        model = Decoder(LANGUAGE_MODEL)
    names = {name: llama_name(name) for name in model.state_dict()}
    model.load_state_dict({ours: stored[t].float() for ours, t in names.items()}, assign=True)
    return model.eval()


def load_transformers(folder: Path = FOLDER):
    """The checkpoint as transformers' LlamaForCausalLM, float32."""
    try:
        from transformers import LlamaForCausalLM
    except ImportError as missing:
        raise LanguageModelMissing("pip install transformers") from missing
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@cache
def load_tokenizer(folder: Path = FOLDER):
    """The byte-level BPE, as the `tokenizers` library reads it."""
    try:
        from tokenizers import Tokenizer
    except ImportError as missing:
        raise LanguageModelMissing("pip install tokenizers: it splits the text") from missing
    return Tokenizer.from_file(str(folder / "tokenizer.json"))
