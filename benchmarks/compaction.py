"""`python -m benchmarks compaction`: prompts of a real model cut to the tokens that matter.

The shipped language model reads held-out prompts whole, cut by its own attention, and cut to their
last tokens; then perplexity of what follows, and two questions: the first ends the prompt, so it
chooses; the second comes later, when what it needs may be gone.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

import infopt
from benchmarks.kv_quality import DISTANCES, FILLERS, Answers, follow, split, two_questions
from benchmarks.report import spread, wide_console, write_json
from infopt.models.language_model import corpus
from infopt.models.language_model.checkpoint import load_language_model, load_tokenizer
from infopt.models.language_model.evaluation import NAMES

PROMPT, FOLLOWS, BATCH = 896, 64, 16
KEEPS = (0.5, 0.25, 0.125)


@torch.no_grad()
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks compaction", description=__doc__)
    parser.add_argument("--layers", default="2", help="whose attention chooses, from 0")
    parser.add_argument("--windows", type=int, default=32, help=f"of {PROMPT} + {FOLLOWS} tokens")
    parser.add_argument("--rounds", type=int, default=7, help="of the prefill's time")
    parser.add_argument("--texts", type=int, default=FILLERS, help="with questions, of each name")
    parser.add_argument("--measure", default="time,perplexity,recall", help="which of them")
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args(arguments)
    model, tokenizer = load_language_model(), load_tokenizer()
    ids = corpus.encode(corpus.held_out_documents(), tokenizer).astype(np.int64)
    starts = np.linspace(0, len(ids) - PROMPT - FOLLOWS, options.windows).astype(int)
    windows = [ids[n : n + PROMPT + FOLLOWS].tolist() for n in starts]
    rows: list[dict[str, Any]] = []
    measured = options.measure.split(",")
    for number, layer in enumerate(map(int, options.layers.split(","))):
        lm = infopt.compile_causal_lm(
            model,
            max_length=PROMPT + FOLLOWS,
            batch=BATCH,
            compact=infopt.Compaction(keep=min(KEEPS), layer=layer, least=32),
            strict=True,
        )
        if lm.filter is None:
            raise SystemExit(lm.report.notes[-1])
        ways = [("chosen", keep) for keep in KEEPS]
        ways = ways if number else [("whole", 1.0), *ways, *(("last", keep) for keep in KEEPS)]
        rounds = options.rounds if "time" in measured else 0
        times = prefill_times(lm, windows[0][:PROMPT], ways, rounds)
        for (way, keep), spent in zip(ways, times, strict=True):
            row = {"way": way, "keep": keep, "layer": layer if way == "chosen" else None}
            if spent:
                row["prefill"] = spread(spent)
            if "perplexity" in measured:
                row |= perplexity(lm, windows, way, keep)
            if "recall" in measured:
                for distance in DISTANCES:
                    texts = [
                        two_questions(i, ids[997 * n :], distance, tokenizer)
                        for n in range(options.texts)
                        for i in range(len(NAMES))
                    ]
                    row[f"recall_{distance}"] = [asdict(a) for a in answers(lm, texts, way, keep)]
            rows.append(row)
    show(rows)
    if options.json:
        write_json(options.json, {"prompt": PROMPT, "follows": FOLLOWS, "rows": rows})
    return 0


def places(lm: infopt.CausalLM, prompts: list[list[int]], way: str, keep: float) -> list[Tensor]:
    """What of each prompt is read; of the last tokens as many as would be chosen, and the first."""
    if way == "chosen":
        return lm.places(prompts, keep=keep)
    assert lm.spec.compact is not None
    made = []
    for prompt in prompts:
        count = len(prompt) if way == "whole" else lm.spec.compact.kept(len(prompt), keep)
        last = torch.arange(len(prompt) - count, len(prompt))
        last[0] = 0
        made.append(last)
    return made


def read(
    lm: infopt.CausalLM, texts: list[list[int]], prompts: list[int], way: str, keep: float
) -> tuple[Tensor, Tensor]:
    """(nats, the likeliest instead) of what follows the prompts, [B, steps], padded behind."""
    state = lm.prefill(
        heads := [text[:n] for text, n in zip(texts, prompts, strict=True)],
        places=places(lm, heads, way, keep),
    )
    tails = [text[n:] for text, n in zip(texts, prompts, strict=True)]
    most = max(map(len, tails))
    ends = torch.tensor([tail + tail[-1:] * (most - len(tail)) for tail in tails])
    return follow(lm, state, ends)


def perplexity(
    lm: infopt.CausalLM, windows: list[list[int]], way: str, keep: float
) -> dict[str, Any]:
    nats = torch.cat([read(lm, w, [PROMPT] * len(w), way, keep)[0] for w in split(windows)])
    return {"perplexity": math.exp(nats.mean()), "nats": nats.mean(1).tolist()}


def answers(lm: infopt.CausalLM, texts: list[Any], way: str, keep: float) -> list[Answers]:
    """The prompt ends with the first question."""
    right, nats = [0, 0], [[], []]  # type: tuple[list[int], list[list[float]]]
    for part in split(texts):
        prompts = [len(t.defined) + len(t.middle) + len(t.asked[0][0]) for t in part]
        lost, best = read(lm, [t.ids() for t in part], prompts, way, keep)
        for row, text in enumerate(part):
            first = len(text.asked[0][1])
            second = first + len(text.asked[1][0])
            places = slice(0, first), slice(second, second + len(text.asked[1][1]))
            for number, place in enumerate(places):
                right[number] += best[row, place].tolist() == text.asked[number][1]
                nats[number] += lost[row, place].tolist()
    return [Answers(r, len(texts), sum(n) / len(n)) for r, n in zip(right, nats, strict=True)]


def prefill_times(
    lm: infopt.CausalLM, prompt: list[int], ways: list[tuple[str, float]], rounds: int
) -> list[list[float]]:
    """Seconds of one prompt, choosing with it; all ways in turns."""
    times: list[list[float]] = [[] for _ in ways]
    for round in range(rounds + 1):  # the first warms up
        for (way, keep), spent in zip(ways, times, strict=True):
            start = time.perf_counter()
            lm.prefill([prompt], places=places(lm, [prompt], way, keep))
            if round:
                spent.append(time.perf_counter() - start)
    return times


def show(rows: list[dict[str, Any]]) -> None:
    drawn = Table(title=f"prompts of {PROMPT} tokens, {FOLLOWS} that follow")
    headings = [f"{n} question, {d}" for d in DISTANCES for n in ("first", "second")]
    for heading in ("read", "layer", "prefill ms", "perplexity", "change", *headings):
        drawn.add_column(heading)
    for row in rows:
        cells = [f"{row['way']} {row['keep']:.1%}", "" if row["layer"] is None else row["layer"]]
        cells.append(f"{row['prefill']['min'] * 1e3:.1f}" if "prefill" in row else "")
        if "nats" in row:
            change = torch.tensor(row["nats"]) - torch.tensor(rows[0]["nats"])  # paired
            error = float(change.std()) / len(change) ** 0.5
            cells.append(f"{row['perplexity']:.3f}")
            cells.append(f"{math.expm1(change.mean()):+.2%} ± {error:.2%}")
        else:
            cells += ["", ""]
        if found := [a for d in DISTANCES for a in row.get(f"recall_{d}", ())]:
            cells += [f"{a['right']}/{a['asked']}, {a['nats']:.2f} nats" for a in found]
        drawn.add_row(*map(str, cells))
    wide_console().print(drawn)
