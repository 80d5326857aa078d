"""GGUF files of every format against transformers' Llama with the same values."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from infopt.models.gguf_checkpoint import UnknownCheckpoint, load_gguf

TYPES = gguf.GGMLQuantizationType
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
}


def llama(tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=4,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).eval()


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys as llama.cpp's converter writes them."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))


def in_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))


def stored(weight: np.ndarray, kind: Any) -> np.ndarray:
    """The bytes of a matrix; gguf itself cannot write Q4_K, any bytes with small factors do."""
    if kind is not TYPES.Q4_K:
        return gguf.quantize(weight, kind)
    blocks = np.random.default_rng(0).integers(0, 255, (weight.shape[0], 144), dtype=np.uint8)
    blocks[:, :4] = np.array([0.001, 0.01], dtype=np.float16).view(np.uint8)
    return blocks


def write(path: Path, model: LlamaForCausalLM, kind: Any, **changes: Any) -> None:
    """The model as a GGUF file; the model's matrices become the values that were stored."""
    config = model.config
    writer = gguf.GGUFWriter(path, changes.get("architecture", "llama"))
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(5000.0)
    if "scaling" in changes:
        writer.add_rope_scaling_type(changes["scaling"])
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, parameter in model.named_parameters():
        values, theirs = parameter.detach().numpy(), name
        for ours, other in NAMES.items():
            theirs = theirs.replace(ours, other)
        if values.ndim == 1:
            writer.add_tensor(theirs, values)
            continue
        count = heads.get(name.split(".")[-2])
        raw = stored(values if count is None else interleaved(values, count), kind)
        known = gguf.dequantize(raw, kind)
        parameter.data = torch.from_numpy(
            np.array(known if count is None else in_halves(known, count), dtype=np.float32)
        )
        writer.add_tensor(theirs, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("kind", "tied"),
    [(TYPES.F16, True), (TYPES.Q8_0, False), (TYPES.Q4_0, True), (TYPES.Q4_K, False)],
    ids=lambda v: getattr(v, "name", None),
)
def test_logits_are_those_of_the_same_values(tmp_path: Path, kind: Any, tied: bool) -> None:
    model = llama(tied)
    write(tmp_path / "model.gguf", model, kind)
    ids = torch.randint(64, (2, 9))
    with torch.no_grad():
        found, wanted = load_gguf(tmp_path / "model.gguf")(ids), model(ids).logits
    assert wanted.std() > 1e-3
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.std()))


def test_other_models_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, llama(True), TYPES.F16, scaling=gguf.RopeScalingType.YARN)
    with pytest.raises(UnknownCheckpoint, match="rotary angles are scaled"):
        load_gguf(path)
    write(path, llama(True), TYPES.F16, architecture="gpt2")
    with pytest.raises(UnknownCheckpoint, match="expected 'llama', found 'gpt2'"):
        load_gguf(path)
