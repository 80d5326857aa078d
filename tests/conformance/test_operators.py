"""A daily part of PyTorch's operator database; `python -m benchmarks opinfo` runs all of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.conformance import operators

STRIDE = 97  # every so many-th pair of op and dtype


def _daily() -> list[Any]:
    chosen = list(operators.pairs(operators.database()))[::STRIDE]
    return [pytest.param(op, dtype, id=f"{operators.name_of(op)}-{dtype}") for op, dtype in chosen]


@pytest.mark.parametrize(("op", "dtype"), _daily())
def test_operator(op: Any, dtype: torch.dtype) -> None:
    calls = operators.samples(op, dtype, most=2)
    with torch.no_grad():
        result = operators.check_op(op, calls)
    assert not result.differing, "\n".join(result.differing)
    assert result.count == len(calls)


def test_a_wrong_result_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check fails for a backend that gets one number wrong."""
    op = next(o for o in operators.database() if o.name == "exp")
    original = operators.compiled

    def wrong(fn: Any, backend: str | None = None, **settings: Any) -> Any:
        run = original(fn, "eager", **settings)
        return run if backend else lambda *args: [r + 1e-3 for r in run(*args)]

    monkeypatch.setattr(operators, "compiled", wrong)
    with torch.no_grad():
        result = operators.check_op(op, operators.samples(op, torch.float32)[:2])
    assert len(result.differing) == 2


def test_an_operator_whose_shape_rule_is_wrong_runs_as_torch_runs_it() -> None:
    """max_unpool2d of channels-last input: torch's rule says contiguous, the operator does not."""
    name = "nn.functional.max_unpool2d.grad"
    op = next(o for o in operators.database() if operators.name_of(o) == name)
    with torch.no_grad():
        result = operators.check_op(op, operators.samples(op, torch.float32)[8:12])
    assert not result.differing and result.fallback == 4


@pytest.mark.parametrize("name", ["cat", "complex", "dot"])
def test_what_torch_refuses_is_refused(name: str) -> None:
    """Two of these name the device, dot has a case only for a device that is an object."""
    op = next(o for o in operators.database() if o.name == name)
    calls = operators.error_samples(op)
    with torch.no_grad():
        result = operators.check_op(op, calls, 1)
    assert result.count == len(calls) >= 4
    assert not result.differing, "\n".join(result.differing)
