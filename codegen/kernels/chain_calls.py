"""The native calls of linear layers one after another, for few rows and for panels of tokens."""

from __future__ import annotations

from itertools import chain
from typing import Any, NamedTuple

import sympy
import torch

from infopt.codegen.kernel import Call, Config
from infopt.codegen.kernels.linear import ACTIVATIONS, FEW, ROW_FORMAT, few_chunk, only_if
from infopt.codegen.kernels.rows import SHORT, as_rows, ceil_div, round_up, row_stride
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

MOST = 4  # products in a chain
TASK_BYTES = 1 << 20  # of what lies between the products of a task, where two panels need no more
Operands = tuple[TensorType | None, ...]


class Chain(NamedTuple):
    """What follows x among the operands of a chain; up0, up1, up_bias: of what a gate multiplies"""

    weights: list[TensorType]
    biases: list[TensorType | None]
    residual: TensorType | None
    up0: TensorType | None = None
    up1: TensorType | None = None
    up_bias: TensorType | None = None


def split(operands: Operands) -> Chain:
    weights = [w for w in operands[:MOST] if w is not None]
    return Chain(weights, list(operands[MOST : MOST + len(weights)]), *operands[2 * MOST :])


def widest_panels(k: int, weights: list[TensorType], itemsize: int) -> tuple[int, int]:
    """Bytes of a panel in each of the two buffers: what even products read, what odd ones do."""
    widths = [k, *(int(w.shape[0]) for w in weights[:-1])]
    sizes = [(round_up(n, 2) if itemsize == 2 else n) * 16 * itemsize for n in widths]
    return max(sizes[::2]), max(sizes[1::2])  # type: ignore[type-var]


def beside_panels(weights: list[TensorType], itemsize: int) -> int:
    """Bytes of a panel of what a gate's multiplicand is made of: as wide as the first product."""
    return widest_panels(1, weights[:2], itemsize)[1]


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


class _Rows(NamedTuple):
    """Rows that a call reads or writes."""

    at: str | Call | None = None
    format: int = 0
    stride: Size = 0


class ChainCalls:
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
        self.rows, self.chain = rows, split(operands)
        self.weights, biases, residual, *_ = self.chain
        added = as_rows(residual) if residual is not None else None
        self.held = torch.bfloat16 if narrow or x.dtype is torch.bfloat16 else torch.float32
        self.between = self.held if narrow else x.dtype  # of few rows, from layer to layer
        self.multiplied = torch.float32 if narrow else x.dtype  # of few rows, by an op of its own
        self.bias_format = next(
            (ROW_FORMAT[b.dtype] for b in (*biases, self.chain.up_bias) if b), 0
        )
        self.products = [
            (int(w.shape[0]), row_stride(w), ACTIVATIONS.index(name))
            for w, name in zip(self.weights, functions, strict=True)
        ]
        self.names = [(f"w{i}", f"b{i}" if b else None) for i, b in enumerate(biases)]
        self.x = _Rows("x", ROW_FORMAT[x.dtype], rows.stride)
        self.residual = _Rows()
        if residual is not None and added is not None:
            self.residual = _Rows("residual", ROW_FORMAT[residual.dtype], added.stride)
        self.out = (ROW_FORMAT[cfg.out.dtype], out.stride)
        self.up_bias = "up_bias" if self.chain.up_bias else None

    def calls(self) -> list[Call]:
        m = self.rows.count
        few = sympy.sympify(m <= FEW) if isinstance(m, int) else sympy.Le(m, FEW)
        if self.target.batch_invariant:
            few = sympy.false  # that kernel sums in another order
        made = [] if few is sympy.false else [self.few_rows(few)]
        return made if few is sympy.true else [*made, self.panels(sympy.Not(few))]

    def few_rows(self, condition: Any) -> Call:
        """The last of the layers one by one; each reads the call before it."""
        given, last = self.x, len(self.products) - 1
        for i, (weight, bias) in enumerate(self.names):
            to = self.between if i < last else None
            more: dict[str, Any] = {"residual": self.residual} if i == last else {}
            if i == 1 and self.chain.up1 and not self.chain.up0:
                more |= {"up": "up1", "up_bias": self.up_bias}
            elif i == 1 and self.chain.up1:
                beside = self._few(condition, self.x, "up0", self.weights[0], self.between)
                more["multiplier"] = self._few(
                    condition, beside, "up1", self.weights[1], self.multiplied, bias=self.up_bias
                )
                to = to and self.multiplied
            more |= {"bias": bias, "activation": self.products[i][2]}
            given = self._few(condition, given, weight, self.weights[i], to, **more)
        assert isinstance(given.at, Call)
        return given.at

    def _few(
        self,
        condition: Any,
        x: _Rows,
        name: str,
        weight: TensorType,
        to: torch.dtype | None,
        bias: str | None = None,
        activation: int = 0,
        up: str | None = None,
        up_bias: str | None = None,
        multiplier: _Rows = _Rows(),  # noqa: B008
        residual: _Rows = _Rows(),  # noqa: B008
    ) -> _Rows:
        """One layer; to: the dtype of its result, None where it is that of the chain."""
        n, k = int(weight.shape[0]), int(weight.shape[1])
        chunk = few_chunk(n, self.target.cores)
        out = self.out if to is None else (ROW_FORMAT[to], n)
        pointers = (x.at, name, up, bias, up_bias, multiplier.at, residual.at)
        call = Call(
            f"infopt_few_rows_{SHORT[weight.dtype]}",
            (*pointers, "out") if to is None else pointers,
            (
                *(self.rows.count, n, k, row_stride(weight), chunk, 1, activation),
                *(self.bias_format, *multiplier[1:], *residual[1:], *out, x.stride, x.format),
            ),
            only_if(condition, ceil_div(n, chunk)),
            scratch=4 * FEW * (round_up(k, 32) + 32),
            bytes=0 if to is None else only_if(condition, FEW * n * to.itemsize),
        )
        return _Rows(call, *out)

    def panels(self, condition: Any) -> Call:
        rows, itemsize = self.rows, self.held.itemsize
        up0, up1 = self.chain.up0, self.chain.up1
        even, odd = widest_panels(int(rows.width), self.weights, itemsize)
        beside = beside_panels(self.weights, itemsize) if up0 else 0
        count = ceil_div(rows.count, 16)
        between = even + odd + beside
        per_task = panels_of_task(count, self.most_panels, between, self.target.cores)
        depth = min(max(-(-int(w.shape[1]) // 32) * 32 for w in self.weights), 2048)
        places = [n * per_task for n in (even, between, even + odd)]
        numbers = [rows.count, rows.width, len(self.products), per_task]
        numbers += [self.x.format, self.x.stride, *self.out, *self.residual[1:], self.bias_format]
        numbers += [*places[:2], row_stride(up0) if up0 else 0, places[2]]
        pointers = ("x", self.residual.at, "out", up0 and "up0", up1 and "up1", self.up_bias)
        return Call(
            f"infopt_linear_chain_{SHORT[self.held]}_{SHORT[self.weights[0].dtype]}",
            (*pointers, *chain.from_iterable(self.names)),
            (*numbers, *chain.from_iterable(self.products)),
            only_if(condition, ceil_div(count, per_task)),
            scratch=places[1] + 6144 * per_task * (2 if up1 else 1) + 384 * (depth + 32),
        )
