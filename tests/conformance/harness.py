"""Compare a compiled function with eager in everything a caller can observe.

Values, dtype, shape, strides, mutation of the inputs, which outputs share memory with which inputs,
the requires_grad flag and the class of the raised exception. About a third of the known wrong
results are invisible to a plain allclose.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map

from infopt.models.agreement import as_exact_as

BACKEND = "infopt"

RULES = ("close", "bitwise", "same")


@dataclass(frozen=True)
class Outcome:
    """All that one call did. `sharing` holds pairs of tensor numbers (inputs first) that lie in one
    storage.
    """

    leaves: list[Any]
    structure: Any
    inputs_after: list[Any]
    sharing: frozenset[tuple[int, int]]
    error: Exception | None


def compiled(
    fn: Callable[..., Any], backend: str | None = None, **settings: Any
) -> Callable[..., Any]:
    """`fn` through the front door under test, with dynamo's caches empty."""
    torch._dynamo.reset()
    return torch.compile(fn, backend=backend or BACKEND, **settings)


def observe(fn: Callable[..., Any], inputs: tuple[Any, ...], seed: int = 0) -> Outcome:
    """Call `fn` on a deep copy of `inputs`; overlapping inputs stay overlapping in the copy."""
    # a sparse tensor has no storage that deepcopy could copy
    sparse = [v for v in tree_flatten(inputs)[0] if _is_sparse(v)]
    args = copy.deepcopy(inputs, {id(v): v.clone() for v in sparse})
    torch.manual_seed(seed)
    error, result = None, None
    try:
        result = fn(*args)
    except Exception as raised:
        error = raised
    leaves, structure = tree_flatten(result)
    arguments = tree_flatten(args)[0]
    return Outcome(leaves, structure, arguments, _sharing([*arguments, *leaves]), error)


def _is_sparse(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout is not torch.strided


def _sharing(values: list[Any]) -> frozenset[tuple[int, int]]:
    storages = [
        v.untyped_storage().data_ptr()
        if isinstance(v, torch.Tensor) and not _is_sparse(v) and v.numel()
        else None
        for v in values
    ]
    return frozenset(
        (i, j)
        for j, storage in enumerate(storages)
        for i in range(j)
        if storage is not None and storages[i] == storage
    )


def check(
    fn: Callable[..., Any],
    *calls: tuple[Any, ...],
    rule: str = "close",
    dynamic: bool | None = None,
    backend: str | None = None,
) -> None:
    """Run eager and one compiled callable over `calls` (tuples of arguments) and compare every
    outcome.
    """
    run = compiled(fn, backend, dynamic=dynamic)
    for inputs in calls:
        expected = observe(fn, inputs)
        exact = exact_outcome(fn, inputs) if rule == "same" else None
        compare(expected, observe(run, inputs), rule, exact)


def exact_outcome(fn: Callable[..., Any], inputs: tuple[Any, ...]) -> Outcome | None:
    """The same call in float64, or None where the function does not run in it."""

    def widen(value: Any) -> Any:
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.double() if floating else value

    if isinstance(fn, torch.nn.Module):
        fn = copy.deepcopy(fn).double()
    outcome = observe(fn, tree_map(widen, inputs))
    return None if outcome.error else outcome


def compare(
    expected: Outcome, actual: Outcome, rule: str = "close", exact: Outcome | None = None
) -> None:
    """Raise AssertionError at the first observable difference. `exact` is the float64 outcome for
    rule "same".
    """
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}: known are {RULES}")
    if expected.error is not None or actual.error is not None:
        _compare_errors(expected.error, actual.error)
        return
    assert actual.structure == expected.structure, (
        f"structure {actual.structure}, eager {expected.structure}"
    )
    widened = exact.leaves if exact is not None else [None] * len(expected.leaves)
    for index, (e, a, w) in enumerate(zip(expected.leaves, actual.leaves, widened, strict=True)):
        compare_value(e, a, f"output {index}", rule, w)
    widened = exact.inputs_after if exact is not None else [None] * len(expected.inputs_after)
    for index, (e, a, w) in enumerate(
        zip(expected.inputs_after, actual.inputs_after, widened, strict=True)
    ):
        compare_value(e, a, f"input {index} after the call", rule, w)
    assert actual.sharing == expected.sharing, (
        f"tensors sharing memory (inputs first): {sorted(actual.sharing)}, "
        f"eager {sorted(expected.sharing)}"
    )


def _compare_errors(expected: Exception | None, actual: Exception | None) -> None:
    if expected is None:
        raise AssertionError(f"compiled raised {actual!r}, eager did not") from actual
    assert actual is not None, f"compiled accepted what eager refuses with {expected!r}"
    # dynamo raises subclasses of the eager class where it finds the error while tracing
    assert isinstance(actual, type(expected)), f"compiled raised {actual!r}, eager {expected!r}"


def compare_value(expected: Any, actual: Any, where: str, rule: str, exact: Any = None) -> None:
    """One output or input: tensors by metadata and values, everything else by type and equality."""
    if not isinstance(expected, torch.Tensor):
        assert type(actual) is type(expected), f"{where}: {type(actual)}, eager {type(expected)}"
        if type(expected).__eq__ is not object.__eq__:
            assert actual == expected, f"{where}: {actual!r}, eager {expected!r}"
        return
    assert isinstance(actual, torch.Tensor), f"{where}: {type(actual)}, eager a tensor"
    for fact in ("dtype", "shape", "device", "layout", "requires_grad"):
        e, a = getattr(expected, fact), getattr(actual, fact)
        assert a == e, f"{where}: {fact} {a}, eager {e}"
    assert _strides(actual) == _strides(expected), (
        f"{where}: strides {actual.stride()}, eager {expected.stride()} for {tuple(expected.shape)}"
    )
    _compare_numbers(expected.detach(), actual.detach(), where, rule, exact)


def _strides(value: torch.Tensor) -> list[int] | None:
    """Strides that reach an element: of a dim of size 1 or an empty tensor they mean nothing."""
    if value.layout != torch.strided or value.numel() == 0:
        return None
    return [stride for size, stride in zip(value.shape, value.stride(), strict=True) if size > 1]


def _compare_numbers(
    expected: torch.Tensor, actual: torch.Tensor, where: str, rule: str, exact: Any
) -> None:
    floating = expected.is_floating_point() or expected.is_complex()
    if rule == "bitwise" and floating:
        e, a = (t.reshape(-1).contiguous().view(torch.uint8) for t in (expected, actual))
        wrong = (e != a).sum().item()
        assert not wrong, f"{where}: {wrong} bytes differ: {actual}, eager {expected}"
        return
    if not floating:
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, msg=lambda m: f"{where}: {m}")
        return
    try:
        torch.testing.assert_close(actual, expected, equal_nan=True, msg=lambda m: f"{where}: {m}")
    except AssertionError:
        if rule != "same" or exact is None or not as_exact_as(expected, actual, exact):
            raise
