"""Low-rank adapters of a linear layer, of each row one of its own or none.

(S-LoRA, Sheng et al., 2024; Punica, Chen et al., 2024.) Which row has which adapter is data, and
adapters lie in memory that may be written between two calls, so neither is compiled.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from infopt.codegen.kernel import Call, Config, kernel_op
from infopt.codegen.kernels.rows import (
    FLOATS,
    SHORT,
    as_rows,
    contiguous,
    round_up,
    row_strides,
)
from infopt.codegen.sizes import product
from infopt.compiler.accuracy import Exact
from infopt.compiler.cost import flops_of
from infopt.compiler.graph import Node
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

_TOGETHER = 8  # rows, as in csrc/adapters.h


def _cases() -> Any:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        # one row, rows of several slots and of none, runs longer than a block, sequences
        for shape, k, n, ranks, slots in (
            ((1,), 40, 33, (5, 2), (1,)),
            ((6,), 64, 96, (16, 16, 16), (0, 2, -1, 1, 1, 5)),
            ((21,), 33, 130, (17, 0), (0,) * 12 + (1,) * 4 + (-1,) * 5),
            ((3, 11), 50, 70, (1, 8), (1, -1, 0)),
            ((2, 2, 3), 16, 16, (4,), (-1, -1)),
        ):
            room = max(ranks)
            x, y = torch.randn(*shape, k, dtype=dtype), torch.randn(*shape, n, dtype=dtype)
            a = torch.randn(len(ranks), room, k, dtype=dtype) / 8
            b = torch.randn(len(ranks), room, n, dtype=dtype) / 4
            yield (y, x, a, b, torch.tensor(ranks), torch.tensor(slots)), {}


@kernel_op(cases=_cases, tolerance=Exact(), in_place="y")
def adapter_linear(y, x, a, b, ranks, slots):
    """y[r] + (x[r] a[s]ᵀ) b[s] where row r has slot s, y[r] where it has none.

    x [..., K], y [..., N]; a [S, R, K] and b [S, R, N] of the same dtype, of which the first
    ranks[s] rows count, ranks i64 [S]; slots i64, whose sizes are the first of those of x: the rows
    behind have one slot number, of which those outside 0 to S - 1 stand for none. The reference
    multiplies all rows by all adapters, a kernel each row by its own.
    """
    count, room, _ = a.shape
    of_row = slots[(..., *[None] * (x.dim() - slots.dim()))]
    inner = torch.arange(room, device=x.device) < ranks[:, None]
    own = of_row == torch.arange(count, device=x.device)
    counts = own[..., None] & inner
    down = F.linear(x, a.flatten(0, 1)).unflatten(-1, (count, room))
    added = torch.where(counts, down, 0).flatten(-2) @ b.flatten(0, 1)
    return torch.where(counts.flatten(-2).any(-1, keepdim=True), y + added, y)


@flops_of("adapter_linear")
def _flops(node: Node) -> Size:
    y, x, a = (arg.tensor_type for arg in node.args[:3])  # type: ignore[union-attr]
    return 2 * a.shape[1] * (x.numel + y.numel)


def adapter_reason(
    y: TensorType,
    x: TensorType,
    a: TensorType,
    b: TensorType,
    ranks: TensorType,
    slots: TensorType,
) -> str | None:
    """Why no kernel can compute it, None where those of every target can."""
    if x.dtype not in FLOATS or any(t.dtype != x.dtype for t in (y, a, b)):
        return f"dtypes {', '.join(str(t.dtype) for t in (y, x, a, b))}"
    if (ranks.dtype, slots.dtype) != (torch.int64, torch.int64):
        return f"ranks {ranks}, slots {slots}"
    if not all(isinstance(n, int) and n > 0 for n in (*a.shape, *b.shape)):
        return f"adapters of open or empty sizes, {a} and {b}"
    return None if as_rows(y) is not None else f"strides of {y}"


def legal(target: Target, *types: TensorType) -> str | None:
    return adapter_reason(*types)


LAYOUTS = {
    "x": row_strides,
    "a": contiguous,
    "b": contiguous,
    "ranks": contiguous,
    "slots": contiguous,
}


def rows_of_slot(x: TensorType, slots: TensorType) -> Size:
    """How many neighbouring rows of x share a slot number."""
    return product(x.shape[slots.rank : -1])


@adapter_linear.kernel("cpu", legal=legal, layouts=LAYOUTS)
def _adapter_linear(
    cfg: Config,
    target: Target,
    y: TensorType,
    x: TensorType,
    a: TensorType,
    b: TensorType,
    ranks: TensorType,
    slots: TensorType,
) -> Call:
    rows, out = as_rows(x), as_rows(cfg.out)
    assert rows is not None and out is not None
    count, room, k = a.shape
    assert isinstance(k, int) and isinstance(room, int)
    numbers = (
        rows.count,
        k,
        b.shape[2],
        room,
        count,
        rows_of_slot(x, slots),
        rows.stride,
        out.stride,
    )
    return Call(
        f"infopt_adapter_linear_{SHORT[x.dtype]}",
        ("x", "a", "b", "ranks", "slots", "out"),
        numbers,
        rows.count,
        4 * _TOGETHER * (round_up(k, 32) + 32 + round_up(room, 16)),
    )
