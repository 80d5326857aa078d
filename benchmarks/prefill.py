"""`python -m benchmarks prefill`: a long prompt read whole, and in parts that keep a limit.

The 0.34B decoder of `benchmarks decode` with random weights in fp32, of which --layers layers are
enough: all have the same activations, one after the other. Memory is what the plan needs beside
inputs, weights, results and the cache; parts may use --share of it. Bits are compared.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import torch
from rich.table import Table

import infopt
from benchmarks.report import spread, wide_console, write_json
from infopt.compiler.decoding.prompt_parts import bytes_of_part
from infopt.models.decoder import DECODER_340M, Decoder


@torch.no_grad()
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks prefill", description=__doc__)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--share", type=float, default=0.4)
    parser.add_argument("--rounds", type=int, default=5, help="timed calls; 0: memory alone")
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args(arguments)
    rows = measured(options.layers, options.tokens, options.share, options.rounds)
    wide_console().print(table(rows))
    if options.json:
        found = {"rows": rows, "layers": options.layers, "tokens": options.tokens}
        write_json(options.json, found)
    return 0


def measured(layers: int, tokens: int, share: float, rounds: int) -> list[dict[str, Any]]:
    """The prompt whole and in parts, in turn."""
    torch.manual_seed(0)
    model = Decoder(replace(DECODER_340M, layers=layers)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.02)
    whole = infopt.compile_causal_lm(model, max_length=tokens)
    most = needed(whole, tokens)
    lean = infopt.compile_causal_lm(model, max_length=tokens, max_activations=int(share * most))
    arms = {"whole": whole, "in parts": lean}
    ids = torch.randint(0, DECODER_340M.vocabulary, (1, tokens))
    times: dict[str, list[float]] = {name: [] for name in arms}
    logits = {}
    for turn in range(rounds + 1 if rounds else 0):
        for name, lm in arms.items():
            start = time.perf_counter()
            logits[name] = lm.prefill(ids).logits
            if turn:  # the first finds cold memory
                times[name].append(time.perf_counter() - start)
    same = torch.equal(logits["whole"], logits["in parts"]) if rounds else None
    rows = []
    for name, lm in arms.items():
        part = lm.spec.chunk or tokens
        row = {"way": name, "part": part, "bytes": needed(lm, part), "same bits": same}
        timed = spread(times[name]) if rounds else {}
        rows.append(row | {"of whole": row["bytes"] / most} | timed)
    return rows


def needed(lm: infopt.CausalLM, tokens: int) -> int:
    return bytes_of_part(tokens, lm.program._built.lowered.plan, lm.spec)


def table(rows: list[dict[str, Any]]) -> Table:
    drawn = Table(title="A prompt whole and in parts")
    headings = ("way", "tokens at a time", "MiB", "of whole", "same bits", "median s", "least s")
    for heading in headings:
        drawn.add_column(heading, justify="left" if heading == "way" else "right")
    for row in rows:
        size = f"{row['bytes'] / 2**20:.1f}", f"{row['of whole']:.0%}", str(row["same bits"])
        taken = [f"{row[n]:.2f}" if n in row else "" for n in ("median", "min")]
        drawn.add_row(row["way"], str(row["part"]), *size, *taken)
    return drawn
