"""Linear layers one after another, without anything that lies between them in memory.

Thin factors come so: x -> x vᵀ -> (x vᵀ) uᵀ, and a whole MLP in factors is four products. A task
takes some panels of tokens through all of them; for few rows the layers run as they would alone.
"""

from __future__ import annotations

from itertools import chain, pairwise
from typing import Any

import sympy
import torch
import torch.nn.functional as F

from infopt.codegen.kernel import Call, Config, kernel_op
from infopt.codegen.kernels.linear import (
    ACTIVATIONS,
    FEW,
    PANEL_CHUNK,
    ROW_FORMAT,
    activate,
    few_chunk,
    only_if,
)
from infopt.codegen.kernels.rows import (
    FLOATS,
    SHORT,
    as_rows,
    ceil_div,
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

MOST = 4  # products in a chain
TASK_BYTES = 1 << 20  # of what lies between the products of a task, where two panels need no more
GPU_ROWS = 64  # of a program
Operands = tuple[TensorType | None, ...]


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


@kernel_op(cases=_cases, tolerance=Exact())
def linear_chain(
    x, w0, w1, w2=None, w3=None, b0=None, b1=None, b2=None, b3=None, residual=None, *, functions
):
    """x -> act(x wᵀ + b) for each w in turn, then + residual.

    x [..., K], every w [N, K of its own], b [N] or None, residual like the result. `functions`
    has one name for each of the two to four weights.
    """
    weights = [w for w in (w0, w1, w2, w3) if w is not None]
    for w, b, name in zip(weights, (b0, b1, b2, b3), functions, strict=False):
        x = activate(F.linear(x, w, b), name)
    return x if residual is None else x + residual


def _narrow_cases() -> Any:
    for m in (3, 37, 130):
        x = torch.randn(m, 64)
        v, u, v2, u2 = _factors(torch.bfloat16, 64, 16, 96, 24, 64)
        every = (x, v, u, v2, u2, None, torch.randn(96), None, None, torch.randn(m, 64))
        given = {"functions": ("none", "gelu", "none", "none")}
        yield every, given
        wide = [w.float() for w in (v, u)]
        yield (x.bfloat16(), *wide), {"functions": ("none", "none"), "out": torch.bfloat16}


@kernel_op(cases=_narrow_cases, tolerance=Bounded("rms_rel", 1.6e-2))
def narrow_linear_chain(
    x, w0, w1, w2=None, w3=None, b0=None, b1=None, b2=None, b3=None, residual=None, *,
    functions, out=torch.float32,
):  # fmt: skip
    """`linear_chain` with products of bf16-rounded operands, summed in f32, given in dtype `out`.

    x and the weights f32 or bf16, biases and residual f32.
    """
    weights = [w for w in (w0, w1, w2, w3) if w is not None]
    for w, b, name in zip(weights, (b0, b1, b2, b3), functions, strict=False):
        rounded = [t.to(torch.bfloat16).float() for t in (x, w)]
        x = activate(F.linear(rounded[0], rounded[1], None if b is None else b.float()), name)
    return (x if residual is None else x + residual).to(out)


@flops_of("linear_chain", "narrow_linear_chain")
def _flops(node: Node) -> Size:
    x, *weights = (a.tensor_type for a in node.args[: 1 + MOST] if isinstance(a, Node))
    rows: Size = 1
    for size in x.shape[:-1]:
        rows = rows * size
    if isinstance(rows, int) and rows > FEW:
        rows = round_up(rows, 16)
    return 2 * rows * sum(w.numel for w in weights)


def split(operands: Operands) -> tuple[list[TensorType], list[TensorType | None], Any]:
    """(weights, the bias of each, residual) of what follows x among the operands."""
    weights = [w for w in operands[:MOST] if w is not None]
    return weights, list(operands[MOST : MOST + len(weights)]), operands[2 * MOST]


def chain_reason(x: TensorType, operands: Operands, functions: tuple[str, ...]) -> str | None:
    """Why no kernel computes these products one after another, None where shapes allow it."""
    weights, biases, residual = split(operands)
    if len(weights) != len(functions) or None in operands[: len(weights)]:
        return f"{len(weights)} weights for {len(functions)} functions"
    if not set(functions) <= set(ACTIVATIONS):
        return f"functions {', '.join(functions)}"
    if any(w.rank != 2 or not all(isinstance(n, int) and n > 0 for n in w.shape) for w in weights):
        return "weights of open or empty sizes"
    if len({w.dtype for w in weights}) > 1 or len({b.dtype for b in biases if b}) > 1:
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
CHAIN_LAYOUTS |= {"x": row_strides, "residual": row_strides}
OVER = ("residual", "x")  # a task reads its rows before it writes any
# How many panels a task takes at most; fewer where all cores would not have enough tasks.
PANELS = {"panels": (PANEL_CHUNK, 4, 2)}


def widest_panels(k: int, weights: list[TensorType], itemsize: int) -> tuple[int, int]:
    """Bytes of a panel in each of the two buffers: what even products read, what odd ones do."""
    widths = [k, *(int(w.shape[0]) for w in weights[:-1])]
    sizes = [(round_up(n, 2) if itemsize == 2 else n) * 16 * itemsize for n in widths]
    return max(sizes[::2]), max(sizes[1::2])  # type: ignore[type-var]


def panels_of_task(panels: Size, most: int, panel_bytes: int, cores: int) -> int:
    """How many panels a task takes: `most` that its memory has room for, where that leaves no core
    idle for longer than fewer would; two panels at a time share what is read of a weight.

    panel_bytes: what lies between the products, for one panel
    """
    while most > 2 and most * panel_bytes > TASK_BYTES:
        most //= 2
    if not isinstance(panels, int):
        return most
    ways = [n for n in (8, 4, 2, 1) if n <= most]

    def turns(n: int) -> int:
        tasks = -(-panels // n)
        return -(-tasks // cores)

    return min(ways, key=lambda n: turns(n) * (4 * n + 1))


def rows_of_task(node: Node, rows: int, target: Target) -> int:
    """How many of so many rows a task of the usual schedule takes, for estimates."""
    if target.kind != "cpu":
        return GPU_ROWS
    x, *weights = (a.tensor_type for a in node.args[: 1 + MOST] if isinstance(a, Node))
    narrow = node.op is narrow_linear_chain or x.dtype is torch.bfloat16
    sizes = widest_panels(int(x.shape[-1]), weights, 2 if narrow else 4)
    return 16 * panels_of_task(-(-rows // 16), PANEL_CHUNK, sum(sizes), target.cores)


class _Chain:
    """The calls of one chain, for few rows and for panels."""

    def __init__(
        self,
        cfg: Config,
        target: Target,
        x: TensorType,
        operands: Operands,
        functions: tuple[str, ...],
        narrow: bool,
    ) -> None:
        self.target, self.most_panels = target, cfg.panels
        rows, out = as_rows(x), as_rows(cfg.out)
        assert rows is not None and out is not None
        self.x, self.rows = x, rows
        self.weights, biases, residual = split(operands)
        added = as_rows(residual) if residual is not None else None
        self.held = torch.bfloat16 if narrow or x.dtype is torch.bfloat16 else torch.float32
        self.between = self.held if narrow else x.dtype  # of few rows, from layer to layer
        self.bias_format = next((ROW_FORMAT[b.dtype] for b in biases if b is not None), 0)
        self.products = [
            (int(w.shape[0]), row_stride(w), ACTIVATIONS.index(name))
            for w, name in zip(self.weights, functions, strict=True)
        ]
        self.names = [(f"w{i}", f"b{i}" if b else None) for i, b in enumerate(biases)]
        self.residual = "residual" if residual else None
        self.added = (ROW_FORMAT[residual.dtype], added.stride) if added else (0, 0)
        self.out = (ROW_FORMAT[cfg.out.dtype], out.stride)

    def calls(self) -> list[Call]:
        m = self.rows.count
        few = sympy.sympify(m <= FEW) if isinstance(m, int) else sympy.Le(m, FEW)
        if self.target.batch_invariant:
            few = sympy.false  # that kernel sums in another order
        made = [] if few is sympy.false else [self.few_rows(few)]
        return made if few is sympy.true else [*made, self.panels(sympy.Not(few))]

    def few_rows(self, condition: Any) -> Call:
        """The last of the layers one by one; each reads the call before it."""
        given: str | Call = "x"
        stride, code = self.rows.stride, ROW_FORMAT[self.x.dtype]
        last = len(self.products) - 1
        for i, (n, w_stride, activation) in enumerate(self.products):
            ends, k, dtype = i == last, self.weights[i].shape[1], self.weights[i].dtype
            residual, added = (self.residual, self.added) if ends else (None, (0, 0))
            to = self.out if ends else (ROW_FORMAT[self.between], n)
            chunk = few_chunk(n, self.target.cores)
            weight, bias = self.names[i]
            pointers = (given, weight, None, bias, None, None, residual)
            given = Call(
                f"infopt_few_rows_{SHORT[dtype]}",
                (*pointers, "out") if ends else pointers,
                (
                    *(self.rows.count, n, k, w_stride, chunk, 1, activation, self.bias_format),
                    *(0, 0, *added, *to, stride, code),
                ),
                only_if(condition, ceil_div(n, chunk)),
                scratch=4 * FEW * (round_up(k, 32) + 32),
                bytes=0 if ends else only_if(condition, FEW * n * self.between.itemsize),
            )
            code, stride = to
        assert isinstance(given, Call)
        return given

    def panels(self, condition: Any) -> Call:
        rows, itemsize = self.rows, self.held.itemsize
        even, odd = widest_panels(int(rows.width), self.weights, itemsize)
        count = ceil_div(rows.count, 16)
        per_task = panels_of_task(count, self.most_panels, even + odd, self.target.cores)
        depth = min(max(-(-int(w.shape[1]) // 32) * 32 for w in self.weights), 2048)
        first, second = even * per_task, (even + odd) * per_task
        x = (ROW_FORMAT[self.x.dtype], rows.stride)
        numbers = [rows.count, rows.width, len(self.products), per_task, *x, *self.out]
        numbers += [*self.added, self.bias_format, first, second]
        return Call(
            f"infopt_linear_chain_{SHORT[self.held]}_{SHORT[self.weights[0].dtype]}",
            ("x", self.residual, "out", *chain.from_iterable(self.names)),
            (*numbers, *chain.from_iterable(self.products)),
            only_if(condition, ceil_div(count, per_task)),
            scratch=second + 6144 * per_task + 384 * (depth + 32),
        )


@linear_chain.kernel("cpu", legal=chain_legal, layouts=CHAIN_LAYOUTS, over=OVER, **PANELS)
def _linear_chain(
    cfg: Config,
    target: Target,
    x: TensorType,
    *operands: TensorType | None,
    functions: tuple[str, ...],
) -> list[Call]:
    return _Chain(cfg, target, x, operands, functions, False).calls()


@narrow_linear_chain.kernel("cpu", legal=_narrow_legal, layouts=CHAIN_LAYOUTS, over=OVER, **PANELS)
def _narrow_linear_chain(
    cfg: Config,
    target: Target,
    x: TensorType,
    *operands: TensorType | None,
    functions: tuple[str, ...],
    out: torch.dtype,
) -> list[Call]:
    return _Chain(cfg, target, x, operands, functions, True).calls()
