"""Every GPU kernel against its reference, on random inputs, on the device itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

import infopt.codegen.gpu  # noqa: F401  declares the kernels
from benchmarks.gpu_lab import Lab
from infopt.codegen.kernel import KernelOp, emitters, kernel_names
from infopt.compiler.accuracy import Exact
from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder
from infopt.compiler.ops import find
from infopt.compiler.tracing.trace import from_fx
from infopt.compiler.types import TensorType
from infopt.runtime.plan import AtenStep

CASES = 4  # of each op
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def regions() -> dict[str, Any]:
    """Generated kernels: chains, broadcasts, reorderings, conversions."""
    return {
        "chain": lambda x, y: F.gelu(x * 2 + y) - y.sigmoid(),
        "transposed": lambda x, y: (x + y).t().contiguous() * 3,
        "broadcast": lambda x, y: x * y[0] + y[:, :1],
        "parts": lambda x, y: torch.cat([x[:, 1:], y.tanh()], 1),
        "numbers": lambda x, y: (x > y).to(torch.int32) * 7 + x.to(torch.int32) // 3,
    }


def check_kernels(lab: Lab) -> list[dict[str, Any]]:
    """One row per case: kernel, case, error ("" where it is right)."""
    made = [(kernel, case, _made(make)) for kernel, case, make in cases(lab)]
    lab.compile([of[0] for _, _, of in made if not isinstance(of, str)])
    return [{"kernel": k, "case": case, "error": _error(lab, of)} for k, case, of in made]


def cases(lab: Lab) -> Iterator[tuple[str, str, Callable[[], tuple]]]:
    """(kernel, case, what makes its graph, inputs and expected results)."""
    for name, dtype in itertools.product(regions(), FLOATS):
        yield f"region {name}", str(dtype), lambda n=name, d=dtype: _region(n, d)
    for name in kernel_names(lab.target):
        op = find(name)
        if not isinstance(op, KernelOp) or op.cases is None:
            continue
        for number, (args, attrs) in enumerate(itertools.islice(op.cases(), CASES)):
            yield name, f"case {number}", lambda o=op, a=args, k=attrs: _alone(o, a, k)


def _made(make: Callable[[], tuple]) -> tuple | str:
    """What `make` makes, or why it fails."""
    try:
        return make()
    except Exception as failure:
        return _described(failure)


def _error(lab: Lab, made: tuple | str) -> str:
    if isinstance(made, str):
        return made
    try:
        return _compared(lab, *made)
    except Exception as failure:
        return _described(failure)


def _described(failure: Exception) -> str:
    return f"{type(failure).__name__}: {failure}"[:300]


def _compared(
    lab: Lab, graph: Graph, inputs: list, expected: list, exact: list, tolerance: Any
) -> str:
    program = lab.program(graph)
    if any(isinstance(s, AtenStep) for s in program.plan.steps):
        return "not launched: torch would run it"
    found = program([x.to(lab.where) for x in inputs])
    lab.device.synchronize()
    for a, b, d in zip(expected, found, exact, strict=True):
        reason = tolerance.accepts(a, b.cpu(), d)
        if reason is not None:
            return reason
    return ""


def _region(name: str, dtype: torch.dtype) -> tuple:
    f = regions()[name]
    inputs = [torch.randn(65, 130).to(dtype) for _ in range(2)]
    graph = from_fx(make_fx(f, pre_dispatch=True, tracing_mode="fake")(*inputs))
    return graph, inputs, [f(*inputs)], [f(*(x.double() for x in inputs))], Exact()


def _alone(op: KernelOp, args: Any, attrs: dict[str, Any]) -> tuple:
    """An op as a graph over its own tensors."""
    o = Builder()
    inputs = [a for a in args if a is not None]
    names = iter(o.input(f"x{i}", TensorType.of(a)) for i, a in enumerate(inputs))
    nodes = [None if a is None else next(names) for a in args]
    made = o.call(op, *nodes, **attrs)
    results = [made]
    if isinstance(made.type, tuple):
        results = [o.getitem(made, i) for i, t in enumerate(made.type) if t is not None]
    graph = Graph(tuple(n for n in nodes if n is not None), tuple(results))
    with torch.no_grad():
        expected = list(_flat(op(*args, **attrs)))
        wide = [a.double() if a is not None and a.is_floating_point() else a for a in args]
        exact: list[torch.Tensor | None]
        try:
            exact = list(_flat(op(*wide, **attrs)))
        except (RuntimeError, TypeError, ValueError):  # an op of fixed dtypes
            exact = [None] * len(expected)
    return graph, inputs, expected, exact, op.tolerance


def _flat(value: Any) -> Iterator[torch.Tensor]:
    yield from [value] if isinstance(value, torch.Tensor) else [v for v in value if v is not None]


def without_cases(lab: Lab) -> list[str]:
    """Kernels of torch's own ops: they have no table, models and rows meet them."""
    return [
        name
        for name in kernel_names(lab.target)
        if not isinstance(find(name), KernelOp)
        and any(e.kind == lab.target.kind for e in emitters(name))
    ]
