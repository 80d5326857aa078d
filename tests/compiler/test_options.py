"""Options: what each refuses and how it says so, what it sets, and which ones change a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import infopt
from infopt.compiler.errors import BadOption
from infopt.compiler.options import Options

SAMPLE = [(torch.zeros(2),)]
BUDGET = infopt.Budget(0.01)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "compute": ({"compute": "f16"}, "compute: expected None or 'bf16', found 'f16'"),
    "activations": (
        {"weights": "int8", "activations": "int4"},
        "activations: expected None, 'int8' or 'int8-static', found 'int4'",
    ),
    "activations alone": (
        {"activations": "int8"},
        "activations='int8' is for layers with weights in few bits: give weights too",
    ),
    "static without examples": (
        {"weights": "int8", "activations": "int8-static"},
        "calibration",
    ),
    "max_activations": ({"max_activations": 0}, "max_activations"),
    "tokens": ({"tokens": 0.5}, "tokens: expected an infopt.Tokens, found 0.5"),
    "sparse_activations": ({"sparse_activations": 2.0}, "sparse_activations"),
    "prune": ({"prune": 2.0}, "prune"),
    "group_sparsity": ({"group_sparsity": 1.0}, "group_sparsity: expected a share between 0 and 1"),
    "group_sparsity, a text": ({"group_sparsity": "half"}, "or 'zeros', found 'half'"),
    "passes": ({"passes": "canonicalize"}, "passes: expected a list of passes or names of passes"),
    "passes of numbers": ({"passes": [3]}, "passes: expected a list of passes or names of passes"),
    "tune": ({"tune": 3}, "tune: expected 0, 1 or 2, found 3"),
    "tune, a bool": ({"tune": True}, "tune: expected 0, 1 or 2, found True"),
    "strict": ({"strict": 1}, "strict: expected True or False, found 1"),
    "batch_invariant": ({"batch_invariant": None}, "batch_invariant: expected True or False"),
    "cuda_graphs": ({"cuda_graphs": "yes"}, "cuda_graphs: expected True or False, found 'yes'"),
    "threads": ({"threads": 0}, "threads: expected a positive int or None, found 0"),
    "threads, a bool": ({"threads": True}, "threads: expected a positive int or None, found True"),
    "threads, a float": ({"threads": 2.0}, "threads: expected a positive int or None, found 2.0"),
    "max_error of 1": ({"max_error": 1}, "max_error: expected a number in [0, 1) or None, found 1"),
    "max_error below 0": ({"max_error": -0.1}, "max_error: expected a number in [0, 1)"),
    "max_error, a text": ({"max_error": "small"}, "max_error: expected a number in [0, 1)"),
    "budget": ({"budget": 0.01}, "budget: expected an infopt.Budget, found 0.01"),
    "max_memory alone": ({"max_memory": 1 << 20}, "max_memory is the limit of a budget"),
    "objective alone": ({"objective": "time"}, "objective needs max_error, and replaces budget"),
    "objective and budget": (
        {"objective": "time", "max_error": 0.01, "budget": BUDGET},
        "objective needs max_error, and replaces budget",
    ),
    "budget and weights": (
        {"budget": BUDGET, "weights": "int8"},
        "weights names formats and a budget chooses them: give one",
    ),
    "budget and passes": (
        {"budget": BUDGET, "passes": []},
        "passes lists passes and a budget adds one: give one of the two",
    ),
    "budget and prune": (
        {"budget": infopt.Budget(0.01, techniques="all"), "prune": 0.2},
        "prune names a share and the budget chooses one: give one",
    ),
    "calibration, a tensor": (
        {"weights": "int8", "calibration": torch.zeros(2)},
        "calibration: expected a list of tuples of inputs",
    ),
    "calibration, empty": (
        {"weights": "int8", "calibration": []},
        "calibration: expected a list of tuples of inputs, found []",
    ),
    "calibration of tensors": (
        {"weights": "int8", "calibration": [*SAMPLE, torch.zeros(2)]},
        "calibration[1]: expected a tuple of inputs, found Tensor",
    ),
    "calibration of nothing": ({"calibration": SAMPLE}, "calibration is for weights stored in few"),
    "unknown": (
        {"weigths": "int8", "fast": True},
        "unknown option fast, weigths; known options are compute, weights, activations",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    given, message = REFUSED[case]
    with pytest.raises(BadOption) as refused:
        Options.parse(given)
    assert message in str(refused.value)


BESIDE = {
    "compute": "bf16",
    "weights": "int8",
    "low_rank": 0.5,
    "max_activations": 1 << 20,
    "tokens": infopt.Tokens(0.5),
    "sparse_activations": 0.5,
    "prune": 0.5,
    "group_sparsity": 0.5,
}


@pytest.mark.parametrize("name", BESIDE)
def test_a_list_of_passes_leaves_nothing_to_choose(name: str) -> None:
    with pytest.raises(BadOption) as refused:
        Options.parse({name: BESIDE[name], "passes": []})
    assert str(refused.value).startswith(f"{name} chooses passes, and passes lists them: give one")
    assert f"passes=infopt.default_passes(..., {name}=" in str(refused.value)


# (what weights are stored as may change, errors are measured)
CHANGES: dict[str, tuple[dict[str, Any], bool, bool]] = {
    "nothing": ({}, False, False),
    "how it is run": (
        {"strict": True, "threads": 2, "tune": 1, "batch_invariant": True, "cuda_graphs": True},
        *(False, False),
    ),
    "slices": ({"max_activations": 1 << 20}, False, False),
    "compute": ({"compute": "bf16"}, False, True),
    "passes": ({"passes": []}, False, True),
    "max_error": ({"max_error": 0}, False, True),
    "tokens": ({"tokens": infopt.Tokens(0.5)}, False, True),
    "weights": ({"weights": "int8"}, True, True),
    "low_rank": ({"low_rank": 0.5}, True, True),
    "budget": ({"budget": BUDGET}, True, True),
    "sparse_activations": ({"sparse_activations": 0.5}, True, True),
    "prune": ({"prune": 0.5}, True, True),
    "group_sparsity": ({"group_sparsity": "zeros"}, True, True),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_an_option_changes(case: str) -> None:
    given, weights, lossy = CHANGES[case]
    options = Options.parse(given)
    assert (options.changes_weights, options.is_lossy) == (weights, lossy)


@pytest.mark.parametrize(
    "given",
    [{"weights": "int8"}, {"low_rank": 0.5}, {"prune": 0.5}, {"budget": BUDGET}, {"passes": []}],
)
def test_examples_are_for_what_is_stored_otherwise(given: dict[str, Any]) -> None:
    assert Options.parse({**given, "calibration": SAMPLE}).calibration == tuple(SAMPLE)


def test_an_objective_makes_a_budget() -> None:
    options = Options.parse({"objective": "memory", "max_error": 0.02, "max_memory": 1 << 20})
    assert options.budget == infopt.Budget(0.02, "memory", 1 << 20)


def test_passes_by_name() -> None:
    options = Options.parse({"passes": ["canonicalize", infopt.default_passes()[1]]})
    assert options.passes is not None
    assert [p.name for p in options.passes] == ["canonicalize", "unfold-patches"]


@pytest.mark.parametrize(
    ("mode", "given", "tune", "cuda_graphs"),
    [
        (None, {}, None, False),
        ("default", {}, None, False),
        ("reduce-overhead", {}, None, True),
        ("reduce-overhead", {"cuda_graphs": False}, None, False),
        ("max-autotune", {}, 2, False),
        ("max-autotune", {"tune": 1}, 1, False),
        ("max-autotune-no-cudagraphs", {}, 2, False),
    ],
)
def test_modes_of_torch(mode: str | None, given: dict, tune: int | None, cuda_graphs: bool) -> None:
    options = Options.parse(given, mode)
    assert (options.tune, options.cuda_graphs) == (tune, cuda_graphs)


def test_an_unknown_mode() -> None:
    with pytest.raises(BadOption, match="unknown mode 'fastest'; known modes are default, reduce"):
        Options.parse({}, "fastest")


def test_copies_of_an_objective_have_its_budget() -> None:
    given = {"objective": "size", "max_error": 0.1, "max_memory": 1 << 20}
    parsed = Options.parse(given, mode="max-autotune")
    assert parsed.budget == infopt.Budget(0.1, "size", 1 << 20)
    assert parsed.tune == 2


def test_beside_a_budget_all_else_stays() -> None:
    budget = {"objective": "size", "max_error": 0.1, "calibration": SAMPLE}
    bare = Options.parse(budget).beside_budget()
    assert (bare.budget, bare.max_error, bare.calibration) == (None, None, None)
    pruned = Options.parse({**budget, "prune": 0.2}).beside_budget()
    assert (pruned.budget, pruned.prune, pruned.calibration) == (None, 0.2, tuple(SAMPLE))
