"""The options of both front doors, validated strictly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from infopt.compiler.errors import BadOption
from infopt.compiler.pipeline import Pass
from infopt.passes.named import named_pass

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@dataclass(frozen=True)
class Options:
    """What a user may ask for.

    compute    None: every op in its own dtype. "bf16": permission to compute an fp32 model in bf16
    passes     the passes to run, in order: objects, or names as in infopt.passes.named; None for
               infopt.default_passes()
    tune       how much measuring may choose kernels: 0 none, 1 quick, 2 thorough. So far a kernel
               has one schedule, so there is nothing to choose from
    strict     raise FallbackRefused where any part could only run as torch runs it
    threads    how many threads a call may use, None for torch.get_num_threads()
    max_error  the largest end-to-end relative error (RMS, on the example inputs) that lossy choices
               may add; beyond it ContractBroken is raised. None: only each pass's own contract
    batch_invariant  a row's result is bitwise the same in whatever batch it is: kernels that sum
               in an order of their own for few rows are left out. What torch runs is not covered;
               the report notes it
    """

    compute: str | None = None
    passes: tuple[Pass, ...] | None = None
    tune: int = 0
    strict: bool = False
    threads: int | None = None
    max_error: float | None = None
    batch_invariant: bool = False

    def __post_init__(self) -> None:
        if self.compute not in (None, "bf16"):
            raise BadOption(f"compute: expected None or 'bf16', found {self.compute!r}")
        if self.passes is not None:
            object.__setattr__(self, "passes", _passes(self.passes))
        if isinstance(self.tune, bool) or self.tune not in (0, 1, 2):
            raise BadOption(f"tune: expected 0, 1 or 2, found {self.tune!r}")
        for name in ("strict", "batch_invariant"):
            if not isinstance(getattr(self, name), bool):
                found = getattr(self, name)
                raise BadOption(f"{name}: expected True or False, found {found!r}")
        if self.threads is not None and (
            not isinstance(self.threads, int) or isinstance(self.threads, bool) or self.threads < 1
        ):
            raise BadOption(f"threads: expected a positive int or None, found {self.threads!r}")
        if self.max_error is not None and not (
            isinstance(self.max_error, int | float) and 0 <= self.max_error < 1
        ):
            raise BadOption(
                f"max_error: expected a number in [0, 1) or None, found {self.max_error!r}"
            )

    @classmethod
    def parse(cls, options: Mapping[str, Any] | None = None, mode: str | None = None) -> Options:
        """From what torch.compile or infopt.compile were given.

        mode: one of torch's names; max-autotune means tune=2 where tune is not given.
        Raises BadOption that lists the known options or modes.
        """
        known = [f.name for f in fields(cls)]
        given = dict(options or {})
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise BadOption(
                f"unknown option {', '.join(unknown)}; known options are {', '.join(known)}"
            )
        parsed = cls(**given)
        if mode is None:
            return parsed
        if mode not in MODES:
            raise BadOption(f"unknown mode {mode!r}; known modes are {', '.join(MODES)}")
        if mode.startswith("max-autotune") and "tune" not in given:
            parsed = replace(parsed, tune=2)
        return parsed


def _passes(value: Sequence[Pass | str]) -> tuple[Pass, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(p, Pass | str) for p in value):
        raise BadOption(
            "passes: expected a list of passes or names of passes, as "
            f"infopt.default_passes(add=[...]) gives; found {value!r}"
        )
    return tuple(named_pass(p) if isinstance(p, str) else p for p in value)
