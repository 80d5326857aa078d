"""The options of both front doors, validated strictly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from infopt.compiler.adapters import Adapters
from infopt.compiler.budget import Budget
from infopt.compiler.errors import BadOption
from infopt.compiler.pipeline import Pass
from infopt.compiler.tokens import Tokens
from infopt.passes.factor_low_rank import Ranks, layer_ranks
from infopt.passes.named import named_pass
from infopt.passes.prune_structures import PruneStructures
from infopt.passes.quantize_weights import NEEDS_CALIBRATION, Formats, weight_formats
from infopt.passes.slice_runs import SliceRuns
from infopt.passes.sparse_activations import SparseActivations
from infopt.passes.sparsify_groups import SparsifyGroups

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@dataclass(frozen=True)
class Options:
    """What a user may ask for.

    compute    None: every op in its own dtype. "bf16": permission to compute an fp32 model in bf16
    weights    None, or the format that constant weights of linear layers and tables of embeddings
               are stored in: "int8", "int4-g32" and others (codegen/weight_formats/), or a dict of
               patterns of their names to formats, {"lm_head*": "none", "*": "int4-g128"}; the
               first that matches counts
    activations  None, or "int8": what such layers read is rounded to bytes, row by row;
               "int8-static": the same, but what one layer makes for another alone has one range for
               all rows, found on calibration inputs
    low_rank   None, or the rank of the two thin factors that constant weights of linear layers
               and convolutions become: a share of the full rank, "energy-0.99" for the least rank
               that keeps such a share of the outputs' power, or a dict of patterns of their names
               to those and "none". What does not pay stays as it is. weights and compute apply to
               the factors
    passes     the passes to run, in order: objects, or names as in infopt.passes.named; None for
               infopt.default_passes()
    tune       how much measuring may choose kernels' schedules: 0 none, 1 quick, 2 thorough; None:
               what INFOPT_TUNE says. What was measured once is kept (codegen/schedules.py) and
               used whatever this is. Results on CPUs do not depend on it; on GPUs other
               schedules sum in other orders, see docs/gpu.md
    strict     raise FallbackRefused where any part could only run as torch runs it
    threads    how many threads a call may use, None for torch.get_num_threads()
    max_error  the largest end-to-end relative error (RMS, on the example inputs) that lossy choices
               may add; beyond it ContractBroken is raised. None: only each pass's own contract
    objective  None, or what to make least within max_error by choosing each layer's format:
               "latency", "memory" or "size" (compiler/budget.py)
    max_memory bytes that weights may occupy, for an objective
    budget     the same as an object, infopt.Budget, with samples, a metric and formats of your own
    max_activations  None, or bytes that a call may use beside inputs, weights and results, scratch
               of threads aside: runs of ops are computed slice by slice until it is enough, at the
               least estimated cost. UnreachableBudget says what is possible. Sizes must be fixed,
               but for infopt.compile_causal_lm, which reads prompts in parts
    calibration  None, or inputs like those the model will see, tuples of arguments: integers of
               stored weights are then chosen for them together, not each for itself, and so
               are factors (codegen/factoring.py); pruning needs them. Only
               infopt.compile and infopt.compile_causal_lm take it. Errors are measured on the
               example inputs
    tokens     None, or infopt.Tokens(keep=0.5, ...): later layers merge or drop that many tokens
    sparse_activations  None, or a share: of what a linear layer with constant weights reads, that
               share of places stays in every row, the others count as 0, and steps of few tokens
               read no weights for them. What does not pay stays as it is
    prune      None, or a share: so much of the weights of feed-forward parts, attention heads and
               inner channels of convolutions goes, where what is made there hardly varies over
               the calibration inputs, and its mean goes into biases. Layers become smaller; what
               does not pay stays as it is
    group_sparsity  None, or a share: so many of the small groups of weights of constant linear
               layers go, chosen and the others fitted by the calibration inputs where there are
               some; or "zeros": groups that are zero already are skipped. What does not pay stays
               as it is
    adapters   None, or infopt.Adapters(rank=16, slots=8, layers="*q_proj,*v_proj"): those linear
               layers get room for low-rank adapters, that are loaded later and chosen row by row.
               Only infopt.compile and infopt.compile_causal_lm take it
    batch_invariant  a row's result is bitwise the same in whatever batch it is: kernels that sum
               in an order of their own for few rows are left out. What torch runs is not covered;
               the report notes it
    cuda_graphs  on a GPU, capture a run whose sizes came before and replay it from then on; what
               torch.compile's mode="reduce-overhead" asks for
    """

    compute: str | None = None
    weights: Formats | str | Mapping[str, str] | None = None
    activations: str | None = None
    low_rank: Ranks | float | str | Mapping[str, float | str] | None = None
    passes: tuple[Pass, ...] | None = None
    tune: int | None = None
    strict: bool = False
    threads: int | None = None
    max_error: float | None = None
    objective: str | None = None
    max_memory: int | None = None
    budget: Budget | None = None
    max_activations: int | None = None
    calibration: tuple[tuple[Any, ...], ...] | None = None
    tokens: Tokens | None = None
    sparse_activations: float | None = None
    prune: float | None = None
    group_sparsity: float | str | None = None
    adapters: Adapters | None = None
    batch_invariant: bool = False
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        if self.compute not in (None, "bf16"):
            raise BadOption(f"compute: expected None or 'bf16', found {self.compute!r}")
        if self.weights is not None:
            object.__setattr__(self, "weights", weight_formats(self.weights))
        if self.activations not in (None, "int8", "int8-static"):
            raise BadOption(
                f"activations: expected None, 'int8' or 'int8-static', found {self.activations!r}"
            )
        if self.activations is not None and self.weights is None:
            raise BadOption(
                f"activations={self.activations!r} is for layers with weights in few bits: "
                "give weights too, such as weights='int8'"
            )
        if self.activations == "int8-static" and self.calibration is None:
            raise BadOption(NEEDS_CALIBRATION)
        if self.low_rank is not None:
            object.__setattr__(self, "low_rank", layer_ranks(self.low_rank))
        if self.max_activations is not None:
            SliceRuns(self.max_activations)
        if self.tokens is not None and not isinstance(self.tokens, Tokens):
            raise BadOption(f"tokens: expected an infopt.Tokens, found {self.tokens!r}")
        if self.sparse_activations is not None:
            SparseActivations(self.sparse_activations)
        if self.prune is not None:
            PruneStructures(self.prune)
        if self.group_sparsity is not None:
            SparsifyGroups(self.group_sparsity)
        if self.adapters is not None and not isinstance(self.adapters, Adapters):
            raise BadOption(f"adapters: expected an infopt.Adapters, found {self.adapters!r}")
        if self.passes is not None:
            self._refuse_beside_passes(
                *("compute", "weights", "activations", "low_rank", "max_activations", "tokens"),
                *("sparse_activations", "prune", "group_sparsity", "adapters"),
            )
            object.__setattr__(self, "passes", _passes(self.passes))
        if isinstance(self.tune, bool) or self.tune not in (None, 0, 1, 2):
            raise BadOption(f"tune: expected 0, 1 or 2, found {self.tune!r}")
        for name in ("strict", "batch_invariant", "cuda_graphs"):
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

        object.__setattr__(self, "budget", self._checked_budget())
        for name in ("objective", "max_memory"):  # the budget has them, and copies would ask twice
            object.__setattr__(self, name, None)
        if self.calibration is not None:
            object.__setattr__(self, "calibration", self._checked_calibration())

    @property
    def changes_weights(self) -> bool:
        """True where weights may be stored in another format, as factors, turned, or cut."""
        return self.budget is not None or self._names_a_change

    @property
    def _names_a_change(self) -> bool:
        asked = (self.weights, self.low_rank, self.sparse_activations, self.prune)
        return any(option is not None for option in (*asked, self.group_sparsity))

    def beside_budget(self) -> Options:
        """What is asked for without a budget and its limit, where another program is made too."""
        calibrated = self._names_a_change or self.passes is not None
        seen = self.calibration if calibrated else None
        return replace(self, budget=None, max_error=None, calibration=seen)

    @property
    def is_lossy(self) -> bool:
        """True where passes may run whose error is measured."""
        asked = (self.compute, self.passes, self.max_error, self.tokens)
        return self.changes_weights or any(option is not None for option in asked)

    def _checked_budget(self) -> Budget | None:
        """`budget`, or what objective, max_error and max_memory make one."""
        if self.budget is not None and not isinstance(self.budget, Budget):
            raise BadOption(f"budget: expected an infopt.Budget, found {self.budget!r}")
        if self.objective is None and self.max_memory is not None:
            raise BadOption("max_memory is the limit of a budget: give an objective too")
        if self.objective is not None:
            if self.budget is not None or self.max_error is None:
                raise BadOption("objective needs max_error, and replaces budget")
            made: Budget | None = Budget(self.max_error, self.objective, self.max_memory)
        else:
            made = self.budget
        if made is not None:
            if self.weights is not None:
                raise BadOption("weights names formats and a budget chooses them: give one")
            if self.passes is not None:
                raise BadOption("passes lists passes and a budget adds one: give one of the two")
            for name in made.techniques:
                if getattr(self, name, None) is not None:
                    raise BadOption(f"{name} names a share and the budget chooses one: give one")
        return made

    def _checked_calibration(self) -> tuple[tuple[Any, ...], ...]:
        given = self.calibration
        if not isinstance(given, list | tuple) or not given:
            raise BadOption(f"calibration: expected a list of tuples of inputs, found {given!r}")
        for index, inputs in enumerate(given):
            if not isinstance(inputs, tuple):
                kind = type(inputs).__name__
                raise BadOption(f"calibration[{index}]: expected a tuple of inputs, found {kind}")
        if not self.changes_weights and self.passes is None:
            raise BadOption(
                "calibration is for weights stored in few bits, as factors or cut: give weights, "
                "low_rank, prune, group_sparsity or a budget too"
            )
        return tuple(given)

    def _refuse_beside_passes(self, *names: str) -> None:
        given = [name for name in names if getattr(self, name) is not None]
        if given:
            raise BadOption(
                f"{', '.join(given)} chooses passes, and passes lists them: give one of the two, "
                f"or passes=infopt.default_passes(..., {given[0]}={getattr(self, given[0])!r})"
            )

    @classmethod
    def parse(cls, options: Mapping[str, Any] | None = None, mode: str | None = None) -> Options:
        """From what torch.compile or infopt.compile were given.

        mode: one of torch's names; max-autotune means tune=2 where tune is not given, and
        reduce-overhead cuda_graphs=True.
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
        if mode == "reduce-overhead" and "cuda_graphs" not in given:
            parsed = replace(parsed, cuda_graphs=True)
        return parsed


def _passes(value: Sequence[Pass | str]) -> tuple[Pass, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(p, Pass | str) for p in value):
        raise BadOption(
            "passes: expected a list of passes or names of passes, as "
            f"infopt.default_passes(add=[...]) gives; found {value!r}"
        )
    return tuple(named_pass(p) if isinstance(p, str) else p for p in value)
