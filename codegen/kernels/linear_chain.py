"""Linear layers one after another, without anything that lies between them in memory.

Thin factors come so: x -> x vᵀ -> (x vᵀ) uᵀ, and a whole MLP in factors is four products, with a
gate six. A task takes some panels of tokens through all of them; for few rows the layers run as
they would alone.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F

from infopt.codegen.kernel import Call, Config, kernel_op
from infopt.codegen.kernels.chain_calls import (
    MOST,
    ChainCalls,
    Operands,
    beside_panels,
    panels_of_task,
    split,
    widest_panels,
)
from infopt.codegen.kernels.linear import ACTIVATIONS, FEW, PANEL_CHUNK, activate
from infopt.codegen.kernels.rows import (
    FLOATS,
    dense_last,
    is_positive,
    round_up,
    row_stride,
    row_strides,
)
from infopt.compiler.accuracy import Bounded, Exact
from infopt.compiler.cost import flops_of
from infopt.compiler.graph import Node
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

GPU_ROWS = 64  # of a program


def _factors(dtype: torch.dtype, *widths: int) -> list[torch.Tensor]:
    return [(torch.randn(n, k) / k**0.5).to(dtype) for k, n in pairwise(widths)]


def _cases() -> Any:
    for m, dtype in (
        (3, torch.float32),
        (37, torch.float32),
        (130, torch.bfloat16),
        (20, torch.float16),
    ):
        x = torch.randn(m, 64, dtype=dtype)
        v, u, v2, u2 = _factors(dtype, 64, 16, 96, 24, 64)
        b, b2 = torch.randn(96).to(dtype), torch.randn(64).to(dtype)
        yield (x, v, u), {"functions": ("none", "none")}
        yield (x, v, u, None, None, None, b), {"functions": ("none", "gelu")}
        every = (x, v, u, v2, u2, None, b, None, b2, torch.randn(m, 64).to(dtype))
        yield every, {"functions": ("none", "gelu", "none", "none")}
        v3, u3 = _factors(dtype, 64, 16, 96)
        gate = {"functions": ("none", "silu", "none", "none")}
        yield (*every, v3, u3, b), gate
        yield (x, v, u, v2, u2, None, None, None, None, None, None, u3), gate


@kernel_op(cases=_cases, tolerance=Exact())
def linear_chain(
    x, w0, w1, w2=None, w3=None, b0=None, b1=None, b2=None, b3=None, residual=None,
    up0=None, up1=None, up_bias=None, *, functions,
):  # fmt: skip
    """x -> act(x wᵀ + b) for each w in turn, then + residual.

    x [..., K], every w [N, K of its own], b [N] or None, residual like the result. `functions`
    has one name for each of the two to four weights. With up1 the second product is a gate: its
    result is multiplied by y up1ᵀ + up_bias, where y is x up0ᵀ, or what the gate reads.
    """
    y = x
    weights = [w for w in (w0, w1, w2, w3) if w is not None]
    for i, (w, b, name) in enumerate(zip(weights, (b0, b1, b2, b3), functions, strict=False)):
        gate = activate(F.linear(y, w, b), name)
        if i == 1 and up1 is not None:
            gate = gate * F.linear(y if up0 is None else F.linear(x, up0), up1, up_bias)
        y = gate
    return y if residual is None else y + residual


def _narrow_cases() -> Any:
    for m in (3, 37, 130):
        x = torch.randn(m, 64)
        v, u, v2, u2 = _factors(torch.bfloat16, 64, 16, 96, 24, 64)
        every = (x, v, u, v2, u2, None, torch.randn(96), None, None, torch.randn(m, 64))
        given = {"functions": ("none", "gelu", "none", "none")}
        yield every, given
        yield (*every, *_factors(torch.bfloat16, 64, 16, 96), torch.randn(96)), given
        wide = [w.float() for w in (v, u)]
        yield (x.bfloat16(), *wide), {"functions": ("none", "none"), "out": torch.bfloat16}


@kernel_op(cases=_narrow_cases, tolerance=Bounded("rms_rel", 1.6e-2))
def narrow_linear_chain(
    x, w0, w1, w2=None, w3=None, b0=None, b1=None, b2=None, b3=None, residual=None,
    up0=None, up1=None, up_bias=None, *, functions, out=torch.float32,
):  # fmt: skip
    """`linear_chain` with products of bf16-rounded operands, summed in f32, given in dtype `out`.

    x and the weights f32 or bf16, biases and residual f32.
    """

    def product(x, w, b=None):
        rounded = [t.to(torch.bfloat16).float() for t in (x, w)]
        return F.linear(rounded[0], rounded[1], None if b is None else b.float())

    y = x
    weights = [w for w in (w0, w1, w2, w3) if w is not None]
    for i, (w, b, name) in enumerate(zip(weights, (b0, b1, b2, b3), functions, strict=False)):
        gate = activate(product(y, w, b), name)
        if i == 1 and up1 is not None:
            gate = gate * product(y if up0 is None else product(x, up0), up1, up_bias)
        y = gate
    return (y if residual is None else y + residual).to(out)


@flops_of("linear_chain", "narrow_linear_chain")
def _flops(node: Node) -> Size:
    x = node.args[0].tensor_type  # type: ignore[union-attr]
    rows: Size = 1
    for size in x.shape[:-1]:
        rows = rows * size
    if isinstance(rows, int) and rows > FEW:
        rows = round_up(rows, 16)
    return 2 * rows * sum(w.numel for w in chain_weights(node))


def chain_weights(node: Node) -> list[TensorType]:
    """All weights of a chain."""
    chain = split(tuple(a.tensor_type if isinstance(a, Node) else None for a in node.args[1:]))
    return [*chain.weights, *(w for w in (chain.up0, chain.up1) if w is not None)]


def chain_reason(x: TensorType, operands: Operands, functions: tuple[str, ...]) -> str | None:
    """Why no kernel computes these products one after another, None where shapes allow it."""
    weights, biases, residual, up0, up1, up_bias = split(operands)
    beside = [w for w in (up0, up1) if w is not None]
    if len(weights) != len(functions) or None in operands[: len(weights)]:
        return f"{len(weights)} weights for {len(functions)} functions"
    if not set(functions) <= set(ACTIVATIONS):
        return f"functions {', '.join(functions)}"
    if any(w.rank != 2 or not all(isinstance(n, int) and n > 0 for n in w.shape) for w in weights):
        return "weights of open or empty sizes"
    if up1 is None and (up0 is not None or up_bias is not None):
        return "a factor of what no gate multiplies"
    for w, like in zip((up0, up1), weights, strict=False):
        if w is not None and w.shape != like.shape:
            return f"gate and up differ: factors {like} and {w}"
    if up1 is not None and row_stride(up1) != row_stride(weights[1]):
        return "rows of gate and up that lie differently"
    biases = [*biases, up_bias]
    if len({w.dtype for w in (*weights, *beside)}) > 1 or len({b.dtype for b in biases if b}) > 1:
        return "weights or biases of several dtypes"
    if any(b is not None and b.rank != 1 for b in biases):
        return "a bias that is not of one dimension"
    if not (x.rank and is_positive(x.shape[-1])):
        return "an empty product"
    if residual is not None and residual.shape != (*x.shape[:-1], weights[-1].shape[0]):
        return "a residual that is broadcast"
    return None


def chain_legal(
    target: Target, x: TensorType, *operands: TensorType | None, functions: tuple[str, ...]
) -> str | None:
    given = {t.dtype for t in (x, *operands) if t is not None}
    if given - {x.dtype} or x.dtype not in FLOATS:
        return f"dtypes {', '.join(sorted(map(str, given)))}"
    return chain_reason(x, operands, functions)


def _narrow_legal(
    target: Target,
    x: TensorType,
    *operands: TensorType | None,
    functions: tuple[str, ...],
    out: torch.dtype,
) -> str | None:
    given = {t.dtype for t in (x, *operands) if t is not None} | {out}
    if given - {torch.float32, torch.bfloat16}:
        return f"dtypes {', '.join(sorted(map(str, given)))}"
    return chain_reason(x, operands, functions)


CHAIN_LAYOUTS = {name + str(i): dense_last for name in "wb" for i in range(MOST)}
CHAIN_LAYOUTS |= dict.fromkeys(("up0", "up1", "up_bias"), dense_last)
CHAIN_LAYOUTS |= {"x": row_strides, "residual": row_strides}
OVER = ("residual", "x")  # a task reads its rows before it writes any
# How many panels a task takes at most; fewer where all cores would not have enough tasks.
PANELS = {"panels": (PANEL_CHUNK, 4, 2)}


def rows_of_task(node: Node, rows: int, target: Target) -> int:
    """How many of so many rows a task of the usual schedule takes, for estimates."""
    if target.kind != "cpu":
        return GPU_ROWS
    x, *operands = (a.tensor_type if isinstance(a, Node) else None for a in node.args)
    assert x is not None
    chain = split(tuple(operands))
    narrow = node.op is narrow_linear_chain or x.dtype is torch.bfloat16
    itemsize = 2 if narrow else 4
    size = sum(widest_panels(int(x.shape[-1]), chain.weights, itemsize))  # type: ignore[arg-type]
    size += beside_panels(chain.weights, itemsize) if chain.up0 else 0
    return 16 * panels_of_task(-(-rows // 16), PANEL_CHUNK, size, target.cores)


@linear_chain.kernel("cpu", legal=chain_legal, layouts=CHAIN_LAYOUTS, over=OVER, **PANELS)
def _linear_chain(
    cfg: Config,
    target: Target,
    x: TensorType,
    *operands: TensorType | None,
    functions: tuple[str, ...],
) -> list[Call]:
    return ChainCalls(cfg, target, x, operands, functions, False).calls()


@narrow_linear_chain.kernel("cpu", legal=_narrow_legal, layouts=CHAIN_LAYOUTS, over=OVER, **PANELS)
def _narrow_linear_chain(
    cfg: Config,
    target: Target,
    x: TensorType,
    *operands: TensorType | None,
    functions: tuple[str, ...],
    out: torch.dtype,
) -> list[Call]:
    return ChainCalls(cfg, target, x, operands, functions, True).calls()
