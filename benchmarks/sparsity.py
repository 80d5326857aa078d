"""`python -m benchmarks sparsity`: steps that skip weights, and what that costs.

Speed: a step of the 0.34B decoder of `benchmarks decode` in bf16 with random weights, dense and
with a share of places, in turn. Quality: perplexity of the shipped language model on held-out
files, by score and share, with the same kernels; its layers fit the cache, so that they are taken
as if memory were slow. --folder is where `python -m infopt.models.language_model corpus` put text.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

import infopt
from benchmarks.report import spread, wide_console, write_json
from infopt.compiler.target import Target
from infopt.models.decoder import DECODER_340M, Decoder
from infopt.models.language_model import checkpoint, corpus, evaluation
from infopt.passes.pipelines import default_passes
from infopt.passes.sparse_activations import SCORES, SparseActivations

SHARES = (0.6, 0.5, 0.4)
PROMPT = 64


@torch.no_grad()
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks sparsity", description=__doc__)
    parser.add_argument("--folder", type=Path, help="judge quality too, on the text there")
    parser.add_argument("--windows", type=int, default=60, help="of 512 tokens")
    parser.add_argument("--share", type=float, default=0.5, help="of places, for speed")
    parser.add_argument("--steps", type=int, default=16, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args(arguments)
    console = wide_console()
    result = {"speed": speed(options.share, options.steps, options.rounds)}
    console.print(table("Milliseconds of a step", result["speed"]))
    if options.folder:
        result["quality"] = list(quality(options.folder, options.windows))
        console.print(table("Perplexity per token", result["quality"]))
    if options.json:
        write_json(options.json, result)
    return 0


def compiled(model: torch.nn.Module, share: float, score: str, target: Target) -> Any:
    """The model with sparse activations wherever they pay on the target."""
    added = SparseActivations(share, score, limit=10.0)
    passes = default_passes(add=[added])
    return infopt.compile_causal_lm(model, max_length=1024, passes=passes, target=target)


def speed(share: float, steps: int, rounds: int) -> list[dict[str, Any]]:
    """Dense and sparse steps of one sequence, in turn."""
    model = random_decoder(DECODER_340M)
    arms = {
        "dense": infopt.compile_causal_lm(model, max_length=1024),
        f"{share:.0%} of places": compiled(model, share, "weighted", Target.detect()),
    }
    return steps_in_turn(arms, DECODER_340M.vocabulary, steps, rounds)


def steps_in_turn(
    arms: dict[str, Any], vocabulary: int, steps: int, rounds: int
) -> list[dict[str, Any]]:
    """Milliseconds of a step of each model, and how much faster than the first it is."""
    prompt = torch.randint(0, vocabulary, (1, PROMPT))
    states = {name: lm.prefill(prompt) for name, lm in arms.items()}
    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name, lm in arms.items():
            start = time.perf_counter()
            _, states[name] = lm.decode(states[name], steps)
            if turn:  # the first finds cold memory
                times[name].append((time.perf_counter() - start) / steps * 1e3)
    found = {name: spread(taken) for name, taken in times.items()}
    first = next(iter(found.values()))["median"]
    return [{"way": name, **f, "faster": first / f["median"]} for name, f in found.items()]


def random_decoder(config: Any) -> Decoder:
    """A bf16 model of random weights, the same at every call: for speed alone."""
    torch.manual_seed(0)
    model = Decoder(config).to(torch.bfloat16).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def quality(folder: Path, windows: int) -> Iterator[dict[str, Any]]:
    """Perplexity of the shipped model, whole and by every score and share."""
    model, tokenizer = checkpoint.load_language_model(), checkpoint.load_tokenizer()
    ids = corpus.read(folder / "corpus", "held_out", tokenizer)
    slow = replace(Target.detect(), caches=(0, 0, 0), bandwidth=1e-3)

    def judged(way: str, lm: Any) -> dict[str, Any]:
        found = evaluation.perplexity(
            lambda rows: lm.logits(rows)[None], ids, 512, windows, tokenizer
        )
        return {"way": way, "perplexity": math.exp(found.nats), "tokens": found.tokens}

    yield judged("dense", infopt.compile_causal_lm(model, max_length=1024))
    for share in SHARES:
        for score in SCORES:
            lm = compiled(model, share, score, slow)
            layers = len(lm.report.find("sparse-activations").applied)
            yield judged(f"{share:.0%} by {score}", lm) | {"layers": layers}


def table(title: str, rows: list[dict[str, Any]]) -> Table:
    drawn = Table(title=title)
    headings = list(dict.fromkeys(key for row in rows for key in row))
    for heading in headings:
        drawn.add_column(heading, justify="left" if heading == "way" else "right")
    for row in rows:
        drawn.add_row(*(_text(row.get(heading, "")) for heading in headings))
    return drawn


def _text(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
