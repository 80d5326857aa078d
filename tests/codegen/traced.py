"""Small torch functions as graphs and programs, and their comparison with torch."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from infopt.codegen.load import lower_for, program
from infopt.codegen.lower import Lowered, lower
from infopt.compiler.graph import Graph
from infopt.compiler.target import Target
from infopt.compiler.tracing.trace import from_fx
from infopt.runtime.executor import Program


@functools.cache
def target() -> Target:
    return Target.detect()


def graph_of(f: Callable, args: Sequence[torch.Tensor], dynamic: bool = False) -> Graph:
    """The graph of f for arguments like these; dynamic: every size but 0 and 1 stays open."""
    mode = "symbolic" if dynamic else "fake"
    with torch.no_grad():
        return from_fx(make_fx(f, pre_dispatch=True, tracing_mode=mode)(*args))


def lowered(graph: Graph, native: bool = True) -> Lowered:
    if native:
        return lower_for(graph, target())
    return lower(graph, target(), shipped=False, generated=False)


def program_of(
    f: Callable, args: Sequence[torch.Tensor], dynamic: bool = False, native: bool = True
) -> Program:
    return program(lowered(graph_of(f, args, dynamic), native), threads=2)


def flat(result: Any) -> list[Any]:
    return list(result) if isinstance(result, tuple | list) else [result]


def bits_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """The same bits, any NaN for any NaN."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    same = (a == b) & (torch.signbit(a) == torch.signbit(b))
    return bool((same | (a.isnan() & b.isnan())).all())


def ulps(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest distance in rounding steps of the expected value b; NaN and inf must agree."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.dtype.itemsize]
    special = ~(a.isfinite() & b.isfinite())
    if not bits_equal(a[special], b[special]):
        return float("inf")
    x, y = (t[~special].contiguous().view(kind).double() for t in (a, b))
    low = float(torch.iinfo(kind).min)
    x, y = (torch.where(t < 0, low - t, t) for t in (x, y))
    return float((x - y).abs().max()) if x.numel() else 0.0


def check(
    f: Callable,
    *args: torch.Tensor,
    dynamic: bool = False,
    native: bool = True,
    most_ulps: float = 0,
    close: tuple[float, float] | None = None,
) -> Program:
    """f compiled equals f in torch: values, strides, and what it writes to its arguments."""
    made = program_of(f, [a.clone() if a.is_contiguous() else a for a in args], dynamic, native)
    compare(made, f, args, most_ulps, close)
    return made


def compare(
    made: Program,
    f: Callable,
    args: Sequence[torch.Tensor],
    most_ulps: float = 0,
    close: tuple[float, float] | None = None,
) -> None:
    mine, theirs = [_copy(a) for a in args], [_copy(a) for a in args]
    with torch.no_grad():
        expected = flat(f(*theirs))
    found = made(mine)
    assert len(found) == len(expected)
    for i, (a, b) in enumerate(zip([*found, *mine], [*expected, *theirs], strict=True)):
        if not isinstance(b, torch.Tensor):
            assert a == b, f"result {i}: {a} instead of {b}"
            continue
        assert (a.dtype, a.shape) == (b.dtype, b.shape), f"result {i}: {a.dtype} {a.shape}"
        assert _moves(a) == _moves(b), f"result {i}: strides {a.stride()} instead of {b.stride()}"
        if close is not None and b.is_floating_point():
            torch.testing.assert_close(a, b, rtol=close[0], atol=close[1], equal_nan=True)
        elif most_ulps and b.is_floating_point():
            assert ulps(a, b) <= most_ulps, f"result {i}: {ulps(a, b)} ulps apart"
        else:
            assert bits_equal(a, b), f"result {i}: {a} instead of {b}"


def _moves(a: torch.Tensor) -> list[int]:
    """The strides that matter; about the others torch's fake tensors and kernels do not agree."""
    return [s for n, s in zip(a.shape, a.stride(), strict=True) if n != 1 and a.numel()]


def _copy(a: torch.Tensor) -> torch.Tensor:
    """The same values in memory of the same layout."""
    if a.numel() and any(s == 0 and n > 1 for n, s in zip(a.shape, a.stride(), strict=True)):
        return a
    made = torch.empty_strided(a.shape, a.stride(), dtype=a.dtype)
    return made.copy_(a)
