"""`python -m benchmarks streaming`: a step of a stream against computing its past again.

A causal stack of dilated convolutions with residuals, one whose padding is on both sides, and
strided convolutions with transposed ones behind them. For every hop: a compiled step, the compiled
model on the hop and the receptive field before it, and the hop's share of one call of the compiled
model on the whole signal; called twice in turn, the second time counts, least and median of the
rounds. The first two give the same results; the stream is compared with eager on the whole signal.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

import infopt
from benchmarks.report import wide_console, write_json

HOPS = (16, 64, 256)
SIGNAL = 16384  # samples
CHANNELS = 64


class Dilated(nn.Module):
    """1 -> 64 channels, eight blocks x + relu(conv(x)) of dilation 1 ... 128, 64 -> 1."""

    reach = 2 * 255  # samples of the past, of both sides together, that a result depends on

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.first, self.last = nn.Conv1d(1, CHANNELS, 1), nn.Conv1d(CHANNELS, 1, 1)
        self.convs = nn.ModuleList(
            nn.Conv1d(CHANNELS, CHANNELS, 3, dilation=2**i, padding=0 if causal else 2**i)
            for i in range(8)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for conv in self.convs:
            given = F.pad(x, (2 * conv.dilation[0], 0)) if self.causal else x
            x = x + F.relu(conv(given))
        return self.last(x)


class Autoencoder(nn.Module):
    """Three strided convolutions, six residual ones of dilation 1, 3, 9, three transposed ones."""

    reach = 8 * 2 * (1 + 3 + 9) * 2 + 64

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 32, 64, CHANNELS)
        pairs = list(itertools.pairwise(widths))
        self.down = nn.ModuleList(nn.Conv1d(a, b, 4, 2, 1) for a, b in pairs)
        self.within = nn.ModuleList(
            nn.Conv1d(CHANNELS, CHANNELS, 3, dilation=d, padding=d) for d in (1, 3, 9, 1, 3, 9)
        )
        self.up = nn.ModuleList(nn.ConvTranspose1d(b, a, 4, 2, 1) for a, b in reversed(pairs))

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.down:
            x = F.gelu(conv(x))
        for conv in self.within:
            x = x + F.gelu(conv(x))
        for conv in self.up:
            x = conv(F.gelu(x))
        return x


MODELS: dict[str, Callable[[], nn.Module]] = {
    "dilated, causal": lambda: Dilated(True),
    "dilated, both sides": lambda: Dilated(False),
    "down and up": Autoencoder,
}


@torch.no_grad()
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks streaming", description=__doc__)
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--only", choices=[*MODELS], help="one of the models")
    parser.add_argument("--rounds", type=int, default=30, help="timed calls of every way")
    options = parser.parse_args(arguments)
    console, rows = wide_console(), []
    for name in [options.only] if options.only else MODELS:
        torch.manual_seed(0)
        model = MODELS[name]().eval()
        for hop in HOPS:
            rows.append({"model": name, "hop": hop, **measured(model, hop, options.rounds)})
    console.print(table(rows))
    if options.json:
        write_json(options.json, {"rows": rows})
    return 0


def measured(model: Any, hop: int, rounds: int) -> dict[str, float]:
    """One hop's milliseconds in each way, and how far the stream is from eager."""
    signal = torch.randn(1, 1, SIGNAL)
    stream = infopt.compile_stream(model, signal[:, :, : max(2048, 2 * hop)], hop=hop)
    found = stream.run(signal)
    error = (found - model(signal)[:, :, : found.shape[2]]).abs().max().item()
    window = signal[:, :, : -(-(model.reach + hop) // 8) * 8].contiguous()
    again, whole = infopt.compile(model, (window,)), infopt.compile(model, (signal,))
    part, state = signal[:, :, :hop].contiguous(), stream.start()

    def step() -> None:
        nonlocal state
        _, state = stream.step(part, state)

    ways = {"step": step, "again": lambda: again(window), "whole": lambda: whole(signal)}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 2):
        for way, call in ways.items():
            call()  # the one before has filled the caches with its own
            start = time.perf_counter()
            call()
            if number >= 2:
                times[way].append(1e3 * (time.perf_counter() - start))
    row = {"delay": float(stream.delay), "error": error, "state": float(stream.spec.state_bytes)}
    share = {"step": 1.0, "again": 1.0, "whole": hop / SIGNAL}
    for way, spent in times.items():
        row |= {
            f"{way}_ms": min(spent) * share[way],
            f"{way}_median_ms": median(spent) * share[way],
        }
    return row


def table(rows: list[dict[str, Any]]) -> Table:
    made = Table("model", "hop", "delay", "step ms", "past again ms", "share of whole ms", "error")
    for row in rows:
        times = [f"{row[f'{way}_median_ms']:.3f}" for way in ("step", "again", "whole")]
        made.add_row(
            row["model"], str(row["hop"]), f"{row['delay']:.0f}", *times, f"{row['error']:.1e}"
        )
    return made
