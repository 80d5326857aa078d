"""The results of a graph before and after a pass, held to what the pass promises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from infopt.compiler.accuracy import Exact, Moved
from infopt.compiler.certification.counterexample import Broken, shown
from infopt.compiler.graph import Graph
from infopt.compiler.interpret import interpret
from infopt.compiler.pipeline import Pass

_NUDGES = 8  # a row of two values moves in half of them


def compare_results(
    pass_: Pass, before: Graph, after: Graph, inputs: list[Any], expected: list[Any] | None
) -> None:
    try:
        wanted = interpret(before, copies_of(inputs)) if expected is None else expected
    except (RuntimeError, IndexError, ValueError):
        return  # the program itself cannot be of these sizes
    given = copies_of(inputs)
    try:
        found = interpret(after, given)
    except Exception as error:
        raise Broken(f"made a graph that fails: {error}", before, after, inputs) from error
    if not all(torch.equal(_bits(a), _bits(b)) for a, b in zip(inputs, given, strict=True)):
        raise Broken("made a graph that writes to its inputs", before, after, inputs)
    wide = _wide(before, inputs)
    for position, (e, f) in enumerate(zip(wanted, found, strict=True)):
        if not isinstance(e, torch.Tensor):
            continue
        reference = None if wide is None else wide[position]
        accuracy = pass_.accuracy
        reason = accuracy.accepts(e, f, reference)
        if reason is not None and reference is not None and isinstance(accuracy, Exact):
            reason = accuracy.accepts(e, f, reference, _moved(before, inputs, position, reference))
        if reason is not None:
            what = f"promises {pass_.accuracy}, but result {position}: {reason}"
            raise Broken(f"{what}\nexpected {shown(e)}\nfound    {shown(f)}", before, after, inputs)


class _Float64(TorchDispatchMode):
    """Ops that name a floating dtype of their result, casts above all, give float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        dtype = (kwargs or {}).get("dtype")
        if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
            kwargs = kwargs | {"dtype": torch.float64}
        return func(*args, **(kwargs or {}))


def _wide(graph: Graph, inputs: Sequence[Any]) -> list[Any] | None:
    """The graph's results for the inputs in float64; None where its ops insist on their dtypes."""
    wide = [t.double() if t.is_floating_point() else t for t in inputs]
    try:
        with _Float64():
            return interpret(graph, wide)
    except (RuntimeError, ValueError):
        return None


def _moved(graph: Graph, inputs: Sequence[Any], position: int, reference: torch.Tensor) -> Moved:
    """How far a result in float64 moves when arguments do by half a step of float32 (of float64
    where they are), up or down: kernels calculate in that, and round to narrower dtypes after."""
    others = []
    for seed in range(_NUDGES):
        generator = torch.Generator().manual_seed(seed)
        found = _wide(graph, [_nudged(t, generator) for t in inputs])
        others += [] if found is None else [found[position]]
    return Moved.between(reference, others) if others else Moved()


def _nudged(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    step = torch.finfo(torch.float64 if tensor.dtype == torch.float64 else torch.float32).eps
    sign = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
    return tensor.double() * (1 + step / 2 * sign)


def copies_of(inputs: Sequence[Any]) -> list[Any]:
    """Of the same strides, so that references take the same way."""
    return [torch.empty_like(t).copy_(t) if _dense(t) else t.clone() for t in inputs]


def _dense(tensor: torch.Tensor) -> bool:
    return torch.empty_like(tensor).stride() == tensor.stride()


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return torch.nan_to_num(tensor) if tensor.is_floating_point() else tensor
