"""`python -m benchmarks overhead`: what one call costs beyond dynamo's guards.

The same tiny program through torch.compile's backends "eager" and "infopt" in one process, in
turns. Both evaluate the same guards, so the difference is what infopt adds (negative: its program
runs faster than torch's operators).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.table import Table
from torch import nn

from benchmarks.report import spread, wide_console, write_json
from infopt.models.encoder import Encoder, EncoderConfig

CALLS = 50


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks overhead", description=__doc__)
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args(arguments)
    rows = [measure(name, *made, options.rounds) for name, made in programs().items()]
    drawn = Table(title="microseconds of one call")
    for heading in (
        "program",
        "plain eager",
        "compiled eager",
        "compiled infopt",
        "infopt.compile",
        "added",
    ):
        drawn.add_column(heading, justify="left" if heading == "program" else "right")
    for row in rows:
        ways = ("plain", "eager", "infopt", "offline")
        drawn.add_row(
            row["program"], *(f"{row[w]['median'] * 1e6:.1f}" for w in ways), f"{row['added']:+.1f}"
        )
    console = wide_console()
    console.print(drawn)
    console.print("added: compiled infopt minus compiled eager, medians")
    if options.json:
        write_json(options.json, {"rows": rows})
    return 0


def programs() -> dict[str, tuple[nn.Module, tuple[torch.Tensor, ...]]]:
    """One operator; and a whole encoder so narrow that only calls cost time, with 200 weights to
    hand over.
    """

    class AddOne(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    torch.manual_seed(0)
    narrow = Encoder(EncoderConfig(vocabulary=64, width=16, heads=2, hidden=32, positions=16))
    return {
        "x + 1": (AddOne(), (torch.randn(16),)),
        "12 layers, width 16": (narrow.eval(), (torch.randint(0, 64, (1, 8)),)),
    }


def measure(
    program: str, model: nn.Module, inputs: tuple[torch.Tensor, ...], rounds: int
) -> dict[str, Any]:
    """Median, least and spread of every way, CALLS calls at a time in turns."""
    import infopt

    torch._dynamo.reset()
    ways: dict[str, Callable[..., Any]] = {
        "plain": model,
        "eager": torch.compile(model, backend="eager", dynamic=False),
        "infopt": torch.compile(model, backend="infopt", dynamic=False),
        "offline": infopt.compile(model, inputs),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with torch.no_grad():
        for call in ways.values():
            for _ in range(5):
                call(*inputs)
        for _ in range(rounds):
            for way, call in ways.items():
                started = time.perf_counter()
                for _ in range(CALLS):
                    call(*inputs)
                seconds[way].append((time.perf_counter() - started) / CALLS)
    row: dict[str, Any] = {way: spread(found) for way, found in seconds.items()}
    added = (row["infopt"]["median"] - row["eager"]["median"]) * 1e6
    return {"program": program, "added": added} | row
