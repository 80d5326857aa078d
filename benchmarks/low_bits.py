"""`python -m benchmarks low_bits`: what 3 and 4 bits lose on real models, format by format.

The linear layers of the real MiniLM and of the shipped language model get the matrices that each
format stands for; tables stay. Products are computed in f32 in torch, so that only formats differ.
Some inputs calibrate, others judge. "weights": relative error of the matrices. "products": of what
they give, times the inputs that judge. int3 is no format of ours, and there for comparison.

--scaled: also with columns of the weights multiplied by a power of what their inputs measure before
integers are chosen, and divided after (Lin et al., "AWQ", 2024): the power, of a grid, with the
least error on the inputs that calibrate, for each layer. "nearest": each integer for itself, as in
the paper; else chosen together, as everywhere. Whatever makes the inputs is taken to divide them
for nothing, so this is the most that such factors can give.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

from benchmarks.quantization import CALIBRATION, nearest
from benchmarks.report import wide_console, write_json
from infopt.codegen.weight_formats.integers import Integers
from infopt.codegen.weight_formats.remainder import SparseEntries
from infopt.codegen.weight_formats.rounding import Moments
from infopt.codegen.weight_formats.weight_format import WeightFormat, weight_format
from infopt.models.language_model import corpus
from infopt.models.language_model.checkpoint import load_language_model, load_tokenizer
from infopt.models.minilm import load_minilm, tokenize
from infopt.models.sentences import SENTENCES

WINDOW = 512
POWERS = (0.0, 0.15, 0.3, 0.5)
FORMATS = (
    *("int4-g128", "int4-g64", "int4-g32", "lut4", "lut4-g128", "lut4-g64"),
    *("int4-g128+0.5%", "int4-g32+0.5%", "lut4+0.5%", "lut4-g128+0.5%"),
    *("int3-g128", "int3-g64", "int3-g32", "lut3", "lut3-g128", "lut3-g64", "lut3+0.5%"),
)


@torch.no_grad()
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks low_bits", description=__doc__)
    parser.add_argument("--models", default="minilm,language", help="which of the two")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--windows", type=int, default=16, help=f"of {WINDOW} tokens, that judge")
    parser.add_argument("--scaled", action="store_true", help="also with columns scaled")
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args(arguments)
    console, rows = wide_console(), []
    for name in options.models.split(","):
        subject = minilm() if name == "minilm" else language(options.windows)
        with console.status(name):
            found = measured(subject, options.formats.split(","), options.scaled)
            rows += [{"model": name} | row for row in found]
        console.print(table([row for row in rows if row["model"] == name]))
    if options.json:
        write_json(options.json, {"rows": rows})
    return 0


@dataclass(frozen=True)
class Subject:
    """calibrate() and judge() run the model; judge compares results with those before."""

    model: nn.Module
    calibrate: Callable[[], Any]
    judge: Callable[[Any], tuple[Any, dict[str, float]]]


def minilm() -> Subject:
    model = load_minilm()
    seen = tokenize(CALIBRATION)
    other = tokenize([s for s in SENTENCES if s not in CALIBRATION])

    def judge(expected: Any) -> tuple[Any, dict[str, float]]:
        found = model(other.ids, other.mask)
        if expected is None:
            expected = found
        same = (nearest(found) == nearest(expected)).double().mean().item()
        least = torch.cosine_similarity(found, expected).min().item()
        return found, {"least cosine": least, "neighbours": same}

    return Subject(model, lambda: model(seen.ids, seen.mask), judge)


def language(windows: int) -> Subject:
    """The first half of the held-out text calibrates, the second judges."""
    model = load_language_model()
    ids = corpus.encode(corpus.held_out_documents(), load_tokenizer()).astype(np.int64)
    seen, other = (
        torch.stack([torch.from_numpy(half[n : n + WINDOW + 1]) for n in starts])
        for half in (ids[: len(ids) // 2], ids[len(ids) // 2 :])
        for starts in [np.linspace(0, len(half) - WINDOW - 1, windows).astype(int)]
    )

    def judge(expected: Any) -> tuple[Any, dict[str, float]]:
        logits = torch.cat([model(row[None, :-1])[0] for row in other]).float()
        best = logits.argmax(-1)
        nats = F.cross_entropy(logits, other[:, 1:].flatten()).item()
        same = 1.0 if expected is None else (best == expected).double().mean().item()
        return best, {"perplexity": math.exp(nats), "top-1": same}

    return Subject(model, lambda: [model(row[None, :-1]) for row in seen], judge)


class ThreeBits(Integers):
    """-4 to 3, with a bf16 factor per group: what a format of 3-bit integers would be."""

    low, high = -4, 3  # type: ignore[assignment]

    @property
    def name(self) -> str:
        return f"int3-g{self.group}"

    def row_bytes(self, k: int) -> int:
        return -(-k // 64) * 24

    def factors(self, weight: Tensor) -> Tensor:
        grouped = self.grouped(weight.float())
        where = grouped.abs().argmax(-1, keepdim=True)
        return (grouped.gather(-1, where)[..., 0] / -4).to(self.scale_dtype)


def format_of(name: str) -> WeightFormat:
    if not name.startswith("int3"):
        return weight_format(name)
    group, _, share = name.removeprefix("int3-g").partition("+")
    remainder = SparseEntries(float(share[:-1]) / 100) if share else None
    return WeightFormat(ThreeBits(3, int(group)), remainder)


def scaled(format: WeightFormat, weight: Tensor, seen: Moments, together: bool) -> Tensor:
    """What a weight stands for with the best of POWERS; together: integers chosen by GPTQ."""
    size = (seen.sum.diagonal() / seen.rows).sqrt()
    size = size.clamp_min(1e-4 * size.max().item())
    inputs, best, least = seen.sum / seen.rows, weight, math.inf
    for power in POWERS:
        factors = size**power
        factors = factors / factors.log().mean().exp()
        moments = seen.of_scaled(1 / factors) if together else None
        found = format.store(weight * factors, moments).decoded / factors
        rest = found - weight
        error = float(((rest @ inputs) * rest).sum())
        if error < least:
            best, least = found, error
    return best


WAYS: dict[str, Callable[[WeightFormat, Tensor, Moments], Tensor]] = {
    "": lambda format, weight, seen: format.store(weight).decoded,
    "nearest, scaled": lambda format, weight, seen: scaled(format, weight, seen, False),
    "calibrated": lambda format, weight, seen: format.store(weight, seen).decoded,
    "calibrated, scaled": lambda format, weight, seen: scaled(format, weight, seen, True),
}


def measured(
    subject: Subject, formats: list[str], with_scaled: bool = False
) -> Iterator[dict[str, Any]]:
    layers = {n: m for n, m in subject.model.named_modules() if isinstance(m, nn.Linear)}
    own = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    seen = moments_of(layers, subject.calibrate)
    results: list[Any] = []
    judged = moments_of(layers, lambda: results.append(subject.judge(None)))
    ((expected, metrics),) = results
    yield {"name": "as it is", "way": "", "bytes": 4.0} | metrics
    for way, stored in WAYS.items():
        if "scaled" in way and not with_scaled:
            continue
        for name in formats:
            format, size, errors = format_of(name), 0, np.zeros((2, 2))
            for layer, weight in own.items():
                found = stored(format, weight, seen[layer])
                rest, inputs = found - weight, judged[layer].sum / judged[layer].rows
                errors += [
                    [float(m.square().sum()), float(((m @ inputs) * m).sum())]
                    for m in (rest, weight)
                ]
                layers[layer].weight.copy_(found)
                size += format.bytes(*weight.shape)
            metrics = subject.judge(expected)[1]
            weights, products = (errors[0] / errors[1]) ** 0.5
            yield {
                "name": name,
                "way": way,
                "bytes": size / sum(w.numel() for w in own.values()),
                "weights": float(weights),
                "products": float(products),
            } | metrics
    for layer, weight in own.items():
        layers[layer].weight.copy_(weight)


def moments_of(layers: dict[str, nn.Linear], run: Callable[[], Any]) -> dict[str, Moments]:
    """What the layers read while the model runs."""
    found = {name: Moments(layer.in_features) for name, layer in layers.items()}

    def watch(moments: Moments) -> Any:
        return lambda layer, args: moments.add(args[0])

    hooks = [m.register_forward_pre_hook(watch(found[n])) for n, m in layers.items()]
    run()
    for hook in hooks:
        hook.remove()
    return found


def table(rows: list[dict[str, Any]]) -> Table:
    metrics = [k for k in rows[0] if k not in ("model", "name", "way", "bytes")]
    drawn = Table(title=rows[0]["model"])
    drawn.add_column("format")
    for heading in ("bytes per weight", "weights", "products", *metrics):
        drawn.add_column(heading, justify="right")
    for row in rows:
        name = row["name"] + (f", {row['way']}" if row["way"] else "")
        errors = [f"{row[k]:.2%}" if k in row else "" for k in ("weights", "products")]
        drawn.add_row(name, f"{row['bytes']:.4f}", *errors, *(f"{row[k]:.4f}" for k in metrics))
    return drawn
