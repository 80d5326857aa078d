"""`python -m benchmarks sparse_choices`: what a step's feed-forward layers may leave unread.

Ways to read a share of their weights, on the shipped language model in plain torch: a prompt of
--prompt tokens is computed whole, and the rest of each window of 512 held-out tokens as steps.

places      the largest |x| times the columns' lengths (WINA), which infopt has, or the largest |x|
low rank    fewer such places, and thin factors of the weight for what is left of x (R-Sparse), with
            the bytes of both together; gate and up share factors
neurons     chosen once by the prompt: those most often among the 40 % of largest activations of a
            token (CoreInfer), or by their share of tokens' activations over the prompt times the
            lengths of their columns; "knowing the steps": by the steps, which nobody can

Speed is that of a step of the 0.34B decoder, in turn; chosen neurons are a model that has only
those.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import infopt
from benchmarks.report import wide_console, write_json
from benchmarks.sparsity import compiled, random_decoder, steps_in_turn, table
from infopt.compiler.target import Target
from infopt.models.decoder import DECODER_340M, Decoder
from infopt.models.language_model import checkpoint, corpus

WINDOW = 512
OFTEN = 0.4  # of a token's neurons, as in CoreInfer
SHARES = (0.5, 0.8, 0.6, 0.4)
RANKS = (0.05, 0.1)  # shares of the bytes that thin factors take


@torch.no_grad()
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks sparse_choices")
    parser.add_argument("--folder", type=Path, help="judge quality, on the text there")
    parser.add_argument("--windows", type=int, default=30)
    parser.add_argument("--prompt", type=int, default=256, help="tokens computed whole")
    parser.add_argument("--speed", action="store_true", help="measure steps of the 0.34B decoder")
    parser.add_argument("--layers", type=int, default=24, help="of that decoder")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args(arguments)
    console, found = wide_console(), {}
    if options.folder:
        found["quality"] = list(quality(options.folder, options.windows, options.prompt))
        console.print(table("Perplexity per token of steps", found["quality"]))
    if options.speed:
        found["speed"] = speed(options.layers, options.rounds)
        console.print(table("Milliseconds of a step", found["speed"]))
    if options.json:
        write_json(options.json, found | {"prompt": options.prompt, "windows": options.windows})
    return 0


def quality(folder: Path, windows: int, prompt: int) -> Iterator[dict[str, Any]]:
    """A row for each way and share, as it is known."""
    ids = corpus.read(folder / "corpus", "held_out", checkpoint.load_tokenizer())
    whole = checkpoint.load_language_model()
    yield {"way": "all weights"} | perplexity(whole, ids, windows, prompt)
    for share in SHARES:
        for way in (*PLACES, *(f"low rank {part:.0%}" for part in RANKS), *NEURONS):
            model = checkpoint.load_language_model()
            for layer in model.layers:
                sparsify(layer, way, share, prompt)
            row = {"way": way, "share": share}
            yield row | perplexity(model, ids, windows, prompt)


def perplexity(model: Decoder, ids: np.ndarray, windows: int, prompt: int) -> dict[str, float]:
    """Of the tokens behind the prompt of each window, which steps predict."""
    total = 0.0
    for start in np.linspace(0, len(ids) - WINDOW - 1, windows).astype(int):
        row = torch.from_numpy(ids[start : start + WINDOW + 1].astype(np.int64))
        logits = model(row[None, :-1])[0, prompt:]
        wanted = row[1 + prompt :]
        total += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
    count = windows * (WINDOW - prompt)
    return {"perplexity": math.exp(total / count), "tokens": count}


class Steps(torch.nn.Module):
    """A product of [1, T, K] whose rows behind a prompt are computed otherwise.

    product: (the prompt's rows, the steps' rows) -> the steps' results
    """

    def __init__(self, weight: Tensor, prompt: int, product: Callable[..., Tensor]) -> None:
        super().__init__()
        self.weight, self.prompt, self.product = weight, prompt, product

    def forward(self, x: Tensor) -> Tensor:
        first, rest = x[0, : self.prompt], x[0, self.prompt :]
        return torch.cat((first @ self.weight.T, self.product(first, rest)))[None]


def sparsify(layer: Any, way: str, share: float, prompt: int) -> None:
    """Exchange the feed-forward products of a layer of the decoder."""
    gate, up, down = (m.weight.detach() for m in (layer.gate, layer.up, layer.down))
    if way in NEURONS:  # a neuron that is not chosen puts nothing out: gate and up need no change
        layer.down = Steps(down, prompt, by_neurons(down, NEURONS[way], share))
        return
    part = float(way.removeprefix("low rank ").rstrip("%")) / 100 if way not in PLACES else 0.0
    norms = PLACES.get(way, _lengths)
    both = torch.cat((gate, up))
    thin = thin_factors(both, part).split(len(gate)) if part else (None, None)
    kept = share - part
    layer.gate = Steps(gate, prompt, by_places(gate, norms(both), kept, thin[0]))
    layer.up = Steps(up, prompt, by_places(up, norms(both), kept, thin[1]))
    thin = (thin_factors(down, part),) if part else (None,)
    layer.down = Steps(down, prompt, by_places(down, norms(down), kept, thin[0]))


def by_places(
    weight: Tensor, norms: Tensor, share: float, thin: Tensor | None
) -> Callable[[Tensor, Tensor], Tensor]:
    """The largest places of each row by the weight, the others by its thin factors."""

    def product(first: Tensor, rest: Tensor) -> Tensor:
        kept = largest(rest.abs() * norms, share)
        y = (rest * kept) @ weight.T
        return y if thin is None else y + (rest * (1 - kept)) @ thin.T

    return product


def by_neurons(
    down: Tensor, worth: Callable[..., Tensor], share: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """The same places of all rows, chosen once."""

    def product(first: Tensor, rest: Tensor) -> Tensor:
        return (rest * largest(worth(first, rest, down), share)) @ down.T

    return product


def _often(first: Tensor, rest: Tensor, down: Tensor) -> Tensor:
    return (largest(first, OFTEN) * (first > 0)).sum(0)


def _output(first: Tensor, rest: Tensor, down: Tensor) -> Tensor:
    return (first / first.norm(dim=-1, keepdim=True)).norm(dim=0) * down.norm(dim=0)


def _known(first: Tensor, rest: Tensor, down: Tensor) -> Tensor:
    return rest.norm(dim=0) * down.norm(dim=0)


def _lengths(weight: Tensor) -> Tensor:
    return weight.norm(dim=0)


PLACES: dict[str, Callable[[Tensor], Tensor]] = {
    "places by |x| and columns": _lengths,
    "places by |x|": lambda weight: torch.ones(weight.shape[1]),
}
NEURONS = {
    "neurons, most often": _often,
    "neurons, by output": _output,
    "neurons, knowing the steps": _known,
}


def largest(score: Tensor, share: float) -> Tensor:
    """1 at the share of places of each row with the largest scores, 0 elsewhere."""
    places = score.topk(round(share * score.shape[-1]), -1).indices
    return torch.zeros_like(score).scatter(-1, places, 1.0)


def thin_factors(weight: Tensor, share: float) -> Tensor:
    """The product of the best two factors that have this share of the weight's bytes."""
    rank = round(share * weight.numel() / sum(weight.shape))
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def speed(layers: int, rounds: int, steps: int = 16) -> list[dict[str, Any]]:
    """Steps of one sequence in bf16, in turn: half of all places, half of the neurons."""
    config = replace(DECODER_340M, layers=layers)
    half = replace(config, hidden=config.hidden // 2)
    arms = {
        "all weights": infopt.compile_causal_lm(random_decoder(config), max_length=1024),
        "50% of the places of all layers": compiled(
            random_decoder(config), 0.5, "weighted", Target.detect()
        ),
        "50% of the neurons": infopt.compile_causal_lm(random_decoder(half), max_length=1024),
    }
    return steps_in_turn(arms, config.vocabulary, steps, rounds)
