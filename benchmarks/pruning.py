"""`python -m benchmarks pruning`: layers with fewer channels and heads, by what they are chosen.

The real MiniLM, calibrated on 48 sentences and judged on others; the shipped language model,
calibrated on windows of its training text and judged by perplexity on held-out files. Each whole,
with a share of the weights of its structures gone by every score, and that with int8. ResNet-50
with random weights, without int8: only its size and times say something. Times are those of all
ways in turn. --folder is where `python -m infopt.models.language_model corpus` put
text; without it there is no language model.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

import infopt
from benchmarks.quantization import nearest
from benchmarks.report import wide_console, write_json
from benchmarks.workloads import build_resnet
from infopt.compiler.cost import graph_seconds
from infopt.compiler.pipeline import Pass
from infopt.models.agreement import relative_error
from infopt.models.language_model import checkpoint, corpus, evaluation
from infopt.models.minilm import load_minilm, tokenize
from infopt.models.sentences import SENTENCES
from infopt.passes.pipelines import default_passes
from infopt.passes.prune_structures import SCORES, PruneStructures
from infopt.runtime.measure import measure

WINDOW, SEEN, PROMPT, STEPS, IMAGES = 512, 24, 256, 16, 4
TEXT = 2_000_000  # tokens that calibration windows are from
Row = dict[str, Any]


@torch.no_grad()
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks pruning", description=__doc__)
    parser.add_argument("--folder", type=Path, help="text for the language model")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.2])
    parser.add_argument("--scores", nargs="+", choices=SCORES, default=SCORES)
    parser.add_argument("--windows", type=int, default=60, help="of held-out text")
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing, per table")
    parser.add_argument("--only", choices=("minilm", "decoder", "resnet"))
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args(arguments)
    console, found = wide_console(), {}
    if options.only in (None, "minilm"):
        found["minilm"] = minilm(options)
        console.print(table("MiniLM, judged on sentences that chose nothing", found["minilm"]))
    if options.only in (None, "resnet"):
        found["resnet"] = resnet(options)
        console.print(table("ResNet-50, random weights, one image", found["resnet"]))
    if options.only in (None, "decoder") and options.folder:
        found["decoder"] = decoder(options)
        console.print(table("The shipped language model", found["decoder"]))
    if options.json:
        write_json(options.json, found)
    return 0


def ways(shares: Sequence[float], scores: Sequence[str]) -> Iterator[tuple[str, tuple[Pass, ...]]]:
    """What it is called, and its passes."""

    def cut(share: float, score: str, weights: str | None = None) -> tuple[Pass, ...]:
        asked = PruneStructures(share, score, limit=10.0)
        passes = default_passes(prune=share, weights=weights)
        return tuple(asked if p.name == asked.name else p for p in passes)

    yield "whole", default_passes()
    for share in shares:
        for score in scores:
            yield f"{share:.0%} by {score}", cut(share, score)
    yield "int8", default_passes(weights="int8")
    for share in shares:
        yield f"{share:.0%} by {SCORES[0]}, int8", cut(share, SCORES[0], "int8")


def figures(name: str, report: Any) -> Row:
    entries = [p for p in report.passes if p.name == "prune-structures"]
    sites = [site for entry in entries for site in entry.sites]
    return {
        "way": name,
        "weights": report.memory["weights"] / 2**20,
        "structures": {site.where: site.reason for site in sites if "of" in site.reason},
    }


def minilm(options: argparse.Namespace) -> list[Row]:
    model = load_minilm()
    chosen, calibrating = SENTENCES[::4][:48], SENTENCES[1::4][:48]
    samples, seen = tokenize(chosen), [tokenize([s]) for s in calibrating]
    held_out = tokenize([s for s in SENTENCES if s not in {*chosen, *calibrating}])
    expected = model(held_out.ids, held_out.mask)
    ids, mask = (torch.export.Dim(n, min=1, max=512) for n in ("sentences", "tokens"))
    shapes = ({0: ids, 1: mask}, {0: ids, 1: mask})
    args, rows, runs = (samples.ids, samples.mask), [], {}
    for name, passes in ways(options.shares, options.scores):
        compiled = infopt.compile(
            *(model, args),
            dynamic_shapes=shapes,
            passes=passes,
            calibration=[(s.ids, s.mask) for s in seen],
        )
        found = compiled(held_out.ids, held_out.mask)
        rows.append(figures(name, compiled.report))
        rows[-1] |= {
            "error": relative_error(expected, found),
            "least cosine": torch.cosine_similarity(found, expected).min().item(),
            "neighbours": (nearest(found) == nearest(expected)).double().mean().item(),
        }
        runs[name] = lambda c=compiled: c(*args)
    return timed(rows, runs, options.seconds)


def decoder(options: argparse.Namespace) -> list[Row]:
    model, tokenizer = checkpoint.load_language_model(), checkpoint.load_tokenizer()
    folder = options.folder / "corpus"
    held_out = corpus.read(folder, "held_out", tokenizer)
    text = corpus.read(folder, "train", tokenizer, TEXT)
    starts = np.linspace(0, len(text) - WINDOW, SEEN).astype(int)
    windows = [torch.from_numpy(text[i : i + WINDOW].astype(np.int64))[None] for i in starts]
    prompt = torch.from_numpy(held_out[:PROMPT].astype(np.int64))[None]
    rows: list[Row] = []
    prefill: dict[str, Callable[[], Any]] = {}
    decode: dict[str, Callable[[], Any]] = {}
    for name, passes in ways(options.shares, options.scores):
        lm = infopt.compile_causal_lm(
            model,
            max_length=1024,
            passes=passes,
            calibration=[(w,) for w in windows],
        )
        judged = evaluation.perplexity(
            lambda ids, lm=lm: lm.logits(ids)[None], held_out, WINDOW, options.windows, tokenizer
        )
        rows.append(figures(name, lm.report) | {"perplexity": math.exp(judged.nats)})
        prefill[name] = lambda lm=lm: lm.prefill(prompt)
        state = lm.prefill(prompt)
        decode[name] = lambda lm=lm, state=state: lm.decode(state.copy(), STEPS)
    rows = timed(rows, prefill, options.seconds, "prefill ")
    return timed(rows, decode, options.seconds, "decode ")


def resnet(options: argparse.Namespace) -> list[Row]:
    model, (x, *seen) = build_resnet(), [torch.randn(1, 3, 224, 224) for _ in range(IMAGES + 1)]
    rows, runs = [], {}
    for name, passes in ways(options.shares, options.scores):
        if "int8" not in name:
            compiled = infopt.compile(model, (x,), passes=passes, calibration=[(i,) for i in seen])
            report = compiled.report
            estimate = graph_seconds(report.graph, report.machine)
            rows.append(figures(name, report) | {"estimated ms": estimate * 1e3})
            runs[name] = lambda c=compiled: c(x)
    return timed(rows, runs, options.seconds)


def timed(
    rows: list[Row], runs: dict[str, Callable[[], Any]], seconds: float, what: str = ""
) -> list[Row]:
    """The rows with least and median milliseconds of their runs, in turns."""
    times = measure(runs, seconds, rounds=15)
    for row in rows:
        timing = times[row["way"]]
        row |= {f"{what}ms": timing.min * 1e3, f"{what}median": timing.median * 1e3}
    return rows


def table(title: str, rows: list[Row]) -> Table:
    drawn = Table(title=title)
    headings = [h for h in dict.fromkeys(key for row in rows for key in row) if h != "structures"]
    for heading in headings:
        drawn.add_column(heading, justify="left" if heading == "way" else "right")
    for row in rows:
        drawn.add_row(*(_text(row[heading]) for heading in headings))
    return drawn


def _text(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
