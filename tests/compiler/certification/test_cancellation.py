"""Results that are all cancellation: their rounding is accepted, wrong passes are found."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch

from infopt.compiler.accuracy import Exact, Moved
from infopt.compiler.certification import values as certified_values
from infopt.compiler.certification.counterexample import Broken
from infopt.compiler.certification.values import compare_results
from infopt.compiler.graph import Graph
from infopt.compiler.interpret import interpret
from infopt.compiler.pipeline import Pass
from infopt.compiler.testing import graph_of

EPS = 1e-5
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# of rows without their mean nothing but rounding is left in the first; the others are ordinary
EQUAL = torch.tensor([[1.7, 1.7], [-30.3, -30.3], [1e-3, 1e-3]])
ORDINARY = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def norm(
    o: Any,
    x: Any,
    eps: float = EPS,
    least: int = 0,
    centered: bool = True,
    measured: bool = True,
    after: bool = False,
    factor: float = 1.0,
) -> Any:
    """A written-out layer norm, with one fault or none."""
    mean = o.mean(x, [-1], True)
    y = o.sub(x, mean)
    squares = o.pow(y if measured else x, 2)
    n = x.shape[-1]
    variance = o.mul(o.mean(squares, [-1], True), n / max(n - least, 1))
    root = o.add(o.sqrt(variance), eps) if after else o.sqrt(o.add(variance, eps))
    return o.mul(o.div(y if centered else x, root), factor)


WRONG: dict[str, dict[str, Any]] = {
    "eps is forgotten": {"eps": 0.0},
    "eps is another": {"eps": 1e-3},
    "eps is outside of the root": {"after": True},
    "the mean is not subtracted": {"centered": False},
    "squares of what was not centered": {"measured": False},
    "n - 1 for n": {"least": 1},
    "a few steps too large": {"factor": 1.05},
}
INPUTS = {
    "equal": EQUAL, "ordinary": ORDINARY, "small": ORDINARY * 1e-3, "large": ORDINARY * 30,
    "nearly equal": ORDINARY * 0.01 + 1.0, "both": torch.cat([EQUAL.repeat(1, 4), ORDINARY]),
    # the written-out norm of one value is exactly 0, whatever the value
    "single": EQUAL[:, :1],
}  # fmt: skip


@cache
def graph(build: Callable[..., Any], dtype: torch.dtype, shape: torch.Size) -> Graph:
    return graph_of(build, [torch.empty(shape, dtype=dtype)])


def broken(build: Callable[..., Any], dtype: torch.dtype, values: torch.Tensor) -> str:
    """What compare_results has against `build` in the place of `norm`, "" where nothing."""
    x = values.to(dtype)
    before, after = (graph(b, dtype, x.shape) for b in (norm, build))
    try:
        compare_results(Pass(), before, after, [x], None)
    except Broken as found:
        return str(found)
    return ""


def torch_norm(o: Any, x: Any) -> Any:
    return o.layer_norm(x, [x.shape[-1]], None, None, EPS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", INPUTS)
def test_the_rounding_of_a_right_pass_is_accepted(dtype: torch.dtype, values: str) -> None:
    assert not broken(torch_norm, dtype, INPUTS[values])


def test_there_is_something_to_accept() -> None:
    """torch's own op leaves more of equal rows than the bounds of their result, 0, allow."""
    x = EQUAL.bfloat16()
    expected, found = (interpret(graph_of(b, [x]), [x])[0] for b in (norm, torch_norm))
    assert not expected.any()
    assert "times what rounding explains" in str(
        Exact().accepts(expected, found, expected.double())
    )


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_pass_is_found_by_the_same_inputs_as_without_the_rule(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = partial(norm, **WRONG[wrong])

    def caught() -> set[tuple[torch.dtype, str]]:
        return {(d, v) for d in DTYPES for v in INPUTS if broken(build, d, INPUTS[v])}

    with_it = caught()
    monkeypatch.setattr(certified_values, "_moved", lambda *_: Moved())
    assert with_it == caught()
    assert {d for d, _ in with_it} == set(DTYPES)


def test_what_is_larger_than_its_rounding_is_wrong() -> None:
    def off(o: Any, x: Any) -> Any:
        return o.add(norm(o, x), 2e-2)

    for dtype in DTYPES:
        assert "times what rounding explains" in broken(off, dtype, EQUAL)


def test_how_far_a_result_moved() -> None:
    result = torch.tensor([1.0, float("inf"), 3.0])
    others = [result + torch.tensor([0.0, 0.0, 0.4]), result - torch.tensor([0.3, 0.0, 0.0])]
    moved = Moved.between(result, others)
    assert moved.largest == pytest.approx(0.4) and moved.rms == pytest.approx(0.25)
    assert Moved.between(result[1:2], [result[1:2]]) == Moved()
    e, a = torch.zeros(4), torch.full((4,), 1e-3)
    assert Exact().accepts(e, a, None, Moved(2.6e-4, 2.6e-4)) is None
    assert Exact().accepts(e, a, None, Moved(2.4e-4, 2.6e-4)) is not None
    assert Exact().accepts(e, a, None, Moved(2.6e-4, 2.4e-4)) is not None
