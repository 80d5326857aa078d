"""Softmax and its logarithm along the last dimension."""

from __future__ import annotations

from typing import Any

from infopt.codegen.kernel import Call, Config, aten_kernel
from infopt.codegen.kernels.rows import ELEMENT, FLOATS, as_rows, ceil_div, is_positive, round_up
from infopt.codegen.sizes import product
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType, contiguous_strides

_ROWS = 4  # of one task


def outer_dims(t: TensorType) -> tuple[tuple[Size, ...], tuple[Size, ...]] | None:
    """(sizes, strides) of three dimensions around the last one."""
    if t.rank <= 4:
        fill = 4 - t.rank
        return (1,) * fill + t.shape[:-1], (0,) * fill + t.strides[:-1]
    rows = as_rows(t)
    return None if rows is None else ((1, 1, rows.count), (0, 0, rows.stride))


def softmax_layout(t: TensorType) -> tuple[Size, ...] | None:
    fine = t.rank and (t.strides[-1] == 1 or t.shape[-1] == 1) and outer_dims(t) is not None
    return None if fine else contiguous_strides(t.shape)


def softmax_legal(
    target: Target, x: TensorType, *, dim: int, dtype: Any = None, half_to_float: bool = False
) -> str | None:
    if x.dtype not in FLOATS or (dtype is not None and dtype != x.dtype) or half_to_float:
        return f"from {x.dtype} to {dtype}"
    if x.rank == 0 or dim % x.rank != x.rank - 1:
        return "a dimension that is not the last"
    return None if is_positive(x.shape[-1]) else "a width that may be 0"


def softmax_call(name: str, x: TensorType, out: TensorType, logarithm: bool) -> Call:
    found, to = outer_dims(x), outer_dims(out)
    assert found is not None and to is not None
    sizes, strides = found
    width = x.shape[-1]
    numbers = (
        *sizes,
        width,
        _ROWS,
        *strides,
        0,
        0,
        0,
        0,
        *to[1],
        ELEMENT[x.dtype],
        0,
        ELEMENT[out.dtype],
        int(logarithm),
        1.0,
    )
    return Call(
        "infopt_softmax",
        (name, None, "out"),
        numbers,
        ceil_div(product(sizes), _ROWS),
        scratch=4 * round_up(width, 16),
    )


def _declare(name: str, parameter: str, logarithm: bool) -> None:
    @aten_kernel(name, legal=softmax_legal, layouts={parameter: softmax_layout})
    def emit(cfg: Config, target: Target, x: TensorType, **attrs: Any) -> Call:
        return softmax_call(parameter, x, cfg.out, logarithm)


for _name in ("softmax.int", "_softmax.default", "log_softmax.int", "_log_softmax.default"):
    _declare(_name, "self", "log" in _name)
