"""`python -m benchmarks decoder_budgets`: what budgets over all techniques make of a real decoder.

The shipped language model under budgets that may choose the format of its cache, of its weights,
ranks, pruning, tokens and sparse activations: what is chosen and why the rest is not, bytes of
weights and cache, time of steps, and perplexity of held-out source, read by steps that find all
earlier tokens in the cache. Texts that choose and that calibrate come before those that judge.
"""

from __future__ import annotations

import argparse
import math
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

import infopt
from benchmarks.kv_quality import read, split
from benchmarks.report import wide_console, write_json
from infopt.models.language_model import corpus
from infopt.models.language_model.checkpoint import load_language_model, load_tokenizer
from infopt.runtime.measure import measure

WINDOW, BATCH = 512, 16
SAMPLES, SEEN = 2, 8  # windows that errors are measured on, and that calibrate
STEPS = 32  # timed, behind a window without them
SEARCHES = ("cache-to-budget", "compress-to-budget")
PERMITTED: dict[str, Any] = {"formats": (), "kv": ("kv",), "all": "all"}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks decoder_budgets", description=__doc__
    )
    parser.add_argument("--limits", default="0.02,0.1", help="errors, relative RMS of logits")
    parser.add_argument("--objectives", default="memory,latency")
    parser.add_argument("--techniques", default="formats,all")
    parser.add_argument(
        "--windows", type=int, default=32, help=f"to judge by, {WINDOW} tokens each"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing")
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args(arguments)
    model = load_language_model()
    text = corpus.encode(corpus.held_out_documents(), load_tokenizer()).astype(np.int64)
    cut = len(text) // 4
    chosen_by = [(torch.tensor([w[:-1]]),) for w in windows_of(text[:cut], SAMPLES + SEEN)]
    judging = windows_of(text[cut:], options.windows)
    ways: dict[str, dict[str, Any]] = {"as given": {}}
    for objective in options.objectives.split(","):
        for limit in map(float, options.limits.split(",")):
            for permitted in options.techniques.split(","):
                budget = infopt.Budget(
                    *(limit, objective),
                    samples=tuple(chosen_by[:SAMPLES]),
                    techniques=PERMITTED[permitted],
                )
                name = f"{objective}, {limit:.0%}, {permitted}"
                ways[name] = {"budget": budget, "calibration": chosen_by[SAMPLES:]}
    rows, steps = [], {}
    for name, given in ways.items():
        start = time.perf_counter()
        lm = infopt.compile_causal_lm(model, max_length=WINDOW, batch=BATCH, **given)
        took = time.perf_counter() - start
        rows.append(figures(name, lm, took) | {"nats": nats_of(lm, judging).tolist()})
        state = lm.prefill(torch.tensor(judging[0][: WINDOW - STEPS]))
        steps[name] = partial(decode, lm, state)
    whole = torch.tensor(rows[0]["nats"])
    times = measure(steps, options.seconds, rounds=15)
    for row in rows:
        nats = torch.tensor(row.pop("nats"))
        change = nats - whole  # of each window: paired
        row |= {
            "perplexity": math.exp(nats.mean()),
            "change": math.expm1(change.mean()),
            "change_error": float(change.std()) / len(change) ** 0.5,
            "step_ms": times[row["way"]].min / STEPS * 1e3,
            "step_ms_median": times[row["way"]].median / STEPS * 1e3,
        }
    show(rows)
    if options.json:
        sizes = {"window": WINDOW, "batch": BATCH, "windows": options.windows}
        write_json(options.json, sizes | {"rows": rows})
    return 0


def windows_of(ids: np.ndarray, count: int) -> list[list[int]]:
    """Evenly spread, each with the token that follows it."""
    starts = np.linspace(0, len(ids) - WINDOW - 1, count).astype(int)
    return [ids[n : n + WINDOW + 1].tolist() for n in starts]


@torch.no_grad()
def nats_of(lm: infopt.CausalLM, windows: list[list[int]]) -> Tensor:
    """Nats per token of each window, read by steps."""
    return torch.cat([read(lm, part, WINDOW)[0] for part in split(windows)]).mean(1)


def decode(lm: infopt.CausalLM, state: infopt.State) -> None:
    lm.decode(state.copy(), STEPS)


def figures(name: str, lm: infopt.CausalLM, took: float) -> dict[str, Any]:
    report = lm.report
    searches = [entry for entry in report.passes if entry.name in SEARCHES]
    found = [p for p in report.frontier if p.measured_error is not None]
    return {
        "way": name,
        "chosen": [s.where for entry in searches for s in entry.applied],
        "formats": found[0].formats if found else {},
        "error": found[0].measured_error if found else 0.0,
        "weights": report.memory["weights"],
        "cache": lm.spec.cache_bytes,
        "compiled_seconds": took,
        "reasons": {entry.name: {s.where: s.reason for s in entry.sites} for entry in searches},
    }


def show(rows: list[dict[str, Any]]) -> None:
    drawn = Table(title=f"the shipped language model, {BATCH} texts of {WINDOW} tokens")
    for heading in ("way", "chosen", "formats", "error", "weights MiB", "cache MiB"):
        drawn.add_column(heading)
    for heading in ("ms a step, one text", "median", "perplexity", "change", "compiled in s"):
        drawn.add_column(heading, justify="right")
    for row in rows:
        drawn.add_row(
            row["way"],
            ", ".join(row["chosen"]),
            ", ".join(f"{count} {form}" for form, count in row["formats"].items()),
            f"{row['error']:.1e}",
            f"{row['weights'] / 2**20:.2f}",
            f"{row['cache'] / 2**20:.2f}",
            f"{row['step_ms']:.3f}",
            f"{row['step_ms_median']:.3f}",
            f"{row['perplexity']:.3f}",
            f"{row['change']:+.2%} ± {row['change_error']:.2%}",
            f"{row['compiled_seconds']:.0f}",
        )
    console = wide_console()
    console.print(drawn)
    for row in rows:
        for search, reasons in row["reasons"].items():
            console.print(f"{row['way']}: {search}")
            for where, reason in reasons.items():
                console.print(f"  {where}: {reason}")
