"""Is a program the same through infopt? Values, types, strides, memory, writes, exceptions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._dynamo.utils import counters

import infopt
from infopt.compiler.dynamo import reports_of
from tests.conformance.harness import Outcome, compare, compiled, observe
from tests.conformance.program import Program
from tests.conformance.program_shrink import one_call

DOORS = ("torch.compile", "infopt.compile")


@dataclass(frozen=True)
class Verdict:
    """difference: the first one, "" where there is none. declined: why torch ran it instead."""

    difference: str = ""
    declined: str = ""
    native: int = 0
    aten: int = 0

    @property
    def kind(self) -> str:
        """native, fallback or differs."""
        if self.difference:
            return "differs"
        return "fallback" if self.declined or self.aten else "native"


def judge(program: Program, door: str = "torch.compile", target: str = "native") -> Verdict:
    """Run every call of a program in eager and through a door, and compare all that shows.

    infopt.compile fixes the sizes here, so only calls of the first one's sizes go through it.
    """
    if door != "torch.compile" and program.dynamic:
        program = one_call(program, 0)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        faults = counters["infopt"]["internal_errors"]
        try:
            run, reports = _through(program, door, target)
            difference = first_difference(program, run)
        except Exception as error:
            return Verdict(f"{type(error).__name__}: {str(error)[:600]}")
        found = reports()
        declined = "; ".join(r.declined for r in found if r.declined)
        if counters["infopt"]["internal_errors"] > faults:
            difference = difference or f"internal error: {declined}"
        if difference and door == "torch.compile" and _same_in_dynamo(program, difference):
            return Verdict("", f"torch's own difference: {difference[:80]}")
        native, aten = sum(r.native_nodes for r in found), sum(r.aten_nodes for r in found)
        return Verdict(difference, declined, native, aten)


def _through(
    program: Program, door: str, target: str
) -> tuple[Callable[..., Any], Callable[[], list[Any]]]:
    function = program.function()
    if door == "torch.compile":
        run = compiled(function, dynamic=program.dynamic)
        return run, lambda: reports_of(run)
    made = infopt.compile(function, program.arguments(), target=target)
    return made, lambda: [made.report]


def first_difference(program: Program, run: Callable[..., Any]) -> str:
    """The first difference of `run` from the program in eager, "" where there is none."""
    function, wide = program.function(), program.function(wide=True)
    for call in range(program.calls):
        expected = observe(function, program.arguments(call))
        actual = observe(run, program.arguments(call))
        exact = observe(wide, program.arguments(call, wide=True))
        try:
            _compare(program, expected, actual, None if exact.error else exact)
        except AssertionError as error:
            if not _within_rounding(program, call, expected, actual):
                return f"call {call}: {error}"
    return ""


def _within_rounding(program: Program, call: int, expected: Outcome, actual: Outcome) -> bool:
    """Whether eager itself differs as much when every sum and product rounds a little otherwise.

    The float64 rule alone misjudges what amplifies rounding (the norm of a constant row), because
    eager is sometimes exact by luck. Everything but the values of rounded floats has to agree.
    """
    if expected.error is not None or actual.error is not None:
        return False
    names = [*program.outputs, *(i.name for i in program.inputs)]
    free = [i for i, n in enumerate(names) if n in program.rounded]
    noisy = [observe(program.noisy(), program.arguments(call), seed) for seed in range(6)]
    wanted, found = _values(expected), _values(actual)
    if len(wanted) != len(found):
        return False
    for i in free:
        e, a = wanted[i], found[i]
        if e.dtype == a.dtype and e.shape == a.shape and e.stride() == a.stride():
            spread = max((_rms(_values(n)[i], e) for n in noisy if not n.error), default=0.0)
            found[i] = e if _rms(a, e) <= 3 * spread else a
    count = len(expected.leaves)
    forgiven = replace(actual, leaves=found[:count], inputs_after=found[count:])
    try:
        compare(expected, forgiven)
        _compare_bits(program, expected, actual)
    except AssertionError:
        return False
    return True


def _values(outcome: Outcome) -> list[torch.Tensor]:
    return [*outcome.leaves, *outcome.inputs_after]


def _rms(a: torch.Tensor, b: torch.Tensor) -> float:
    """Root of the mean square difference; infinite where the non-finite numbers differ."""
    same = (a == b) | (a.isnan() & b.isnan())
    difference = torch.where(same, 0, a.double() - b.double())
    rms = difference.square().mean().sqrt().item() if a.numel() else 0.0
    return rms if rms == rms else float("inf")


def _compare(program: Program, expected: Outcome, actual: Outcome, exact: Outcome | None) -> None:
    compare(expected, actual, "same", exact)
    if expected.error is None:
        _compare_bits(program, expected, actual)


def _compare_bits(program: Program, expected: Outcome, actual: Outcome) -> None:
    """What is not rounded freely has eager's bits; what shares memory begins where eager's does."""
    names = [*program.outputs, *(i.name for i in program.inputs)]
    for name, e, a in zip(names, _values(expected), _values(actual), strict=True):
        if name not in program.rounded:
            _same_bits(e, a, name)
    _same_places(expected, actual)


def _same_bits(expected: torch.Tensor, actual: torch.Tensor, name: str) -> None:
    """The same numbers; any NaN for any NaN; zeros of the same sign."""
    if not expected.is_floating_point():
        return  # compared exactly already
    same = (expected == actual) & (torch.signbit(expected) == torch.signbit(actual))
    same |= expected.isnan() & actual.isnan()
    assert same.all(), (
        f"{name}: {int((~same).sum())} of {same.numel()} numbers are not eager's bits: "
        f"{actual[~same][:4].tolist()}, eager {expected[~same][:4].tolist()}"
    )


def _same_places(expected: Outcome, actual: Outcome) -> None:
    """An output in an input's memory begins at the same element of it."""
    count = len(expected.inputs_after)
    for i, j in expected.sharing:
        if i < count <= j:
            e = _distance(expected.inputs_after[i], expected.leaves[j - count])
            a = _distance(actual.inputs_after[i], actual.leaves[j - count])
            assert e == a, f"output {j - count} begins {a} bytes after input {i}, eager {e}"


def _distance(a: torch.Tensor, b: torch.Tensor) -> int:
    return b.data_ptr() - a.data_ptr()


def _same_in_dynamo(program: Program, difference: str) -> bool:
    """Whether dynamo alone, with torch's own kernels, differs from eager too."""
    run = compiled(program.function(), "eager", dynamic=program.dynamic)
    return bool(first_difference(program, run))
