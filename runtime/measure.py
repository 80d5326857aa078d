"""Timing that can be compared: the candidates take turns, so a busy moment hits all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Timing:
    """Seconds of one call. spread: the middle half of the samples over the median."""

    median: float
    min: float
    spread: float
    samples: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    candidates: Mapping[str, Callable[[], object]],
    seconds: float = 0.5,
    rounds: int = 9,
    min_sample: float = 2e-4,
) -> dict[str, Timing]:
    """Time every candidate over interleaved rounds; about `seconds` in all, at least 3 rounds.

    Each candidate runs once untimed first. One sample repeats the call until it takes about
    `min_sample` seconds; the order of the candidates turns with every round.
    """
    repeats = {}
    for name, call in candidates.items():
        call()
        once = _sample(call, 1)
        repeats[name] = max(1, min(10_000, round(min_sample / max(once, 1e-9))))
    names, samples = list(candidates), {name: list[float]() for name in candidates}
    begin = time.perf_counter()
    for turn in range(rounds):
        if turn >= 3 and time.perf_counter() - begin > seconds:
            break
        shift = turn % len(names) if names else 0
        for name in names[shift:] + names[:shift]:
            samples[name].append(_sample(candidates[name], repeats[name]))
    return {name: summarise(values) for name, values in samples.items()}


def summarise(samples: list[float]) -> Timing:
    """Median, minimum and spread of samples in seconds."""
    median = statistics.median(samples)
    low, high = min(samples), max(samples)
    if len(samples) >= 4:
        low, _, high = statistics.quantiles(samples, n=4)
    return Timing(median, min(samples), (high - low) / median if median else 0.0, len(samples))


def _sample(call: Callable[[], object], repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) / repeats
