"""`python -m benchmarks adapters`: what adapters of their own cost the rows of a batch.

A step of the 0.34B decoder's shape with 8 sequences, and a batch of 8x128 through BERT-base's
shape, in f32 with random weights and random adapters of rank 16 on queries and values: without room
for adapters (what weights with one adapter merged into them cost, too), with room and no, one or
eight adapters in the batch, and plain torch, which adds the adapter of each row after each layer.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import infopt
from benchmarks.report import wide_console, write_json
from benchmarks.sparsity import table
from infopt.models.agreement import relative_error
from infopt.models.decoder import DECODER_340M, Decoder
from infopt.models.encoder import BERT_BASE, Encoder
from infopt.runtime.measure import measure

RANK, COUNT = 16, 8
ROOM = infopt.Adapters(RANK, COUNT, "*query,*value")
PROMPT = 64
Adapter = dict[str, Tensor]


@torch.no_grad()
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks adapters", description=__doc__)
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--layers", type=int, default=4, help="of either model")
    parser.add_argument("--seconds", type=float, default=30.0, help="of timing our ways, per table")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    found = {
        "step": step(options.layers, options.seconds),
        "batch": batch(options.layers, options.seconds),
    }
    console = wide_console()
    console.print(table(f"A step of 8 sequences, {options.layers} layers", found["step"]))
    console.print(table(f"A batch of 8x128, {options.layers} layers", found["batch"]))
    if options.json:
        write_json(options.json, found | {"layers": options.layers})
    return 0


def adapters_of(model: nn.Module) -> list[Adapter]:
    """COUNT random adapters of a model's queries and values."""
    made: list[Adapter] = [{} for _ in range(COUNT)]
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name.endswith(("query", "value")):
            n, k = layer.weight.shape
            for adapter in made:
                adapter[f"{name}.lora_A.weight"] = torch.randn(RANK, k) / k**0.5
                adapter[f"{name}.lora_B.weight"] = torch.randn(n, RANK) / RANK
    return made


def step(layers: int, seconds: float) -> list[dict[str, Any]]:
    """One token of each of COUNT sequences."""
    model = Decoder(replace(DECODER_340M, layers=layers)).eval()
    adapters, rows = adapters_of(model), COUNT
    given: dict[str, Any] = {"max_length": 4 * PROMPT, "batch": rows}
    plain = infopt.compile_causal_lm(model, **given)
    lm = _loaded(infopt.compile_causal_lm(model, adapters=ROOM, **given), adapters)
    prompt = torch.randint(0, DECODER_340M.vocabulary, (rows, PROMPT))
    token = prompt[:, :1]

    def steps(compiled: Any, **chosen: Any) -> Callable[[], Tensor]:
        state = compiled.prefill(prompt, **chosen)

        def run() -> Tensor:
            nonlocal state
            if state.lengths[0] == given["max_length"]:
                state = compiled.prefill(prompt, **chosen)
            state = compiled.step(state, token)
            return state.logits

        return run

    past = _Past()
    model(prompt, positions=torch.arange(PROMPT).expand(rows, -1), cache=past)
    past.grows = False
    places = torch.full((rows, 1), PROMPT)

    def eager() -> Tensor:
        with by_row(model, adapters, range(rows)):
            return model(token, positions=places, cache=past)[:, -1]

    return _figures(
        {
            "no room (or merged)": steps(plain),
            "room, no adapter": steps(lm),
            "one adapter": steps(lm, adapters="0"),
            "eight adapters": steps(lm, adapters=[str(i) for i in range(rows)]),
        },
        eager,
        seconds,
    )


def batch(layers: int, seconds: float) -> list[dict[str, Any]]:
    """A batch of COUNT sequences of 128 tokens."""
    model = Encoder(replace(BERT_BASE, layers=layers)).eval()
    adapters, rows = adapters_of(model), COUNT
    ids = torch.randint(0, BERT_BASE.vocabulary, (rows, 128))
    plain = infopt.compile(model, (ids,))
    made = _loaded(infopt.compile(model, (ids,), adapters=ROOM), adapters)
    names = [str(i) for i in range(rows)]

    def eager() -> Tensor:
        with by_row(model, adapters, range(rows)):
            found: Tensor = model(ids)
        return found

    error = relative_error(eager(), made(ids, adapters=names))
    found = _figures(
        {
            "no room (or merged)": lambda: plain(ids),
            "room, no adapter": lambda: made(ids),
            "one adapter": lambda: made(ids, adapters="0"),
            "eight adapters": lambda: made(ids, adapters=names),
        },
        eager,
        seconds,
    )
    return [row | {"error": error} if row["way"] == "eight adapters" else row for row in found]


class _Past:
    """A decoder's `cache` in plain torch; `grows`: whether new keys and values are kept."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.grows = True

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if layer in self.kept:
            k, v = (torch.cat(pair, 2) for pair in zip(self.kept[layer], (k, v), strict=True))
        if self.grows:
            self.kept[layer] = k, v
        return k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
        causal = q.shape[2] > 1
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)


@contextmanager
def by_row(model: nn.Module, adapters: Sequence[Adapter], chosen: Sequence[int]) -> Iterator[None]:
    """Plain torch: the adapter of each row added to what each layer gives."""
    with ExitStack() as hooks:
        for name in {key.partition(".lora_")[0] for key in adapters[0]}:
            sides = [
                (own[f"{name}.lora_A.weight"], own[f"{name}.lora_B.weight"]) for own in adapters
            ]

            def add(_: nn.Module, given: tuple[Tensor], y: Tensor, sides: Any = sides) -> Tensor:
                for row, index in enumerate(chosen):
                    a, b = sides[index]
                    y[row] += F.linear(F.linear(given[0][row], a), b)
                return y

            hook = model.get_submodule(name).register_forward_hook(add)
            hooks.callback(hook.remove)
        yield


def _loaded(compiled: Any, adapters: Sequence[Adapter]) -> Any:
    for number, adapter in enumerate(adapters):
        compiled.adapters.load(str(number), adapter)
    return compiled


def _figures(
    arms: dict[str, Callable[[], Tensor]], eager: Callable[[], Tensor], seconds: float
) -> list[dict[str, Any]]:
    times = measure(arms, seconds, rounds=200)
    # Not in turn: torch's threads spin after a call, which only whoever came next would feel.
    times |= measure({"torch, row by row": eager}, seconds / 4, rounds=200)
    first = next(iter(times.values()))
    return [
        {
            "way": n,
            "ms": t.min * 1e3,
            "median": t.median * 1e3,
            "times the first": t.median / first.median,
        }
        for n, t in times.items()
    ]
