"""PyTorch's own operator database as programs: every sample of an op through torch.compile.

Samples of one op and dtype run in groups, as one function each, so that tracing and the C++
compiler work once for several. A group that differs from eager runs again sample by sample.
"""

from __future__ import annotations

import sys
import types
import unittest
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._dynamo.utils import counters

from tests.conformance.harness import compare, compiled, exact_outcome, observe

# What these return is memory nobody wrote: only its type is defined.
UNDEFINED = {
    "empty",
    "empty_like",
    "empty_permuted",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
}


def database() -> list[Any]:
    """torch's op_db. It imports a testing library only for a base class that is not used here."""
    if "expecttest" not in sys.modules:
        stand_in = types.ModuleType("expecttest")
        stand_in.TestCase = unittest.TestCase  # type: ignore[attr-defined]
        sys.modules["expecttest"] = stand_in
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    return list(op_db)


def name_of(op: Any) -> str:
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name


def samples(op: Any, dtype: torch.dtype, most: int | None = None) -> list[tuple]:
    """(input, args, kwargs) of up to `most` samples, the same in every run."""
    torch.manual_seed(0)
    found = []
    for sample in op.sample_inputs("cpu", dtype, requires_grad=False):
        found.append((sample.input, tuple(sample.args), dict(sample.kwargs)))
        if most is not None and len(found) == most:
            break
    return found


def error_samples(op: Any) -> list[tuple]:
    """Calls that torch refuses."""
    if op.error_inputs_func is None:
        return []
    try:
        errors = list(op.error_inputs(torch.device("cpu")))
    except AttributeError:  # complex and cat ask for the device's name instead
        errors = list(op.error_inputs("cpu"))
    found = [e.sample_input for e in errors]
    return [(s.input, tuple(s.args), dict(s.kwargs)) for s in found]


@dataclass
class Result:
    """How the samples of one op and dtype went.

    native    passed, with every operator of its graph in our kernels
    fallback  passed, some or all of it run by torch
    torch     differs from eager under backend="eager" too: dynamo's own doing
    differing the message of every other difference
    """

    native: int = 0
    fallback: int = 0
    torch: int = 0
    differing: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return self.native + self.fallback + self.torch + len(self.differing)


def check_op(op: Any, calls: Sequence[tuple], group: int = 8) -> Result:
    """All calls, in groups, against eager."""
    result = Result()
    for start in range(0, len(calls), group):
        together = list(calls[start : start + group])
        passed = _passes(op, together, result)
        for i, call in enumerate([] if passed else together):
            reason = _difference(op, [call])
            if reason is None:
                _count(result, 1)
            elif _difference(op, [call], "eager") is not None:
                result.torch += 1
            else:
                result.differing.append(f"sample {start + i}: {reason}")
    return result


def _passes(op: Any, together: list[tuple], result: Result) -> bool:
    if len(together) > 1 and _difference(op, together) is None:
        _count(result, len(together))
        return True
    return False


def _count(result: Result, number: int) -> None:
    """Count what just passed by what ran it: see the counters of the backend."""
    ours = counters["infopt"]
    native = ours["graphs"] and not ours["eager_graphs"] and not ours["aten_nodes"]
    if native and not counters["graph_break"]:
        result.native += number
    else:
        result.fallback += number


def _difference(op: Any, calls: list[tuple], backend: str | None = None) -> str | None:
    """None where the compiled calls do what eager does."""
    program = _program(op, len(calls))
    inputs = tuple(calls)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = observe(program, inputs)
        if expected.error is not None and len(calls) > 1:
            return "eager refuses one of them"
        counters.clear()
        actual = observe(compiled(program, backend, dynamic=False), inputs)
        try:
            if op.name in UNDEFINED and expected.error is None and actual.error is None:
                _compare_types(expected.leaves, actual.leaves)
            else:
                _compare(program, inputs, expected, actual)
        except AssertionError as error:
            return " ".join(str(error).split())[:400]
    return None


def _compare(program: Callable, inputs: tuple, expected: Any, actual: Any) -> None:
    try:
        compare(expected, actual)
    except AssertionError:
        if expected.error is not None or actual.error is not None:
            raise
        compare(expected, actual, "same", exact_outcome(program, inputs))


def _compare_types(expected: Sequence[Any], actual: Sequence[Any]) -> None:
    for e, a in zip(expected, actual, strict=True):
        assert (a.dtype, a.shape, a.stride()) == (e.dtype, e.shape, e.stride()), f"{a} for {e}"


def _program(op: Any, count: int) -> Callable[..., Any]:
    """A function of `count` calls' arguments that makes them all."""
    function = op.op

    def one(call: tuple) -> Any:
        return function(call[0], *call[1], **call[2])

    def several(*calls: tuple) -> list[Any]:
        return [function(call[0], *call[1], **call[2]) for call in calls]

    return one if count == 1 else several


def pairs(ops: Sequence[Any]) -> Iterator[tuple[Any, torch.dtype]]:
    """Every op with every dtype it supports on a CPU."""
    for op in ops:
        for dtype in sorted(op.supported_dtypes("cpu"), key=str):
            yield op, dtype
