"""Times of several arms, taken in turn so that a busy machine disturbs all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

SPREAD_OF = 0.25  # the share of calls left out at each end


@dataclass(frozen=True)
class Timing:
    """Seconds per call. spread: between the quartiles, as a share of the median."""

    median: float
    fastest: float
    spread: float
    calls: int

    @staticmethod
    def of(seconds: list[float]) -> "Timing":
        """The summary of at least one measured call."""
        ordered = sorted(seconds)
        median = statistics.median(ordered)
        edge = int(len(ordered) * SPREAD_OF)
        spread = (ordered[-1 - edge] - ordered[edge]) / median if median else 0.0
        return Timing(median, ordered[0], spread, len(ordered))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def time_call(call: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved(
    arms: Mapping[str, Callable[[], Any]],
    seconds: float,
    advance: Callable[[float], None] = lambda share: None,
    least: int = 5,
) -> dict[str, Timing]:
    """Call the arms one after the other, round after round, for about `seconds`.

    At least `least` rounds, after one that does not count. `advance` hears the share done.
    """
    for call in arms.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in arms}
    start = time.perf_counter()
    rounds = 0
    while rounds < least or time.perf_counter() - start < seconds:
        for name, call in arms.items():
            taken[name].append(time_call(call))
        rounds += 1
        advance(min(rounds / least, (time.perf_counter() - start) / seconds, 1.0))
    return {name: Timing.of(values) for name, values in taken.items()}
