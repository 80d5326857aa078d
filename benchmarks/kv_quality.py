"""`python -m benchmarks kv_quality`: what layouts and policies of the cache do to a real model.

The shipped language model reads held-out source token by token through the compiled steps, so that
the cache is what it is while text is generated: perplexity, agreement of the likeliest token with
the whole cache, and recall of two names that were defined so many tokens before, asked for one
after the other from the same cache. Policies have a quarter of the text's tokens.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

import infopt
from benchmarks.report import wide_console, write_json
from infopt.models.language_model import corpus
from infopt.models.language_model.checkpoint import load_language_model, load_tokenizer
from infopt.models.language_model.evaluation import NAMES, definition, question

WINDOW, BATCH = 512, 16
DISTANCES, FILLERS = (100, 500), 8  # every name with so many texts between
SHARE, CHUNK, PAGE, SINKS = 4, 8, 8, 4
GREEDY = 48  # tokens written freely, against the model without a cache


@dataclass(frozen=True)
class Quest(infopt.kv.Quest):
    """Also where it does not pay: texts are short here."""

    def declined(self, *_: Any) -> None:
        return None


# of a text's tokens: how its cache is kept
KINDS: dict[str, Callable[[int], Any]] = {
    "exact": lambda tokens: None,
    "int8": lambda tokens: infopt.KV("int8"),
    "int4": lambda tokens: infopt.KV("int4"),
    "ring": lambda tokens: infopt.kv.Ring(SINKS, tokens // SHARE - SINKS - CHUNK, CHUNK),
    "h2o": lambda tokens: infopt.kv.Evict(tokens // SHARE, tokens // SHARE // 4, CHUNK),
    "roco": lambda tokens: infopt.kv.RoCo(tokens // SHARE, tokens // SHARE // 4, CHUNK),
    "d2o": lambda tokens: infopt.kv.D2O(tokens // SHARE, tokens // SHARE // 4, CHUNK),
    "quest": lambda tokens: Quest(pages=tokens // SHARE // PAGE, page=PAGE, dense=0),
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks kv_quality", description=__doc__)
    parser.add_argument("--kinds", default=",".join(KINDS), help="layouts and policies")
    parser.add_argument("--windows", type=int, default=32, help=f"of {WINDOW} tokens each")
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args(arguments)
    kinds = list(dict.fromkeys(["exact", *options.kinds.split(",")]))
    model, tokenizer = load_language_model(), load_tokenizer()
    ids = corpus.encode(corpus.held_out_documents(), tokenizer).astype(np.int64)
    starts = np.linspace(0, len(ids) - WINDOW - 1, options.windows).astype(int)
    windows = [ids[n : n + WINDOW + 1].tolist() for n in starts]
    rows: dict[str, dict[str, Any]] = {kind: {"kind": kind} for kind in kinds}

    for kind in kinds:
        lm = compiled(model, kind, WINDOW)
        if kind == "exact":
            rows[kind]["greedy_as_eager"] = greedy_as_eager(model, lm, windows)
        steps = [read(lm, part, WINDOW) for part in split(windows)]
        nats, best = (torch.cat(parts) for parts in zip(*steps, strict=True))
        if kind == "exact":
            whole_nats, whole_best = nats, best
        change = nats.mean(1) - whole_nats.mean(1)  # of each window: paired
        rows[kind] |= {
            "perplexity": math.exp(nats.mean()),
            "change": math.expm1(change.mean()),
            "change_error": float(change.std()) / len(change) ** 0.5,
            "top1": float((best == whole_best).float().mean()),
            "tokens": nats.numel(),
        }
    for distance in DISTANCES:
        texts = [
            two_questions(i, ids[997 * n :], distance, tokenizer)
            for n in range(FILLERS)
            for i in range(len(NAMES))
        ]
        for kind in kinds:
            lm = compiled(model, kind, max(len(t.ids()) for t in texts))
            rows[kind][f"recall_{distance}"] = [asdict(a) for a in answers(lm, texts)]
            if kind == "exact":
                unknown = answers(lm, [t.undefined() for t in texts])
                rows[kind][f"undefined_{distance}"] = [asdict(a) for a in unknown]
    show(list(rows.values()))
    if options.json:
        sizes = {"window": WINDOW, "distances": DISTANCES, "share": 1 / SHARE}
        write_json(options.json, sizes | {"rows": list(rows.values())})
    return 0 if rows["exact"]["greedy_as_eager"] == 1 else 1


def compiled(model: torch.nn.Module, kind: str, tokens: int) -> infopt.CausalLM:
    return infopt.compile_causal_lm(
        model, max_length=tokens, batch=BATCH, kv=KINDS[kind](tokens), strict=True, threads=1
    )


def split(texts: list[Any]) -> list[list[Any]]:
    return [texts[n : n + BATCH] for n in range(0, len(texts), BATCH)]


@torch.no_grad()
def read(lm: infopt.CausalLM, texts: list[list[int]], steps: int) -> tuple[Tensor, Tensor]:
    """(nats, the likeliest instead), [B, steps], of the last tokens of each text, one at a time."""
    state = lm.prefill([text[:-steps] for text in texts])
    return follow(lm, state, torch.tensor([text[-steps:] for text in texts]))


@torch.no_grad()
def follow(lm: infopt.CausalLM, state: infopt.State, ends: Tensor) -> tuple[Tensor, Tensor]:
    """The same of given tokens `ends` [B, steps] after a state."""
    nats, best, steps = [], [], ends.shape[1]
    for step in range(steps):
        nats.append(F.cross_entropy(state.logits, ends[:, step], reduction="none"))
        best.append(state.logits.argmax(-1))
        if step + 1 < steps:
            state = lm.step(state, ends[:, step].contiguous())
    return torch.stack(nats, 1), torch.stack(best, 1)


@torch.no_grad()
def greedy_as_eager(model: torch.nn.Module, lm: infopt.CausalLM, windows: list[list[int]]) -> float:
    """Of how many of 8 texts the compiled steps write what the model without a cache does."""
    prompts = torch.tensor([window[:32] for window in windows[:8]])
    written, _ = lm.decode(lm.prefill(prompts), GREEDY)
    text = prompts
    for _ in range(GREEDY):
        text = torch.cat((text, model(text)[:, -1].argmax(-1, keepdim=True)), 1)
    return float((text[:, 32:] == written).all(1).float().mean())


@dataclass(frozen=True)
class Questions:
    """Two definitions, other source, then a call of the one and a call of the other."""

    defined: list[int]
    middle: list[int]
    asked: tuple[tuple[list[int], list[int]], ...]  # (up to the first letter, the rest of the name)

    def undefined(self) -> Questions:
        """The same without the definitions: what follows from the first letter alone."""
        return Questions([], self.middle, self.asked)

    def ids(self) -> list[int]:
        return [*self.defined, *self.middle, *(i for pair in self.asked for p in pair for i in p)]

    def answer(self, number: int) -> slice:
        """Where the rest of the name stands, from the end."""
        behind = sum(len(p) for pair in self.asked[number + 1 :] for p in pair)
        return slice(-behind - len(self.asked[number][1]), -behind or None)


def two_questions(index: int, filler: np.ndarray, distance: int, tokenizer: Any) -> Questions:
    first, second = NAMES[index], NAMES[(index + 3) % len(NAMES)]
    begin = index * 8999
    defined = definition(first, tokenizer) + definition(second, tokenizer)
    asked = (question(first, tokenizer), question(second, tokenizer))
    return Questions(defined, filler[begin : begin + distance].tolist(), asked)


@dataclass(frozen=True)
class Answers:
    """right: of `asked` names, those whose every token was the likeliest; nats: per token."""

    right: int
    asked: int
    nats: float


def answers(lm: infopt.CausalLM, texts: list[Questions]) -> list[Answers]:
    """To the first questions and to the second ones; questions are read token by token."""
    steps = max(len(t.ids()) - len(t.defined) - len(t.middle) for t in texts)
    right, nats = [0, 0], [[], []]  # type: tuple[list[int], list[list[float]]]
    for part in split(texts):
        lost, best = read(lm, [t.ids() for t in part], steps)
        for row, text in enumerate(part):
            for number in (0, 1):
                place = text.answer(number)
                right[number] += best[row, place].tolist() == text.asked[number][1]
                nats[number] += lost[row, place].tolist()
    return [Answers(r, len(texts), sum(n) / len(n)) for r, n in zip(right, nats, strict=True)]


def show(rows: list[dict[str, Any]]) -> None:
    drawn = Table(title=f"{rows[0]['tokens']} held-out tokens, {1 / SHARE:.0%} for policies")
    headings = [f"{n} question, {d}" for d in DISTANCES for n in ("first", "second")]
    for heading in ("cache", "perplexity", "change", "top-1", *headings):
        drawn.add_column(heading)
    for row in rows:
        found = [a for d in DISTANCES for a in row[f"recall_{d}"]]
        drawn.add_row(
            row["kind"],
            f"{row['perplexity']:.3f}",
            f"{row['change']:+.2%} ± {row['change_error']:.2%}",
            f"{row['top1']:.2%}",
            *(f"{a['right']}/{a['asked']}, {a['nats']:.2f} nats" for a in found),
        )
    console = wide_console()
    console.print(drawn)
    unknown = [a for d in DISTANCES for a in rows[0][f"undefined_{d}"]]
    said = ", ".join(f"{a['right']}/{a['asked']}, {a['nats']:.2f} nats" for a in unknown)
    console.print(f"the names not defined: {said}")
    console.print(f"greedy texts as without a cache: {rows[0]['greedy_as_eager']:.0%}")
