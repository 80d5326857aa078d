"""The native calls of a linear layer whose weight is stored in few bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy
import torch

from infopt.codegen.kernel import Call, Config
from infopt.codegen.kernels.linear import (
    ACTIVATIONS,
    FEW,
    ROW_FORMAT,
    few_chunk,
    only_if,
    panels_of_task,
    to_panels,
)
from infopt.codegen.kernels.rows import Rows, as_rows, ceil_div, round_up
from infopt.codegen.weight_formats.integers import BLOCK, Integers
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

# In the order of the rounding's numbers in codegen/csrc/byte_panels.h.
ROUNDED_BY_KERNELS = (
    *("int8", "int8-symmetric", "int8-affine", "int8-affine-per-token"),
    "int8-static",
)
PANEL_BYTES = 6  # the format of panels of bytes, beside ROW_FORMAT and PANEL_FORMAT


def packed_bytes(t: TensorType) -> Size:
    """What rows occupy as panels of bytes (codegen/csrc/byte_panels.h)."""
    rows = as_rows(t)
    assert rows is not None
    return ceil_div(rows.count, 16) * (ceil_div(rows.width, 4) * 64 + 128)


@dataclass(frozen=True)
class Stored:
    """A weight as a kernel finds it, and as what it is multiplied with.

    activations, step, zero: as the op's attributes. out_step, out_zero: likewise; where out_step
    is not 0, the results are panels of bytes
    """

    codec: Integers
    activations: str
    values: TensorType
    scales: TensorType
    step: float = 0.0
    zero: int = 0
    out_step: float = 0.0
    out_zero: int = 0

    @property
    def as_bytes(self) -> bool:
        return self.packed or self.activations in ROUNDED_BY_KERNELS

    @property
    def packed(self) -> bool:
        """Whether x is panels of bytes already."""
        return self.activations == "packed"

    @property
    def rounding(self) -> int:
        """The number of the rounding of rows; 0 where there is none."""
        if self.activations not in ROUNDED_BY_KERNELS:
            return 0
        return ROUNDED_BY_KERNELS.index(self.activations)

    def numbers(self, x: torch.dtype) -> tuple[Size | float, ...]:
        """Numbers 15 and on of kernels_stored.cpp; x: its dtype."""
        scale_bytes = self.codec.scale_dtype.itemsize
        return (
            *(self.codec.layout, self.codec.group, self.scales.strides[0], scale_bytes),
            *(PANEL_BYTES if self.packed else ROW_FORMAT[x], self.rounding),
            *(float(self.step), self.zero, float(self.out_step), self.out_zero),
        )


def stored_products(
    cfg: Config,
    target: Target,
    x: TensorType,
    stored: Stored,
    names: dict[str, str | None],
    activation: str,
    bias: TensorType | None,
    residual: TensorType | None = None,
) -> list[Call]:
    """The calls for few rows and for many; where the number of rows is open, both.

    names: parameter of x, w, up, bias, up_bias, residual, scales, up_scales, sums, up_sums,
    remainder, up_remainder, out_factors.
    """
    rows, y = as_rows(x), as_rows(cfg.out)
    assert rows is not None and y is not None
    m, n, k = rows.count, stored.values.shape[0], rows.width
    r = as_rows(residual) if residual is not None else None
    n_chunk, sides = (96 if target.level == "amx" else 48) * cfg.groups, 2 if names.get("up") else 1

    def call(
        symbol: str,
        first: Any,
        chunk: Size,
        per_task: int,
        x_stride: Size,
        tasks: Size,
        scratch: Size,
    ) -> Call:
        pointers = (
            *(first, names["w"], names.get("up"), names.get("bias"), names.get("up_bias"), None),
            *(names.get("residual"), "out", names["scales"], names.get("up_scales")),
            *((names["sums"], names.get("up_sums")) if stored.as_bytes else (None, None)),
            *(names.get("remainder"), names.get("up_remainder"), names.get("out_factors")),
        )
        numbers = (
            *(m, n, k, stored.values.strides[0], chunk, per_task, ACTIVATIONS.index(activation)),
            *(ROW_FORMAT[bias.dtype] if bias else 0, 0, 0),
            *((ROW_FORMAT[residual.dtype], r.stride) if residual and r else (0, 0)),
            *(PANEL_BYTES if stored.out_step else ROW_FORMAT[cfg.out.dtype], y.stride, x_stride),
            *stored.numbers(x.dtype),
        )
        return Call(symbol, pointers, numbers, tasks, scratch)

    few: Any = m <= FEW if isinstance(m, int) else sympy.Le(m, FEW)
    if target.batch_invariant and not stored.as_bytes:
        few = False  # that kernel sums in another order; of integers the order does not matter
    if target.batch_invariant and stored.codec.group:
        few = False
    calls = []
    if few not in (False, sympy.false):
        chunk, padded = few_chunk(n, target.cores), round_up(k, BLOCK)
        calls.append(
            call(
                f"infopt_few_rows_stored_{'bytes' if stored.as_bytes else 'f32'}",
                names["x"],
                chunk,
                1,
                rows.stride,
                tasks=only_if(few, ceil_div(n, chunk)),
                scratch=64 + round_up(m, 4) * (12 + padded * (1 if stored.as_bytes else 4)),
            )
        )
    if few in (True, sympy.true):
        return calls
    many = not few if isinstance(few, bool) else sympy.Gt(m, FEW)
    panels = ceil_div(m, 16)
    per_task = cfg.panels or panels_of_task(panels, ceil_div(n, n_chunk), target.cores)
    tasks = only_if(many, ceil_div(n, n_chunk) * ceil_div(panels, per_task))
    scratch = 6144 * per_task * sides
    first, x_stride, kind = _panels(str(names["x"]), rows, x.dtype, stored, only_if(many, panels))
    symbol = f"infopt_linear_stored_{kind}"
    if kind == "bytes":
        if not stored.codec.group and stored.codec.layout == 8:
            symbol = "infopt_linear_bytes"
        scratch += 96 * (min(round_up(k, 64), 4096) + 64)
    else:
        scratch += 384 * (min(round_up(k, 32), 2048) + 32)
    calls.append(call(symbol, first, n_chunk, per_task, x_stride, tasks=tasks, scratch=scratch))
    return calls


def _panels(
    name: str, rows: Rows, dtype: torch.dtype, stored: Stored, tasks: Size
) -> tuple[Call | str, Size, str]:
    """The activations in panels, the stride of a panel, and what the panels hold."""
    if not stored.as_bytes:
        held = torch.bfloat16 if stored.activations == "bf16" else torch.float32
        if dtype is torch.bfloat16:
            held = dtype
        packed = to_panels(name, rows, dtype, held, tasks)
        return packed, packed.numbers[5], "bf16" if held is torch.bfloat16 else "f32"
    panels, stride = ceil_div(rows.count, 16), ceil_div(rows.width, 4) * 64
    if stored.packed:
        return name, stride, "bytes"
    fixed = (float(stored.step), stored.zero) if stored.step else ()
    codes = Call(
        "infopt_quantize_panels",
        (name,),
        (rows.count, rows.width, ROW_FORMAT[dtype], rows.stride, stored.rounding, *fixed),
        tasks,
        bytes=panels * (stride + 128),
    )
    return codes, stride, "bytes"
