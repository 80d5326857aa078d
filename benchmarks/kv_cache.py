"""`python -m benchmarks kv_cache`: a decoder's step by layout and policy of its cache.

The 0.34B shape with few layers and a small vocabulary, so that the cache is most of what is read;
the cache's contents are random, so that no prompt is computed: speed only. All layouts are alive at
once and step in turns.
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
from infopt.models.decoder import DECODER_340M, Decoder
from infopt.runtime.decoding.pages import PagedMemory

KINDS: dict[str, Any] = {
    "same": None,
    "paged": infopt.KV(page=16),
    "int8": infopt.KV("int8"),
    "int4": infopt.KV("int4"),
    "quest": infopt.kv.Quest(pages=64, dense=0),
}


@torch.no_grad()
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks kv_cache", description=__doc__)
    parser.add_argument("--kinds", default=",".join(KINDS), help="layouts and policies")
    parser.add_argument("--contexts", default="4096,16384", help="tokens in the cache")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    config = replace(DECODER_340M, layers=options.layers, vocabulary=1024)
    model = Decoder(config).to(torch.bfloat16).eval()
    rows = []
    for context in map(int, options.contexts.split(",")):
        models = {
            kind: infopt.compile_causal_lm(
                model, max_length=context + 64, kv=KINDS[kind], threads=options.threads
            )
            for kind in options.kinds.split(",")
        }
        states = {kind: filled(lm, context) for kind, lm in models.items()}
        times: dict[str, list[float]] = {kind: [] for kind in models}
        for round in range(options.rounds + 2):  # the first two warm up
            for kind, lm in models.items():
                start = time.perf_counter()
                states[kind] = lm.step(states[kind], 1)
                if round > 1:
                    times[kind].append(time.perf_counter() - start)
        for kind, spent in times.items():
            size = states[kind].bytes
            rows.append({"kind": kind, "context": context, "cache": size, "step": spread(spent)})
    drawn = Table(title=f"one step, {options.layers} layers of the 0.34B shape, batch 1")
    for heading in ("cache", "context", "MiB kept", "step ms", "min"):
        drawn.add_column(heading)
    for row in rows:
        step = row["step"]
        numbers = f"{step['median'] * 1e3:.2f}", f"{step['min'] * 1e3:.2f}"
        drawn.add_row(row["kind"], str(row["context"]), f"{row['cache'] / 2**20:.0f}", *numbers)
    wide_console().print(drawn)
    if options.json:
        write_json(options.json, {"rows": rows})
    return 0


def filled(lm: infopt.CausalLM, context: int) -> infopt.State:
    """A state of so many tokens whose cache is random numbers, or small codes."""
    state = lm.prefill([1])
    for store in state.stores:
        if store.is_floating_point():
            store.normal_()
        else:
            store.random_(40, 60)  # as factors, too, these are usual numbers
    memory = state.take()
    if isinstance(memory, PagedMemory):
        memory.make_room(torch.tensor([1]), torch.tensor([context - 1]))
    return infopt.State(memory, (context,), torch.tensor([context]), state.logits)
