"""Activations kept where they matter, and linear layers that read no weights for the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import sympy
import torch

from infopt.codegen.kernel import Call, Config, kernel_op
from infopt.codegen.kernels.linear import (
    FEW,
    LAYOUTS,
    TILING,
    activate,
    gated_legal,
    linear_legal,
    only_if,
    products,
)
from infopt.codegen.kernels.rows import (
    ELEMENT,
    FLOATS,
    SHORT,
    as_rows,
    ceil_div,
    contiguous,
    round_up,
    row_stride,
)
from infopt.compiler.accuracy import Exact
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType

_COPY_DIMS = 6  # of infopt_copy's numbers


def _kept_cases() -> Any:
    x, norms = torch.randn(5, 40), torch.rand(40) + 0.5
    yield (x, norms), {"keep": 13}
    yield (x.bfloat16()[0], None), {"keep": 20}
    yield (torch.randn(2, 3, 7).half(), None), {"keep": 7}
    yield (torch.tensor([[0.0, -1, 1, -1, 2, 0], [0, 0, 0, 0, 0, 3]]), None), {"keep": 3}


@kernel_op(cases=_kept_cases, tolerance=Exact())
def keep_largest(x, norms=None, *, keep):
    """Each row's `keep` places of the largest |x| * norms, and 0 elsewhere: like x [..., K].

    norms: f32 [K]; without them the largest |x|. Of equal places the first stay.
    """
    score = x.abs().float() if norms is None else x.abs().float() * norms.float()
    rank = score.sort(dim=-1, descending=True, stable=True)[1].sort(dim=-1)[1]
    return torch.where(rank < keep, x, 0)


def _sparse(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.randn(shape, dtype=dtype)
    return torch.where(torch.rand(shape) < 0.5, 0, x)


def _cases() -> Any:
    for m, k, n, dtype in (
        (1, 70, 96, torch.float32),
        (1, 64, 1041, torch.bfloat16),
        (3, 33, 40, torch.float16),
        (37, 64, 96, torch.bfloat16),
    ):
        x, w = _sparse(m, k, dtype=dtype), torch.randn(k, n, dtype=dtype) / 8
        yield (x, w), {}
        rest = torch.randn(n, dtype=dtype), torch.randn(m, n, dtype=dtype)
        yield (x, w, *rest), {"activation": "gelu"}


@kernel_op(cases=_cases, tolerance=Exact())
def sparse_linear(x, weight, bias=None, residual=None, *, activation="none"):
    """act(x weight + bias) + residual; x [..., K], weight [K, N] with finite numbers: for few rows
    those of weight that meet a zero of x are not read."""
    y = x @ weight
    y = activate(y if bias is None else y + bias, activation)
    return y if residual is None else y + residual


def _gated_cases() -> Any:
    for m in (1, 21):
        w = torch.randn(2, 50, 96) / 8
        yield (_sparse(m, 50), w[0], w[1]), {"activation": "silu"}


@kernel_op(cases=_gated_cases, tolerance=Exact())
def sparse_gated_linear(x, gate, up, *, activation="silu"):
    """act(x gate) * (x up); x [..., K], gate and up [K, N] as in sparse_linear."""
    return activate(x @ gate, activation) * (x @ up)


def _kept_legal(target: Target, x: TensorType, norms: TensorType | None, **attrs: Any) -> Any:
    if x.dtype not in FLOATS or (norms is not None and norms.dtype is not torch.float32):
        return f"{x}, norms {norms}"
    return None if x.rank and isinstance(x.shape[-1], int) else f"rows of {x}"


@keep_largest.kernel("cpu", legal=_kept_legal, layouts={"x": contiguous, "norms": contiguous})
def _kept(
    cfg: Config, target: Target, x: TensorType, norms: TensorType | None, *, keep: int
) -> Call:
    rows = as_rows(x)
    assert rows is not None
    numbers = (rows.width, keep, ELEMENT[x.dtype])
    names = ("x", norms and "norms", "out")
    return Call("infopt_keep_largest", names, numbers, rows.count, 4 * round_up(rows.width, 16))


def _turned(t: TensorType) -> TensorType:
    """The type of a weight [K, N] as torch stores it, [N, K]."""
    return TensorType.dense((t.shape[1], t.shape[0]), t.dtype)


def _legal(target: Target, x: TensorType, weight: TensorType, *rest: Any, **attrs: Any) -> Any:
    if weight.rank != 2 or not all(isinstance(s, int) and s > 0 for s in weight.shape):
        return f"weight {weight}"
    return linear_legal(target, x, _turned(weight), *rest, **attrs)


def _gated_legal(
    target: Target, x: TensorType, gate: TensorType, up: TensorType, **attrs: Any
) -> Any:
    reason = _legal(target, x, gate, **attrs) or _legal(target, x, up, **attrs)
    return reason or gated_legal(target, x, _turned(gate), _turned(up), **attrs)


def _turn(name: str, weight: TensorType, many: Any, cores: int) -> Call:
    """The weight as torch stores it, made for the calls of many rows alone."""
    (k, n), stride, code = weight.shape, row_stride(weight), ELEMENT[weight.dtype]
    rest = (0,) * (_COPY_DIMS - 2)
    sizes, read, written = (n, k, *rest), (1, stride, *rest), (k, 1, *rest)
    tasks = 4 * cores
    numbers = (2, code, code, tasks, *sizes, *read, *written)
    size = n * k * weight.dtype.itemsize
    return Call("infopt_copy", (name,), numbers, only_if(many, tasks), bytes=size)


def _calls(
    cfg: Config,
    target: Target,
    x: TensorType,
    weight: TensorType,
    names: dict[str, str | None],
    activation: str,
    residual: TensorType | None = None,
) -> list[Call]:
    rows = as_rows(x)
    assert rows is not None
    k, n = weight.shape
    few = rows.count <= FEW if isinstance(rows.count, int) else sympy.Le(rows.count, FEW)
    if target.batch_invariant:
        few = False
    many = not few if isinstance(few, bool) else sympy.Gt(rows.count, FEW)
    given: dict[str, Any] = dict(names)
    for side in ("w", "up"):
        if names.get(side):
            given[side] = _turn(str(names[side]), weight, many, target.cores)
    chunk = max(16, round_up(ceil_div(n, target.cores), 16))
    calls = []
    for call in products(x, cfg, _turned(weight), given, activation, target, residual):
        if call.symbol.startswith("infopt_few_rows"):
            numbers = (*call.numbers[:3], row_stride(weight), chunk, *call.numbers[5:])
            call = replace(
                call,
                symbol=f"infopt_skip_rows_{SHORT[weight.dtype]}",
                pointers=(call.pointers[0], names["w"], names.get("up"), *call.pointers[3:]),
                numbers=numbers,
                tasks=only_if(few, ceil_div(n, chunk)),
                scratch=8 * (round_up(k, 16) + 16) + 8 * chunk,
            )
        calls.append(call)
    return calls


@sparse_linear.kernel("cpu", legal=_legal, layouts=LAYOUTS, **TILING)
def _sparse_linear(
    cfg: Config,
    target: Target,
    x: TensorType,
    weight: TensorType,
    bias: Any,
    residual: Any,
    *,
    activation: str,
) -> list[Call]:
    names = {"x": "x", "w": "weight", "bias": bias and "bias", "residual": residual and "residual"}
    return _calls(cfg, target, x, weight, names, activation, residual)


@sparse_gated_linear.kernel("cpu", legal=_gated_legal, layouts=LAYOUTS, **TILING)
def _sparse_gated(
    cfg: Config,
    target: Target,
    x: TensorType,
    gate: TensorType,
    up: TensorType,
    *,
    activation: str,
) -> list[Call]:
    return _calls(cfg, target, x, gate, {"x": "x", "w": "gate", "up": "up"}, activation)
