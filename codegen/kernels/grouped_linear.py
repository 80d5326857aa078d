"""Linear layers of groups of rows, each group with a weight of its own: the experts of a mixture.

Rows come sorted by group; `ends` says where each group ends, so how much work there is, and for
whom, is known only when the program runs. A weight whose group has no rows is not read.
"""

from __future__ import annotations

from typing import Any

import sympy
import torch
import torch.nn.functional as F

from infopt.codegen.kernel import Call, Config, kernel_op
from infopt.codegen.kernels.linear import FEW, PANEL_CHUNK, only_if
from infopt.codegen.kernels.rows import (
    FLOATS,
    SHORT,
    as_rows,
    ceil_div,
    is_positive,
    round_up,
    row_strides,
)
from infopt.compiler.accuracy import Exact
from infopt.compiler.cost import flops_of
from infopt.compiler.graph import Node
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType, contiguous_strides

_SHARES = 32  # tasks for each core: the work of a step is divided when `ends` is known


def _ends(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _cases() -> Any:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        # groups without rows, of one row, of few and of many; rows of no group at the end
        for rows, k, n, ends in (
            (45, 40, 33, _ends(0, 1, 9, 9, 43)),
            (1, 64, 96, _ends(0, 0, 1, 1)),
            (6, 33, 130, _ends(2, 3, 6)),
            (150, 64, 48, _ends(0, 150, 150)),
            (9, 20, 17, _ends(0, 0)),
        ):
            x = torch.randn(rows, k, dtype=dtype)
            weight = torch.randn(len(ends), n, k, dtype=dtype) / 8
            yield (x, weight, ends), {}
            turned = torch.randn(len(ends), k, n, dtype=dtype) / 8
            yield (x, turned.transpose(1, 2), ends), {}


@kernel_op(cases=_cases, tolerance=Exact())
def grouped_linear(x, weight, ends):
    """y[r] = x[r] weight[g]ᵀ where ends[g - 1] <= r < ends[g], 0 for rows behind the last end.

    x [M, K] and weight [G, N, K] of one floating dtype; ends i32 [G], rising, from 0 to M at most;
    y [M, N]. The reference multiplies all rows by all weights, a kernel each row by its own.
    """
    starts = F.pad(ends[:-1], (1, 0))
    rows = torch.arange(x.shape[0], device=x.device)
    own = (starts[:, None] <= rows) & (rows < ends[:, None])
    return torch.where(own[:, :, None], x @ weight.transpose(1, 2), 0).sum(0)


@flops_of("grouped_linear")
def _flops(node: Node) -> Size:
    x, weight = (a.tensor_type for a in node.args[:2])  # type: ignore[union-attr]
    return 2 * x.numel * weight.shape[1]


def weight_strides(weight: TensorType) -> tuple[Size, ...] | None:
    """Rows or columns of each matrix must be neighbours."""
    _, row, column = weight.strides
    return None if 1 in (row, column) else contiguous_strides(weight.shape)


def grouped_reason(x: TensorType, weight: TensorType) -> str | None:
    """Why no kernel can compute it, None where those of every target can."""
    if x.dtype not in FLOATS or weight.dtype != x.dtype:
        return f"dtypes {x.dtype} and {weight.dtype}"
    if not all(isinstance(n, int) and n > 0 for n in weight.shape):
        return f"weights of open or empty sizes, {weight}"
    return None if is_positive(x.shape[0]) else "rows that may be none"


def grouped_legal(
    target: Target, x: TensorType, weight: TensorType, ends: TensorType
) -> str | None:
    if ends.dtype is not torch.int32:
        return f"ends {ends}"
    return grouped_reason(x, weight)


@grouped_linear.kernel(
    "cpu", legal=grouped_legal, layouts={"x": row_strides, "weight": weight_strides}
)
def _grouped_linear(
    cfg: Config, target: Target, x: TensorType, weight: TensorType, ends: TensorType
) -> list[Call]:
    rows, y = as_rows(x), as_rows(cfg.out)
    assert rows is not None and y is not None
    groups, n, k = weight.shape
    assert isinstance(k, int) and isinstance(groups, int)
    few = 0 if target.batch_invariant else FEW  # those kernels sum in another order
    in_rows = weight.strides[2] == 1
    pairs = x.dtype is torch.bfloat16
    panel = (round_up(k, 2) if pairs else k) * 16
    many = rows.count > few if isinstance(rows.count, int) else sympy.Gt(rows.count, few)
    packed: Call | None = None
    if in_rows and many not in (False, sympy.false):
        panels = ceil_div(rows.count, 16) + groups
        packed = Call(
            f"infopt_pack_groups_{SHORT[x.dtype]}",
            ("x", "ends"),
            (rows.count, k, groups, few, rows.stride, panel),
            only_if(many, panels),
            bytes=panels * panel * (2 if pairs else 4),
        )
    chunk = 96 if in_rows else 128
    shares = _SHARES * target.cores
    depth = min(-(-k // 32) * 32, 2048)
    products = 6144 * PANEL_CHUNK if in_rows else 4 * 128 * 128 + 64 * 8 * depth
    few_rows = 4 * FEW * (-(-k // 32) * 32 + 32)
    numbers = (
        rows.count,
        n,
        k,
        groups,
        *weight.strides,
        chunk,
        PANEL_CHUNK,
        few,
        rows.stride,
        y.stride,
        panel,
        shares,
    )
    call = Call(
        f"infopt_grouped_linear_{SHORT[x.dtype]}",
        (packed, "x", "weight", "ends", "out"),
        numbers,
        shares,
        scratch=max(products + 384 * (depth + 32), few_rows),
    )
    return [call]
