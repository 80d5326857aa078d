"""Linear layers: y = act(x wᵀ + bias) + residual, w as torch stores it, x in token panels."""

from __future__ import annotations

from typing import Any

import sympy
import torch
import torch.nn.functional as F
from sympy import Min
from torch.utils._sympy.functions import Where

from infopt.codegen.kernel import Call, Config, aten_kernel, kernel_op
from infopt.codegen.kernels.rows import (
    FLOATS,
    SHORT,
    Rows,
    as_rows,
    ceil_div,
    dense_last,
    is_positive,
    round_up,
    row_stride,
    row_strides,
)
from infopt.compiler.accuracy import Exact
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

ROW_FORMAT = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
PANEL_FORMAT = {torch.float32: 4, torch.bfloat16: 5}
ACTIVATIONS: tuple[str, ...] = (  # in the order of csrc/epilogue.h
    *("none", "relu", "gelu", "gelu_tanh", "silu", "quick_gelu", "sigmoid", "tanh"),
    *("relu6", "hardswish"),
)
FEW = 8  # so many rows are not worth a panel
# What a task is: so many panels (0: panels_of_task decides), so many groups of weight rows.
TILING = {"panels": (0, 2, 4, 8), "groups": (1, 2)}
USUAL_TILING = {name: values[0] for name, values in TILING.items()}
PANEL_CHUNK = 8  # panels that meet one group of weights: 512 KiB of the second cache at most


def activate(x: torch.Tensor, activation: str) -> torch.Tensor:
    """The activation functions that a linear layer may end with."""
    match activation:
        case "none":
            return x
        case "relu":
            return F.relu(x)
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "silu":
            return F.silu(x)
        case "quick_gelu":
            return x * torch.sigmoid(1.702 * x)
        case "sigmoid":
            return torch.sigmoid(x)
        case "tanh":
            return torch.tanh(x)
        case "relu6":
            return F.relu6(x)
        case "hardswish":
            return F.hardswish(x)
    raise ValueError(f"activation {activation!r}: expected one of {', '.join(ACTIVATIONS)}")


def _cases() -> Any:
    for m, dtype in (
        (1, torch.float32),
        (5, torch.bfloat16),
        (37, torch.float32),
        (130, torch.bfloat16),
    ):
        x, w = torch.randn(m, 64, dtype=dtype), torch.randn(96, 64, dtype=dtype) / 8
        yield (x, w), {}
        yield (
            (x, w, torch.randn(96, dtype=dtype), torch.randn(m, 96, dtype=dtype)),
            {"activation": "gelu"},
        )


@kernel_op(cases=_cases, tolerance=Exact())
def linear_act(x, weight, bias=None, residual=None, *, activation="none"):
    """act(x weightᵀ + bias) + residual; x [..., K], weight [N, K], residual like the result."""
    y = activate(F.linear(x, weight, bias), activation)
    return y if residual is None else y + residual


def _gated_cases() -> Any:
    x = torch.randn(37, 64)
    yield (x, torch.randn(96, 64) / 8, torch.randn(96, 64) / 8), {"activation": "silu"}


@kernel_op(cases=_gated_cases, tolerance=Exact())
def gated_linear(x, gate, up, gate_bias=None, up_bias=None, *, activation="silu"):
    """act(x gateᵀ + gate_bias) * (x upᵀ + up_bias), both products in one pass over x."""
    return activate(F.linear(x, gate, gate_bias), activation) * F.linear(x, up, up_bias)


def linear_legal(
    target: Target,
    x: TensorType,
    weight: TensorType,
    bias: Any = None,
    residual: Any = None,
    **attrs: Any,
) -> str | None:
    if weight.rank != 2 or x.rank < 1:
        return f"weight {weight}"
    if x.dtype not in FLOATS or any(
        t is not None and t.dtype != x.dtype for t in (weight, bias, residual)
    ):
        return f"dtypes {x.dtype} and {weight.dtype}"
    if attrs.get("activation", "none") not in ACTIVATIONS:
        return f"activation {attrs['activation']}"
    if not (is_positive(x.shape[-1]) and is_positive(weight.shape[0])):
        return "an empty product"
    if bias is not None and bias.rank != 1:
        return f"bias {bias}"
    if residual is not None and residual.shape != (*x.shape[:-1], weight.shape[0]):
        return "a residual that is broadcast"
    return None


