"""The results of a graph before and after a pass, held to what the pass promises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from infopt.compiler.accuracy import Exact, Moved
from infopt.compiler.certification.counterexample import Broken, shown
from infopt.compiler.certification.exact_moves import only_moves
from infopt.compiler.certification.exact_tensor import is_float
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


class _Rounded(_Float64):
    """And what they calculate from numbers moves by half a rounding step, up or down."""

    def __init__(self, step: float, generator: torch.Generator) -> None:
        super().__init__()
        self.step, self.generator = step, generator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = super().__torch_dispatch__(func, types, args, kwargs)
        if only_moves(func) or not any(is_float(a) for a in tree_flatten((args, kwargs))[0]):
            return given
        return tree_map(lambda t: _nudged(t, self.step, self.generator), given)


def _wide(
    graph: Graph, inputs: Sequence[Any], rounding: _Float64 | None = None
) -> list[Any] | None:
    """The graph's results for the inputs in float64; None where its ops insist on their dtypes."""
    wide = [t.double() if t.is_floating_point() else t for t in inputs]
    try:
        with rounding or _Float64():
            return interpret(graph, wide)
    except (RuntimeError, ValueError):
        return None


def _moved(graph: Graph, inputs: Sequence[Any], position: int, reference: torch.Tensor) -> Moved:
    """How far a result in float64 moves when all numbers of the program do by half a step, up or
    down, of float32 (of float64 where arguments are): kernels calculate in that, and round to
    narrower dtypes after."""
    wide = any(t.dtype == torch.float64 for t in inputs if is_float(t))
    step = torch.finfo(torch.float64 if wide else torch.float32).eps / 2
    others = []
    for seed in range(_NUDGES):
        generator = torch.Generator().manual_seed(seed)
        nudged = [_nudged(t, step, generator) for t in inputs]
        found = _wide(graph, nudged, _Rounded(step, generator))
        others += [] if found is None else [found[position]]
    return Moved.between(reference, others) if others else Moved()


def _nudged(value: Any, step: float, generator: torch.Generator) -> Any:
    if not is_float(value):
        return value
    sign = torch.randint(0, 2, value.shape, generator=generator) * 2 - 1
    return value.double() * (1 + step * sign)


def copies_of(inputs: Sequence[Any]) -> list[Any]:
    """Of the same strides, so that references take the same way."""
    return [torch.empty_like(t).copy_(t) if _dense(t) else t.clone() for t in inputs]


def _dense(tensor: torch.Tensor) -> bool:
    return torch.empty_like(tensor).stride() == tensor.stride()


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return torch.nan_to_num(tensor) if tensor.is_floating_point() else tensor
