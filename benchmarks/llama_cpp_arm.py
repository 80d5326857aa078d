"""llama.cpp as an arm of `benchmarks decode`: our decoder as a GGUF file, through its C API.

Needs the packages gguf and llama-cpp-python.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from torch import Tensor

from infopt.models.decoder import Decoder, DecoderConfig

QUANTIZED = {"bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}


def write_gguf(model: Decoder, path: str, kind: str) -> int:
    """The model's weights in one of llama.cpp's types; returns their bytes."""
    config, form = model.config, gguf.GGMLQuantizationType[QUANTIZED[kind]]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(1 << 16)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.hidden)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_rope_dimension_count(config.head_width)
    writer.add_vocab_size(config.vocabulary)
    writer.add_tokenizer_model("none")
    size = 0
    for name, tensor in named(model):
        data = tensor.detach().float().numpy()
        if data.ndim == 2:
            stored = gguf.quants.quantize(data, form)
            writer.add_tensor(name, stored, raw_dtype=form)
        else:
            stored = data
            writer.add_tensor(name, stored)
        size += stored.nbytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return size


def named(model: Decoder) -> list[tuple[str, Tensor]]:
    """llama.cpp's names; its rotary embedding pairs neighbours where ours pairs halves."""
    config = model.config
    found = [
        ("token_embd.weight", model.token.weight),
        ("output_norm.weight", model.norm.weight),
    ]
    for index, layer in enumerate(model.layers):
        a, prefix = layer.attention, f"blk.{index}."
        found += [
            (prefix + "attn_norm.weight", layer.attention_norm.weight),
            (prefix + "attn_q.weight", neighbours(a.query.weight, config.heads)),
            (prefix + "attn_k.weight", neighbours(a.key.weight, config.kv_heads)),
            (prefix + "attn_v.weight", a.value.weight),
            (prefix + "attn_output.weight", a.output.weight),
            (prefix + "ffn_norm.weight", layer.hidden_norm.weight),
            (prefix + "ffn_gate.weight", layer.gate.weight),
            (prefix + "ffn_up.weight", layer.up.weight),
            (prefix + "ffn_down.weight", layer.down.weight),
        ]
    return found


def neighbours(weight: Tensor, heads: int) -> Tensor:
    rows, width = weight.shape
    halves = weight.view(heads, 2, rows // heads // 2, width)
    return halves.transpose(1, 2).reshape(rows, width)


class LlamaCpp:
    """A context over a GGUF file; greedy, like CausalLM.decode."""

    def __init__(self, model: Decoder, kind: str, batch: int, length: int, threads: int) -> None:
        self.config: DecoderConfig = model.config
        llama_cpp.llama_log_set(_quiet, None)
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "model.gguf")
            self.bytes = write_gguf(model, path, kind)
            given = llama_cpp.llama_model_default_params()
            given.use_mmap = False
            self.model = llama_cpp.llama_model_load_from_file(path.encode(), given)
        if not self.model:
            raise RuntimeError("llama.cpp did not load the model")
        asked = llama_cpp.llama_context_default_params()
        asked.n_ctx, asked.n_batch, asked.n_ubatch = length * batch, 512 * batch, 512
        asked.n_seq_max, asked.n_threads, asked.n_threads_batch = batch, threads, threads
        self.context = llama_cpp.llama_init_from_model(self.model, asked)
        self.batch = llama_cpp.llama_batch_init(512 * batch, 0, 1)

    def prefill(self, ids: Tensor) -> list[Any]:
        """[next ids, positions]: the cache is the context's own, so one text at a time."""
        memory = llama_cpp.llama_get_memory(self.context)
        llama_cpp.llama_memory_clear(memory, True)
        last = []
        for sequence, row in enumerate(ids.tolist()):
            for start in range(0, len(row), 512):
                part = row[start : start + 512]
                at = range(start, start + len(part))
                logits = self.run(part, at, [sequence] * len(part), [len(part) - 1])
            last.append(int(logits[0].argmax()))
        return [last, ids.shape[1]]

    def steps(self, state: list[Any], n: int) -> float:
        start = time.perf_counter()
        for _ in range(n):
            last, position = state
            rows = range(len(last))
            logits = self.run(last, [position] * len(last), rows, rows)
            state[:] = [logits.argmax(-1).tolist(), position + 1]
        return time.perf_counter() - start

    def run(self, tokens: Any, positions: Any, sequences: Any, wanted: Any) -> np.ndarray:
        """The logits of the places in `wanted`, [places, vocabulary]."""
        b = self.batch
        b.n_tokens = len(tokens)
        for i, (token, position, sequence) in enumerate(
            zip(tokens, positions, sequences, strict=True)
        ):
            b.token[i], b.pos[i], b.n_seq_id[i] = token, position, 1
            b.seq_id[i][0], b.logits[i] = sequence, i in wanted
        if llama_cpp.llama_decode(self.context, b):
            raise RuntimeError("llama.cpp did not decode")
        rows = [llama_cpp.llama_get_logits_ith(self.context, i) for i in wanted]
        shape = (self.config.vocabulary,)
        return np.stack([np.ctypeslib.as_array(row, shape) for row in rows])


@llama_cpp.llama_log_callback
def _quiet(level: int, text: bytes, data: Any) -> None:
    """llama.cpp's log is not the benchmark's result."""