def gated_legal(
    target: Target,
    x: TensorType,
    gate: TensorType,
    up: TensorType,
    gate_bias: Any = None,
    up_bias: Any = None,
    **attrs: Any,
) -> str | None:
    if (gate.shape, gate.dtype) != (up.shape, up.dtype) or (gate_bias is None) != (up_bias is None):
        return "gate and up differ"
    if gate.rank == up.rank == 2 and row_stride(gate) != row_stride(up):
        return "rows of gate and up that lie differently"
    return linear_legal(target, x, gate, gate_bias, **attrs)


LAYOUTS = {
    "x": row_strides,
    "input": row_strides,
    "weight": dense_last,
    "residual": row_strides,
    "bias": dense_last,
    "gate": dense_last,
    "up": dense_last,
    "gate_bias": dense_last,
    "up_bias": dense_last,
}


def panel_bytes(rows: Rows, dtype: torch.dtype) -> Size:
    """Bytes of rows brought into panels: bf16 as pairs, the others as f32."""
    panels = ceil_div(rows.count, 16)
    width = round_up(rows.width, 2) * 2 if dtype is torch.bfloat16 else rows.width * 4
    return panels * width * 16


def to_panels(
    name: str, x: Rows, dtype: torch.dtype, held: torch.dtype, tasks: Size | None = None
) -> Call:
    """The rows of parameter `name`, of dtype `dtype`, in token panels of dtype `held`."""
    per_panel = round_up(x.width, 2) * 16 if held is torch.bfloat16 else x.width * 16
    numbers = (x.count, x.width, ROW_FORMAT[dtype], x.stride, PANEL_FORMAT[held], per_panel)
    panels = ceil_div(x.count, 16)
    return Call(
        "infopt_pack_panels",
        (name,),
        numbers,
        panels if tasks is None else tasks,
        bytes=panel_bytes(x, held),
    )


