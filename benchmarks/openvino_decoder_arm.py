"""OpenVINO as an arm of `benchmarks decode`: our decoder with its cache as OpenVINO's state.

Needs the packages openvino and nncf.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from math import prod
from typing import Any
from unittest.mock import patch

import nncf
import numpy as np
import openvino as ov
import torch
import torch.nn.functional as F
from openvino import opset13 as ops
from openvino._offline_transformations import apply_make_stateful_transformation
from torch import Tensor, nn

from infopt.models import decoder
from infopt.models.decoder import Decoder, DecoderConfig

INT8 = {"mode": nncf.CompressWeightsMode.INT8_SYM}
INT4 = {"mode": nncf.CompressWeightsMode.INT4_SYM, "group_size": 32, "all_layers": True}
# How weights are compressed, the precision of everything else, and of how many activations int8
# has one scale (0: none; 32 is its default). fp32 is for checking.
FORMS: dict[str, tuple[dict[str, Any], str, int]] = {
    "fp32": ({}, "f32", 0),
    "bf16": ({}, "bf16", 0),
    "int8": (INT8, "bf16", 0),
    "int8-act": (INT8, "bf16", 32),
    "int4-g32": (INT4, "bf16", 0),
    "int4-g32-act": (INT4, "bf16", 32),
}
MEASURED = tuple(form for form in FORMS if form != "fp32")


class Past:
    """models.decoder.Cache in the operations that OpenVINO makes its attention with a cache of."""

    def __init__(self, config: DecoderConfig, beam: Tensor, mask: Tensor, past: list[Tensor]):
        self.config, self.beam, self.mask, self.past = config, beam, mask, past
        self.present: list[Tensor] = []

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        for new in (k, v):
            old = self.past[len(self.present)].index_select(0, self.beam)
            self.present.append(torch.cat((old, new), 2))
        return self.present[-2], self.present[-1]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
        c, (batch, _, tokens, _) = self.config, k.shape
        if c.heads != c.kv_heads:
            each = (batch, c.kv_heads, c.heads // c.kv_heads, tokens, c.head_width)
            whole = (batch, c.heads, tokens, c.head_width)
            k, v = (x[:, :, None].expand(each).reshape(whole) for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, scale=scale)


class Explicit(nn.Module):
    """The decoder with keys and values as inputs and results, and logits of the last place only."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = deepcopy(model).float()
        self.model.norm.register_forward_hook(lambda norm, inputs, y: y[:, -1:])

    def forward(
        self, ids: Tensor, positions: Tensor, keys: Tensor, beam: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        mask = keys[None, None, None] <= positions[:, None, :, None]
        cache = Past(self.model.config, beam, mask, past)
        return (self.model(ids, positions, cache), *cache.present)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """models.decoder.rotate, written as OpenVINO recognises it."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat((x[..., half:] * -1.0, x[..., :half]), dim=-1) * sin


def stateful(model: Decoder) -> ov.Model:
    """(ids, positions, positions of all keys, row of each row's past) -> logits [batch, 1, ids]."""
    c = model.config
    example = {
        "ids": torch.zeros(2, 2, dtype=torch.long),
        "positions": torch.tensor([[3, 4], [3, 4]]),
        "keys": torch.arange(5),
        "beam": torch.arange(2, dtype=torch.int32),  # int64 is not recognised
        "past": [torch.zeros(2, c.kv_heads, 3, c.head_width) for _ in range(2 * c.layers)],
    }
    with patch.object(decoder, "rotate", rotate):
        made = ov.convert_model(Explicit(model), example_input=example)
    names = {}
    for index, (old, new) in enumerate(zip(made.inputs[4:], made.outputs[1:], strict=True)):
        old.get_node().set_partial_shape(ov.PartialShape([-1, c.kv_heads, -1, c.head_width]))
        old.get_tensor().set_names({f"past.{index}"})
        new.get_tensor().set_names({f"present.{index}"})
        names[f"past.{index}"] = f"present.{index}"
    made.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(made, names)
    # without this a new state would have no rows to choose from
    batch = ops.gather(ops.shape_of(made.input("ids")), ops.constant([0]), ops.constant(0))
    shape = ops.concat([batch, ops.constant([c.kv_heads, 0, c.head_width])], 0)
    for node in made.get_ops():
        if node.get_type_name() == "ReadValue":
            node.set_arguments([ops.broadcast(ops.constant(np.float32(0)), shape)])
    made.validate_nodes_and_infer_types()
    return made


def weight_bytes(made: ov.Model, widest: int) -> int:
    """Of the constants, none of them in more than `widest` bytes a value."""
    size = 0
    for node in made.get_ops():
        if node.get_type_name() == "Constant":
            values = prod(node.get_output_shape(0))
            size += min(node.get_byte_size(), values * widest)
    return size


def check_fusion(compiled: ov.CompiledModel, layers: int) -> None:
    """Raise unless attention keeps its cache in place and rotary embeddings are one operation."""
    nodes = compiled.get_runtime_model().get_ops()
    kinds = Counter(node.get_rt_info()["layerType"].astype(str) for node in nodes)
    if (kinds["ScaledDotProductAttention"], kinds["RoPE"]) != (layers, 2 * layers):
        raise RuntimeError(f"OpenVINO did not recognise the decoder's attention: {dict(kinds)}")


def arms(
    model: Decoder, threads: int, forms: tuple[str, ...] = MEASURED
) -> Iterator[tuple[str, OpenVino]]:
    """The model in every form."""
    nncf.set_log_level(logging.WARNING)
    made = stateful(model)
    for form in forms:
        yield form, OpenVino(made.clone(), form, model.config.layers, threads)


class OpenVino:
    """A compiled model and its state; greedy, like CausalLM.decode."""

    def __init__(self, made: ov.Model, form: str, layers: int, threads: int) -> None:
        compression, precision, group = FORMS[form]
        if compression:
            made = nncf.compress_weights(made, **compression)
        self.bytes = weight_bytes(made, 4 if form == "fp32" else 2)
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        settings |= {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
        settings |= {"KV_CACHE_PRECISION": precision}  # u8 unless asked for
        settings |= {"DYNAMIC_QUANTIZATION_GROUP_SIZE": group}
        compiled = ov.Core().compile_model(made, "CPU", settings)
        check_fusion(compiled, layers)
        self.request = compiled.create_infer_request()

    def run(self, ids: np.ndarray, start: int) -> np.ndarray:
        """Logits of the last place [batch, vocabulary] of ids that stand at `start` and after."""
        batch, tokens = ids.shape
        keys = np.arange(start + tokens)
        positions = np.broadcast_to(keys[start:], ids.shape)
        rows = np.arange(batch, dtype=np.int32)
        return self.request.infer([ids, positions, keys, rows], share_inputs=True)[0][:, -1]

    def logits(self, ids: Tensor) -> Tensor:
        """Of the last place, [batch, vocabulary]."""
        self.request.reset_state()
        return torch.from_numpy(self.run(ids.numpy(), 0))

    def prefill(self, ids: Tensor) -> list[Any]:
        """[next ids, position]: the cache is the request's own, so one text at a time."""
        return [self.logits(ids).argmax(-1).numpy(), ids.shape[1]]

    def steps(self, state: list[Any], n: int) -> float:
        start = time.perf_counter()
        for _ in range(n):
            last, position = state
            state[:] = [self.run(last[:, None], position).argmax(-1), position + 1]
        return time.perf_counter() - start
