"""Linear layers whose weights are kept in groups: what meets the other columns is not read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from infopt.codegen.group_sparsity import GroupForm, dense_weight, largest
from infopt.codegen.kernel import Call, Config, kernel_op
from infopt.codegen.kernels.linear import FEW, LAYOUTS, TILING, activate, linear_legal, products
from infopt.codegen.kernels.rows import SHORT, contiguous, round_up
from infopt.compiler.accuracy import Exact
from infopt.compiler.cost import flops_of
from infopt.compiler.graph import Node
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

GROUPED_LAYOUTS = {**LAYOUTS, "values": contiguous, "columns": contiguous}


def group_form(target: Target, dtype: torch.dtype) -> GroupForm:
    """The groups that a target's kernel takes: on a CPU rows of the micro-kernel and what a panel
    has side by side, on a GPU the columns of a tile and 16 bytes or more of x."""
    if target.kind == "gpu":
        return GroupForm(64, 8)
    return GroupForm(8, 2 if dtype is torch.bfloat16 else 1)


def _cases() -> Any:
    for m, k, n, dtype in (
        (1, 33, 20, torch.float32),
        (37, 64, 96, torch.float32),
        (130, 71, 100, torch.bfloat16),
        (20, 50, 47, torch.float16),
    ):
        form = GroupForm(8, 2 if dtype is torch.bfloat16 else 1)
        x, w = torch.randn(m, k, dtype=dtype), (torch.randn(n, k) / 8).to(dtype)
        columns = largest(form.scores(w), form.counts(n, k)[1] // 2)
        given = x, form.packed(w, columns), columns
        yield given, {"features": n}
        rest = torch.randn(n, dtype=dtype), torch.randn(m, n, dtype=dtype)
        yield (*given, *rest), {"features": n, "activation": "gelu"}


@kernel_op(cases=_cases, tolerance=Exact())
def group_sparse_linear(
    x, values, columns, bias=None, residual=None, *, features, activation="none"
):
    """act(x weightᵀ + bias) + residual, for finite x [..., K] and a weight [features, K] of which
    groups are kept (codegen/group_sparsity.py).

    values [blocks, kept, rows, width]; columns int32 [blocks, kept], rising: column columns[b, j] *
    width and those beside it, of the rows from b * rows on, are values[b, j].
    """
    weight = dense_weight(values, columns, features, x.shape[-1])
    y = activate(F.linear(x, weight, bias), activation)
    return y if residual is None else y + residual


@flops_of("group_sparse_linear")
def _flops(node: Node) -> Size:
    x, values = (a.tensor_type for a in node.args[:2] if isinstance(a, Node))
    rows: Size = 1
    for size in x.shape[:-1]:
        rows = rows * size
    if isinstance(rows, int) and rows > FEW:
        rows = round_up(rows, 16)
    return 2 * rows * values.numel


def grouped_legal(
    target: Target,
    x: TensorType,
    values: TensorType,
    columns: TensorType,
    *rest: TensorType | None,
    features: int,
    activation: str,
) -> str | None:
    """Why no kernel takes such operands, None where one may."""
    if not x.rank or not isinstance(x.shape[-1], int):
        return f"rows of {x}"
    if values.rank != 4 or not values.is_static or columns.dtype is not torch.int32:
        return f"values {values}, columns {columns}"
    blocks, kept, rows, _ = map(int, values.shape)  # type: ignore[arg-type]
    if blocks != -(-features // rows) or not kept or columns.shape != (blocks, kept):
        return f"values {values} and columns {columns} of {features} features"
    weight = TensorType.dense((features, x.shape[-1]), values.dtype)
    return linear_legal(target, x, weight, *rest, activation=activation)


def _legal(
    target: Target, x: TensorType, values: TensorType, *rest: Any, **attrs: Any
) -> str | None:
    if reason := grouped_legal(target, x, values, *rest, **attrs):
        return reason
    form, (rows, width) = group_form(target, x.dtype), values.shape[2:]
    if (rows, width) != (form.rows, form.width):
        return f"groups of {rows} x {width}, expected {form.rows} x {form.width}"
    return None


@group_sparse_linear.kernel(
    "cpu", legal=_legal, layouts=GROUPED_LAYOUTS, over=("residual",), **TILING
)
def _group_sparse_linear(
    cfg: Config,
    target: Target,
    x: TensorType,
    values: TensorType,
    columns: TensorType,
    bias: TensorType | None,
    residual: TensorType | None,
    *,
    features: int,
    activation: str,
) -> list[Call]:
    names = {"x": "x", "w": "values", "bias": bias and "bias", "residual": residual and "residual"}
    weight = TensorType.dense((features, x.shape[-1]), values.dtype)
    held = "bf16" if x.dtype is torch.bfloat16 else "f32"
    few, panels = f"few_{SHORT[values.dtype]}", f"{held}_{SHORT[values.dtype]}"
    return [
        replace(
            call,
            symbol=f"infopt_group_sparse_{few if 'few_rows' in call.symbol else panels}",
            pointers=(*call.pointers, "columns"),
            numbers=(*call.numbers[:3], values.shape[1], *call.numbers[4:]),
        )
        for call in products(x, cfg, weight, names, activation, target, residual)
    ]