def panels_of_task(panels: Size, n_chunks: Size, cores: int) -> int:
    """How many panels one task takes: as many as fit the cache, but enough tasks for all cores."""
    chosen = PANEL_CHUNK
    if not isinstance(n_chunks, int):
        return chosen
    while chosen > 1:
        # an open number of rows counts as two chunks of panels
        chunks = -(-panels // chosen) if isinstance(panels, int) else PANEL_CHUNK // chosen * 2
        if n_chunks * chunks >= 4 * cores:
            break
        chosen //= 2
    return chosen


def few_chunk(n: Size, cores: int) -> int:
    """Weight rows of one task of the few-rows kernel, a multiple of 16."""
    if not isinstance(n, int):
        return 64
    return min(64, max(16, n // (8 * cores) // 16 * 16))


def only_if(condition: Any, value: Size) -> Size:
    """`value`, or 0 where a condition on sizes does not hold: that switches a call off."""
    if condition in (True, sympy.true):
        return value
    if condition in (False, sympy.false):
        return 0
    return Where(condition, sympy.sympify(value), sympy.Integer(0))


def products(
    x: TensorType,
    cfg: Config,
    weight: TensorType,
    names: dict[str, str | None],
    activation: str,
    target: Target,
    residual: TensorType | None = None,
    narrow: bool = False,
    bias: TensorType | None = None,
) -> list[Call]:
    """The calls of a linear layer; names: parameter of x, w, up, bias, up_bias, residual.

    narrow: the products are of bf16 values whatever the operands' dtypes are
    cfg: a point of TILING, and the result's type
    """
    out = cfg.out
    rows, y = as_rows(x), as_rows(out)
    assert rows is not None and y is not None
    m, n, k = rows.count, weight.shape[0], weight.shape[1]
    fmt, bias_fmt = ROW_FORMAT[x.dtype], ROW_FORMAT[bias.dtype if bias else x.dtype]
    out_fmt = ROW_FORMAT[out.dtype]
    r = as_rows(residual) if residual is not None else None
    stride = weight.strides[0] if weight.shape[0] != 1 else k
    held = torch.bfloat16 if narrow or x.dtype is torch.bfloat16 else torch.float32
    residual_fmt = ROW_FORMAT[residual.dtype] if residual is not None else 0

    def numbers(n_chunk: Size, per_task: int, x_stride: Size, last: Size) -> tuple[Size, ...]:
        return (
            m,
            n,
            k,
            stride,
            n_chunk,
            per_task,
            ACTIVATIONS.index(activation),
            bias_fmt,
            0,
            0,
            residual_fmt,
            r.stride if r else 0,
            out_fmt,
            y.stride,
            x_stride,
            last,
        )

    def pointers(first: str | Call | None) -> tuple:
        return (
            first,
            names["w"],
            names.get("up"),
            names.get("bias"),
            names.get("up_bias"),
            None,
            names.get("residual"),
            "out",
        )

    calls = []
    few = m <= FEW if isinstance(m, int) else sympy.Le(m, FEW)
    if target.batch_invariant:
        few = False  # that kernel sums in another order
    if few not in (False, sympy.false):
        chunk = few_chunk(n, target.cores)
        calls.append(
            Call(
                f"infopt_few_rows_{SHORT[weight.dtype]}",
                pointers(names["x"]),
                numbers(chunk, 1, rows.stride, fmt),
                only_if(few, ceil_div(n, chunk)),
                scratch=4 * FEW * (round_up(k, 32) + 32),
            )
        )
    if few not in (True, sympy.true):
        many = not few if isinstance(few, bool) else sympy.Gt(m, FEW)
        chunk = (96 if target.level == "amx" else 48) * cfg.groups
        panels = ceil_div(m, 16)
        per_task = cfg.panels or panels_of_task(panels, ceil_div(n, chunk), target.cores)
        packed = to_panels(str(names["x"]), rows, x.dtype, held, only_if(many, panels))
        sides = 2 if names.get("up") else 1
        depth = (
            Min(round_up(k, 32), 2048) if not isinstance(k, int) else min(-(-k // 32) * 32, 2048)
        )
        calls.append(
            Call(
                f"infopt_linear_{SHORT[held]}_{SHORT[weight.dtype]}",
                pointers(packed),
                numbers(chunk, per_task, packed.numbers[5], 0)[:15],
                only_if(many, ceil_div(n, chunk) * ceil_div(panels, per_task)),
                scratch=6144 * per_task * sides + 384 * (depth + 32),
            )
        )
    return calls


@linear_act.kernel("cpu", legal=linear_legal, layouts=LAYOUTS, over=("residual",), **TILING)
def _linear_act(
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
    return products(x, cfg, weight, names, activation, target, residual)


@gated_linear.kernel("cpu", legal=gated_legal, layouts=LAYOUTS, **TILING)
def _gated(
    cfg: Config,
    target: Target,
    x: TensorType,
    gate: TensorType,
    up: TensorType,
    gate_bias: Any,
    up_bias: Any,
    *,
    activation: str,
) -> list[Call]:
    names = {
        "x": "x",
        "w": "gate",
        "up": "up",
        "bias": gate_bias and "gate_bias",
        "up_bias": up_bias and "up_bias",
    }
    return products(x, cfg, gate, names, activation, target)


@aten_kernel("linear.default", legal=linear_legal, layouts=LAYOUTS, **TILING)
def _linear(
    cfg: Config, target: Target, x: TensorType, weight: TensorType, bias: Any
) -> list[Call]:
    names = {"x": "input", "w": "weight", "bias": bias and "bias"}
    return products(x, cfg, weight, names, "none", target)
