"""Tiny random decoders of the families that users have, for comparison with transformers."""

from __future__ import annotations

from typing import Any

import torch

VOCABULARY, POSITIONS = 97, 128
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT = {k: v for k, v in _SIZES.items() if k.endswith("token_id")} | {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": POSITIONS,
}
_EXPERTS = _SIZES | {"num_experts_per_tok": 2}
_MANY_HEADS = {k: v for k, v in _SIZES.items() if k != "num_key_value_heads"}
# name -> (transformers' name, arguments of its configuration); windows are shorter than the texts
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _SIZES),
    "qwen2": ("Qwen2", _SIZES),
    "qwen3": ("Qwen3", _SIZES | {"head_dim": 8}),
    "mistral": ("Mistral", _SIZES | {"sliding_window": 16}),
    "gemma": ("Gemma", _SIZES | {"head_dim": 8}),
    "gemma2": ("Gemma2", _SIZES | {"head_dim": 8, "sliding_window": 16}),
    "gemma3": ("Gemma3", _SIZES | {"head_dim": 8, "sliding_window": 16}),
    "phi": ("Phi", _SIZES),
    "phi3": ("Phi3", _SIZES),
    "gpt2": ("GPT2", _GPT),
    "gpt_neox": ("GPTNeoX", _MANY_HEADS),
    "opt": ("OPT", _MANY_HEADS | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "mixtral": ("Mixtral", _EXPERTS | {"num_local_experts": 6}),
    "qwen3_moe": (
        "Qwen3Moe",
        _EXPERTS | {"num_experts": 6, "moe_intermediate_size": 24, "head_dim": 8},
    ),
    "olmoe": ("Olmoe", _EXPERTS | {"num_experts": 6}),
}


def build(name: str) -> Any:
    """A random model of the family, whose next tokens depend on what came before."""
    import transformers

    stem, arguments = FAMILIES[name]
    config_name = f"{stem}TextConfig" if stem == "Gemma3" else f"{stem}Config"
    model_name = "GPT2LMHeadModel" if stem == "GPT2" else f"{stem}ForCausalLM"
    torch.manual_seed(0)
    model = getattr(transformers, model_name)(getattr(transformers, config_name)(**arguments))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed" not in name and "wte" not in name:
                parameter.mul_(8)  # the layers count for more than the last token's embedding
    model.generation_config.eos_token_id = None  # every run writes all its tokens
    return model.eval()


def prompts(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCABULARY, (n,), generator=generator) for n in lengths]


def expected(model: Any, prompt: torch.Tensor, tokens: int) -> list[int]:
    """What transformers' own generate writes, greedily."""
    with torch.no_grad():
        ids = model.generate(
            prompt[None],
            attention_mask=torch.ones_like(prompt)[None],
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
    return ids[0, len(prompt) :].tolist()
