"""`python -m benchmarks decode`: tokens per second of compiled decoders, and how near memory is.

Random weights at public shapes: speed only. Every step of batch 1 must read all weights and the
cache once, so its limit is these bytes / measured read bandwidth. All forms of a model are alive at
once and measured in turns (A B C A B C ...); eager is plain torch over a cache of the same kind.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

import infopt
from benchmarks.limits import Limits, measure
from benchmarks.report import spread, wide_console, write_json
from infopt.models.decoder import DECODER_340M, LLAMA_1B, Decoder, DecoderConfig

MODELS = {"0.34b": DECODER_340M, "1.2b": LLAMA_1B}
FORMS: dict[str, dict[str, Any]] = {
    "bf16": {},
    "int8": {"weights": "int8"},
    "int8-act": {"weights": "int8", "activations": "int8"},
    "int4-g32": {"weights": "int4-g32"},
    "int4-g128": {"weights": "int4-g128"},
    "int4-g32-act": {"weights": "int4-g32", "activations": "int8"},
    "lut4": {"weights": "lut4"},
    "lut4-g128": {"weights": "lut4-g128"},
    "lut4-g128+0.5%": {"weights": "lut4-g128+0.5%"},
    "lut3-g128": {"weights": "lut3-g128"},
}
USUAL = tuple(form for form in FORMS if not form.startswith("lut"))  # tables take minutes to find


@torch.no_grad()
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks decode", description=__doc__)
    parser.add_argument("--models", default="0.34b", help=f"of {','.join(MODELS)}")
    known = ",".join(FORMS).replace("%", "%%")  # argparse fills help texts by %
    parser.add_argument("--forms", default=",".join(USUAL), help=f"of {known}")
    parser.add_argument("--layers", type=int, help="as if models had so many, to see forms soon")
    parser.add_argument("--batches", default="1,8", help="sequences that are decoded together")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prefill")
    parser.add_argument("--steps", type=int, default=16, help="tokens of one measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--eager", action="store_true", help="measure plain torch too")
    parser.add_argument("--llama-cpp", action="store_true", help="measure llama.cpp too")
    parser.add_argument("--onnxruntime-genai", action="store_true", help="measure that too")
    parser.add_argument("--openvino", action="store_true", help="measure OpenVINO too")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    console, limits, rows = wide_console(), measure(options.threads), []
    batches = [int(b) for b in options.batches.split(",")]
    for name in options.models.split(","):
        config = replace(MODELS[name], layers=options.layers or MODELS[name].layers)
        with console.status(name):
            arms = dict(made(config, options, max(batches)))
        for batch in batches:
            ids = torch.randint(0, config.vocabulary, (batch, options.prompt))
            cached = cache_bytes(config) * (options.prompt + options.steps // 2)
            for row in measured(arms, ids, cached, options, limits):
                rows.append({"model": name} | row)
    console.print(table(rows))
    if options.json:
        read = {str(size): rate for size, rate in limits.read.items()}
        write_json(options.json, {"rows": rows, "peak": limits.peak, "read": read})
    return 0


@dataclass(frozen=True)
class Arm:
    """prefill(ids) -> state; steps(state, n) -> the time of n steps; bytes: read by every step."""

    prefill: Callable[[Tensor], Any]
    steps: Callable[[Any, int], float]
    bytes: int


def made(config: DecoderConfig, options: Any, batch: int) -> Iterator[tuple[str, Arm]]:
    torch.manual_seed(0)
    model = Decoder(config).to(torch.bfloat16).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.02)
    length = options.prompt + options.steps * (options.rounds + 1) + 1
    size = sum(p.numel() * p.itemsize for p in model.parameters())
    if options.eager:
        yield "eager", Arm(lambda ids: eager_prefill(model, ids, length), eager_steps, size)
    for kind, peer in peers(model, batch, length, options):
        yield kind, Arm(peer.prefill, peer.steps, peer.bytes)
    for form in options.forms.split(","):
        lm = infopt.compile_causal_lm(
            model, max_length=length, batch=batch, threads=options.threads, **FORMS[form]
        )

        def steps(state: list[Any], n: int, lm: Any = lm) -> float:
            start = time.perf_counter()
            _, state[0] = lm.decode(state[0], n)
            return time.perf_counter() - start

        yield form, Arm(lambda ids, lm=lm: [lm.prefill(ids)], steps, lm.report.memory["weights"])


def peers(model: Decoder, batch: int, length: int, options: Any) -> Iterator[tuple[str, Any]]:
    """The same weights in the libraries that were asked for."""
    if options.llama_cpp:
        from benchmarks.llama_cpp_arm import QUANTIZED, LlamaCpp

        for kind in QUANTIZED:
            yield f"llama.cpp {kind}", LlamaCpp(model, kind, batch, length, options.threads)
    if options.onnxruntime_genai:
        from benchmarks import ort_genai_arm

        for kind, genai in ort_genai_arm.arms(model, length, options.threads):
            yield f"ort-genai {kind}", genai
    if options.openvino:
        from benchmarks import openvino_decoder_arm

        for kind, compiled in openvino_decoder_arm.arms(model, options.threads):
            yield f"openvino {kind}", compiled


def greedy(arm: Any, ids: Tensor, n: int) -> Tensor:
    """The next n tokens [B, n] of a peer, for comparing it with other arms."""
    state, found = arm.prefill(ids), []
    for _ in range(n):
        found.append(torch.as_tensor(state[0]))
        arm.steps(state, 1)
    return torch.stack(found, 1)


def cache_bytes(config: DecoderConfig) -> int:
    """Keys and values of one token in bf16."""
    width = config.layers * config.kv_heads * config.head_width
    return 2 * width * torch.bfloat16.itemsize


def measured(
    arms: dict[str, Arm], ids: Tensor, cached: int, options: Any, limits: Limits
) -> list[dict[str, Any]]:
    """A row per arm, from turns over ids [batch, prompt]; cached: bytes of a sequence's cache."""
    rows, batch = [], len(ids)
    states = {name: arm.prefill(ids) for name, arm in arms.items()}
    times: dict[str, list[float]] = {name: [] for name in arms}
    prefills: dict[str, list[float]] = {name: [] for name in arms}
    for round in range(options.rounds + 1):  # the first one warms up
        for name, arm in arms.items():
            time.sleep(0.1)  # workers of the arm before may still be looking for work
            spent = arm.steps(states[name], options.steps) / options.steps
            start = time.perf_counter()
            if batch == 1:  # where the arm has only one text, the next steps go on from this one
                states[name] = arm.prefill(ids)
            if round:
                times[name].append(spent)
                prefills[name].append(time.perf_counter() - start)
    for name, arm in arms.items():
        step, prefill = spread(times[name]), spread(prefills[name])
        size = arm.bytes + batch * cached
        least = size / limits.bandwidth(size)
        row = {"form": name, "batch": batch, "weights": arm.bytes, "bytes": size, "step": step}
        row |= {"tokens": batch / step["median"], "share": least / step["min"]}
        if batch == 1:
            row["prefill_tokens"] = options.prompt / prefill["median"]
        rows.append(row)
    return rows


