"""`python -m benchmarks streaming`: a step of a stream against computing its past again.

A causal stack of dilated convolutions with residuals, one whose padding is on both sides,
strided convolutions with transposed ones behind them, and the decoder of an audio codec. For every
hop: a compiled step, the compiled model on the hop and the receptive field before it, and the hop's
share of one call of the compiled model on the whole signal; and what the end of the signal costs.
Called twice in turn, the second time counts, least and median of the rounds. The first two give the
same results; the stream is compared with eager on the whole signal.
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


class CodecDecoder(nn.Module):
    """The decoder of a neural audio codec (SEANet): frames [B, 128, T] -> samples [B, 1, 64 T].

    Three times a transposed convolution, causal (its last outputs are cut off), and a residual of
    two convolutions.
    """

    reach = (
        6 + 3 + 3 + 2 + 1
    )  # frames, generously: what follows the first layers sees less and less

    def __init__(self) -> None:
        super().__init__()
        widths = (256, 128, 64, 32)
        self.first = nn.Conv1d(128, widths[0], 7)
        self.up = nn.ModuleList(
            nn.ConvTranspose1d(a, b, 2 * s, s)
            for (a, b), s in zip(itertools.pairwise(widths), (4, 4, 4), strict=True)
        )
        self.narrow = nn.ModuleList(nn.Conv1d(w, w // 2, 3) for w in widths[1:])
        self.wide = nn.ModuleList(nn.Conv1d(w // 2, w, 1) for w in widths[1:])
        self.last = nn.Conv1d(widths[-1], 1, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(F.pad(x, (6, 0)))
        for up, narrow, wide in zip(self.up, self.narrow, self.wide, strict=True):
            x = up(F.elu(x))[:, :, : -up.stride[0]]
            x = x + wide(F.elu(narrow(F.pad(F.elu(x), (2, 0)))))
        return self.last(F.pad(F.elu(x), (6, 0)))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "dilated, causal": lambda: Dilated(True),
    "dilated, both sides": lambda: Dilated(False),
    "down and up": Autoencoder,
    "codec decoder": CodecDecoder,
}
# channels of the signal, its length, hops: samples, or frames of a codec
SIGNALS = {"codec decoder": (128, 1024, (1, 4, 16))}


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
        for hop in SIGNALS.get(name, (1, SIGNAL, HOPS))[2]:
            rows.append({"model": name, "hop": hop, **measured(name, model, hop, options.rounds)})
    console.print(table(rows))
    if options.json:
        write_json(options.json, {"rows": rows})
    return 0


def measured(name: str, model: Any, hop: int, rounds: int) -> dict[str, float]:
    """Milliseconds of one hop in each way and of the end, and how far the stream is from eager."""
    channels, length, _ = SIGNALS.get(name, (1, SIGNAL, HOPS))
    signal = torch.randn(1, channels, length)
    stream = infopt.compile_stream(model, signal[:, :, : max(length // 8, 2 * hop)], hop=hop)
    error = (stream.run(signal) - model(signal)).abs().max().item()
    window = signal[:, :, : -(-(model.reach + hop) // 8) * 8].contiguous()
    again, whole = infopt.compile(model, (window,)), infopt.compile(model, (signal,))
    part, state = signal[:, :, :hop].contiguous(), stream.start()

    def step() -> None:
        nonlocal state
        _, state = stream.step(part, state)

    ways: dict[str, Callable[[], Any]] = {
        "step": step,
        "again": lambda: again(window),
        "whole": lambda: whole(signal),
        "finish": lambda: stream.finish(state.copy()),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 2):
        for way, call in ways.items():
            call()  # the one before has filled the caches with its own
            start = time.perf_counter()
            call()
            if number >= 2:
                times[way].append(1e3 * (time.perf_counter() - start))
    row = {"delay": float(stream.delay), "error": error, "state": float(stream.spec.state_bytes)}
    share = {"step": 1.0, "again": 1.0, "whole": hop / length, "finish": 1.0}
    for way, spent in times.items():
        row |= {
            f"{way}_ms": min(spent) * share[way],
            f"{way}_median_ms": median(spent) * share[way],
        }
    return row


def table(rows: list[dict[str, Any]]) -> Table:
    names = ("step ms", "past again ms", "share of whole ms", "finish ms")
    made = Table("model", "hop", "delay", *names, "error")
    for row in rows:
        times = [f"{row[f'{way}_median_ms']:.3f}" for way in ("step", "again", "whole", "finish")]
        made.add_row(
            row["model"], str(row["hop"]), f"{row['delay']:.0f}", *times, f"{row['error']:.1e}"
        )
    return made
