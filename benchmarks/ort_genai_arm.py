"""ONNX Runtime GenAI as an arm of `benchmarks decode`: our decoder through its own model builder.

Needs the packages onnxruntime-genai, onnx, onnx_ir and transformers.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime_genai as og
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor

from infopt.models.decoder import Decoder
from infopt.models.language_model.checkpoint import llama_config, llama_name

# The builder's precision, and its level of accuracy of activations in products: 1 is fp32, 4 is
# int8, its default on CPUs. There it has neither bf16 nor fp16, and no kernel for int8 weights with
# fp32 activations (it makes fp32 weights of them in every step). Its cache is fp32 in all of them.
# fp32 is for checking.
FORMS = {
    "fp32": ("fp32", 4),
    "int8-act": ("int8", 4),
    "int4-g32": ("int4", 1),
    "int4-g32-act": ("int4", 4),
}
MEASURED = tuple(form for form in FORMS if form != "fp32")
# a step reads one row of these, at most
TABLES = ("model.embed_tokens.weight", "cos_cache", "sin_cache")


def write_llama(model: Decoder, folder: Path, length: int) -> None:
    """The model as transformers stores a Llama, with a tokenizer, which the builder asks for."""
    folder.mkdir()
    weights = {llama_name(k): v.contiguous() for k, v in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(llama_config(model.config, length)))
    Tokenizer(WordLevel({"?": 0}, unk_token="?")).save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


def build(source: Path, folder: Path, form: str) -> int:
    """The builder's files; returns the bytes of the weights that a step reads."""
    precision, accuracy = FORMS[form]
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-e", "cpu"]
    command += ["-i", str(source), "-o", str(folder), "-c", str(folder), "-p", precision]
    command += ["--extra_options", "prune_lm_head=true", f"accuracy_level={accuracy}"]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=offline, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the model builder failed: {done.stderr[-2000:]}")
    stored = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph.initializer
    return sum(
        prod(x.dims) * onnx.helper.tensor_dtype_to_np_dtype(x.data_type).itemsize
        for x in stored
        if x.name not in TABLES
    )


def arms(
    model: Decoder, length: int, threads: int, forms: tuple[str, ...] = MEASURED
) -> Iterator[tuple[str, OrtGenai]]:
    """The model in every form, for texts of `length` tokens."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "llama"
        write_llama(model, source, length)
        for form in forms:
            built = Path(folder) / form
            size = build(source, built, form)
            yield form, OrtGenai(built, size, length, threads)
            shutil.rmtree(built)


class OrtGenai:
    """A model of ONNX Runtime GenAI; greedy, like CausalLM.decode."""

    def __init__(self, folder: Path, size: int, length: int, threads: int) -> None:
        self.bytes, self.length = size, length
        config = og.Config(str(folder))
        options = {"session_options": {"intra_op_num_threads": threads}}
        # no id fills a text up, as the one that did would not be attended to
        config.overlay(json.dumps({"model": {"pad_token_id": -1, "decoder": options}}))
        self.model = og.Model(config)

    def read(self, ids: Tensor) -> Any:
        """A generator that has read ids [batch, prompt]."""
        params = og.GeneratorParams(self.model)
        # min_length: the id that would end a text is never chosen
        params.set_search_options(
            batch_size=len(ids), min_length=self.length, max_length=self.length, do_sample=False
        )
        generator = og.Generator(self.model, params)
        generator.append_tokens(ids.numpy().astype(np.int32))
        return generator

    def logits(self, ids: Tensor) -> Tensor:
        """Of the last place, [batch, vocabulary]."""
        return torch.from_numpy(self.read(ids).get_logits())[:, -1]

    def prefill(self, ids: Tensor) -> list[Any]:
        """[next ids, generator]"""
        generator = self.read(ids)
        generator.generate_next_token()  # chooses from the logits of the prompt, without a step
        return [generator.get_next_tokens(), generator]

    def steps(self, state: list[Any], n: int) -> float:
        generator = state[1]
        start = time.perf_counter()
        for _ in range(n):
            generator.generate_next_token()
        spent = time.perf_counter() - start
        state[0] = generator.get_next_tokens()
        return spent