class EagerCache:
    """Keys and values in place, as compile_causal_lm's cache does, in plain torch."""

    def __init__(self, config: DecoderConfig, batch: int, length: int) -> None:
        shape = (config.layers, 2, batch, config.kv_heads, length, config.head_width)
        self.memory, self.length = torch.zeros(shape, dtype=torch.bfloat16), 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        end = self.length + k.shape[2]
        for half, new in enumerate((k, v)):
            self.memory[layer, half, :, :, self.length : end] = new
        return self.memory[layer, 0, :, :, :end], self.memory[layer, 1, :, :, :end]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
        causal = q.shape[2] > 1
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )


def eager_prefill(model: Decoder, ids: Tensor, length: int) -> list[Any]:
    cache = EagerCache(model.config, len(ids), length)
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    last = model(ids, positions, cache)[:, -1].argmax(-1, keepdim=True)
    cache.length = ids.shape[1]
    return [model, cache, last]


def eager_steps(state: list[Any], n: int) -> float:
    model, cache, last = state
    start = time.perf_counter()
    for _ in range(n):
        last = model(last, torch.full_like(last, cache.length), cache)[:, -1].argmax(-1, True)
        cache.length += 1
    state[2] = last
    return time.perf_counter() - start


def table(rows: list[dict[str, Any]]) -> Table:
    drawn = Table(title="decoding, random weights")
    headings = ("step ms", "min", "spread", "tokens/s", "MiB read", "of bandwidth", "prefill tok/s")
    for heading in ("model", "form", "batch"):
        drawn.add_column(heading)
    for heading in headings:
        drawn.add_column(heading, justify="right")
    for row in rows:
        step, prefill = row["step"], row.get("prefill_tokens")
        drawn.add_row(
            row["model"],
            row["form"],
            str(row["batch"]),
            f"{step['median'] * 1e3:.2f}",
            f"{step['min'] * 1e3:.2f}",
            f"{step['spread']:.0%}",
            f"{row['tokens']:.1f}",
            f"{row['bytes'] / 2**20:.0f}",
            f"{row['share']:.0%}" if row["batch"] == 1 else "",
            f"{prefill:.0f}" if prefill else "",
        )
    return drawn
