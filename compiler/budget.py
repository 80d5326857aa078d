"""What a user allows compression to cost, and what it shall buy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from infopt.compiler.accuracy import compare
from infopt.compiler.errors import BadOption

OBJECTIVES = ("latency", "memory", "size")
TECHNIQUES = ("prune", "tokens", "sparse_activations", "kv")
NOTICED = 0.95  # of a time: with less between two, what is measured last may seem faster
Metric = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], float]


@dataclass(frozen=True)
class Budget:
    """Formats are chosen layer by layer so that the objective is least and the limits hold.

    max_error   the largest error of the compiled model, end to end, on the samples
    objective   "latency": seconds of a call, measured on the target if it is this machine.
                "memory" or "size": bytes of the weights, in memory or in an artifact
    max_memory  None, or bytes that the weights may occupy; with the technique "kv" and another
                objective than "size", weights and cache together
    samples     further example inputs, tuples of arguments like `args` of infopt.compile; the
                more they resemble what comes later, the more the limit is worth
    metric      metric(expected, found) -> error, of the model's flat results; None: the relative
                RMS error, the worst result of the worst sample
    formats, activations  what may be chosen from; tables and remainders are only looked for where
                no format of more bits costs as little. With calibration inputs, columns of what
                becomes bytes are smoothed, as the option activations does
    ranks       the ranks of thin factors that may be chosen for layers, as the option low_rank
                names them: shares, or "energy-0.99". "auto": what keeps 99.99, 99.9, 99 and 95 % of
                the outputs' power where there are calibration inputs, else none. () for none
    techniques  what may be done to the whole model beside, named as the options that do it by hand:
                of "prune", "tokens", "sparse_activations" and "kv", or "all". They change what a
                model computes more than formats do (embeddings of fewer tokens are others), so ()
                is the default. "kv" is the format of the cache of infopt.compile_causal_lm, which
                then counts where memory does; elsewhere "all" leaves it out, and named alone it
                raises BadOption
    """

    max_error: float
    objective: str = "latency"
    max_memory: int | None = None
    samples: tuple[tuple[Any, ...], ...] = ()
    metric: Metric | None = None
    formats: tuple[str, ...] = ("int8", "int4-g32", "int4-g128", "lut4-g128")
    activations: tuple[str, ...] = ("none", "int8")
    ranks: str | tuple[float | str, ...] = "auto"
    techniques: str | tuple[str, ...] = ()

    def __post_init__(self) -> None:
        error = self.max_error
        if isinstance(error, bool) or not isinstance(error, int | float) or not error > 0:
            raise BadOption(f"max_error: a budget needs a number above 0, found {error!r}")
        if self.objective not in OBJECTIVES:
            expected = ", ".join(OBJECTIVES)
            raise BadOption(f"objective: expected one of {expected}, found {self.objective!r}")
        if self.max_memory is not None and (
            not isinstance(self.max_memory, int) or self.max_memory <= 0
        ):
            raise BadOption(f"max_memory: expected bytes or None, found {self.max_memory!r}")
        if self.ranks != "auto" and not isinstance(self.ranks, tuple):
            raise BadOption(f"ranks: expected 'auto' or a tuple of ranks, found {self.ranks!r}")
        if self.techniques == "all":
            object.__setattr__(self, "techniques", TECHNIQUES)
        named = self.techniques
        if not isinstance(named, tuple) or any(name not in TECHNIQUES for name in named):
            known = ", ".join(TECHNIQUES)
            raise BadOption(f"techniques: expected 'all' or a tuple of {known}, found {named!r}")

    def error(self, expected: Sequence[Any], found: Sequence[Any]) -> float:
        """The error of one sample's flat results in the budget's metric."""
        pairs = [
            (e, f)
            for e, f in zip(expected, found, strict=True)
            if isinstance(e, torch.Tensor) and e.is_floating_point()
        ]
        if self.metric is not None:
            return float(self.metric([e for e, _ in pairs], [f for _, f in pairs]))
        return max((compare(e, f).rms_rel for e, f in pairs), default=0.0)

    def worst(self, expected: Sequence[Sequence[Any]], found: Sequence[Sequence[Any]]) -> float:
        """The error of the worst sample."""
        return max(self.error(e, f) for e, f in zip(expected, found, strict=True))
