"""Layer norm and RMS norm on a GPU, with the sum that comes before them; a row stays on chip."""

from __future__ import annotations

from typing import Any

from infopt.codegen.gpu.row_blocks import ROW_SPACE, row_blocks
from infopt.codegen.gpu.text import HEADER, launch
from infopt.codegen.kernel import Config, aten_kernel
from infopt.codegen.kernels import layer_norm, rms_norm
from infopt.codegen.kernels.rows import as_rows
from infopt.codegen.launch import Launch, Pointer
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType

SOURCE = (
    HEADER
    + '''

@triton.jit
def summed(x, residual, total, rows, columns, inside, x_stride, residual_stride, total_stride):
    """x + residual as f32, rounded to the dtype of x first, and stored as `total`."""
    rows = rows.to(tl.int64)[:, None]
    z = tl.load(x + rows * x_stride + columns[None, :], mask=inside, other=0.0)
    if residual is not None:
        r = tl.load(residual + rows * residual_stride + columns[None, :], mask=inside, other=0.0)
        z = (z.to(tl.float32) + r.to(tl.float32)).to(x.dtype.element_ty)
    if total is not None:
        tl.store(total + rows * total_stride + columns[None, :], z, mask=inside)
    return z.to(tl.float32)


@triton.jit
def scaled(h, weight, bias, columns, width, offset, dtype: tl.constexpr, CAST_FIRST: tl.constexpr):
    """h * (weight + offset) + bias; CAST_FIRST: of h and weight rounded to the result's dtype."""
    in_row = columns < width
    if CAST_FIRST:
        h = h.to(dtype).to(tl.float32)
    if weight is not None:
        w = tl.load(weight + columns, mask=in_row, other=0.0)
        if CAST_FIRST:
            w = w.to(dtype)
        h = h * (w.to(tl.float32) + offset)[None, :]
    if bias is not None:
        h += tl.load(bias + columns, mask=in_row, other=0.0).to(tl.float32)[None, :]
    return h


@triton.jit
def norm_rows(x, residual, weight, bias, out, total, count, width, x_stride, residual_stride,
              out_stride, total_stride, eps, offset, CENTRED: tl.constexpr,
              CAST_FIRST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Rows that are one block: read once, normalised in registers."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    inside = (rows < count)[:, None] & (columns < width)[None, :]
    z = summed(x, residual, total, rows, columns, inside, x_stride, residual_stride, total_stride)
    if CENTRED:
        mean = tl.sum(z, axis=1) / width
        z = tl.where(inside, z - mean[:, None], 0.0)
    variance = tl.sum(z * z, axis=1) / width
    h = z * tl.rsqrt(variance + eps)[:, None]
    dtype: tl.constexpr = out.dtype.element_ty
    y = scaled(h, weight, bias, columns, width, offset, dtype, CAST_FIRST)
    at = out + rows.to(tl.int64)[:, None] * out_stride + columns[None, :]
    tl.store(at, y.to(dtype), mask=inside)


@triton.jit
def norm_long_rows(x, residual, weight, bias, out, total, count, width, x_stride, residual_stride,
                   out_stride, total_stride, eps, offset, CENTRED: tl.constexpr,
                   CAST_FIRST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """A row in steps of BLOCK, read again from the cache for each of mean, variance, result."""
    rows = tl.program_id(0) + tl.arange(0, 1)
    sums = tl.zeros((1, BLOCK), dtype=tl.float32)
    if CENTRED:
        for start in range(0, width, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = (columns < width)[None, :]
            sums += summed(x, residual, None, rows, columns, inside, x_stride, residual_stride, 0)
    mean = tl.sum(sums, axis=1) / width
    squares = tl.zeros((1, BLOCK), dtype=tl.float32)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = (columns < width)[None, :]
        z = summed(x, residual, None, rows, columns, inside, x_stride, residual_stride, 0)
        z = tl.where(inside, z - mean[:, None], 0.0)
        squares += z * z
    factor = tl.rsqrt(tl.sum(squares, axis=1) / width + eps)
    dtype: tl.constexpr = out.dtype.element_ty
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = (columns < width)[None, :]
        z = summed(x, residual, total, rows, columns, inside, x_stride, residual_stride,
                   total_stride)
        h = (z - mean[:, None]) * factor[:, None]
        y = scaled(h, weight, bias, columns, width, offset, dtype, CAST_FIRST)
        at = out + rows.to(tl.int64)[:, None] * out_stride + columns[None, :]
        tl.store(at, y.to(dtype), mask=inside)
'''
)


def norm_launch(
    cfg: Config,
    names: tuple[str, str | None, str, str | None],
    x: TensorType,
    residual: TensorType | None,
    weight: TensorType | None,
    bias: TensorType | None,
    eps: float,
    *,
    centred: bool,
    offset: float = 0.0,
    cast_first: bool = False,
) -> Launch:
    """names: of the parameters x and residual, and of the results y and x + residual."""
    out, total = (*cfg.outs, None)[:2]
    assert out is not None, "a norm that nobody reads"
    rows, y = as_rows(x), as_rows(out)
    r = as_rows(residual) if residual is not None else None
    z = as_rows(total) if total is not None else None
    blocks = row_blocks(rows.width, cfg.warps)
    return launch(
        SOURCE,
        "norm_rows" if blocks.whole else "norm_long_rows",
        grid=blocks.grid(rows.count),
        warps=blocks.warps,
        x=Pointer(names[0], x.dtype),
        residual=residual and Pointer(names[1], residual.dtype),
        weight=weight and Pointer("weight", weight.dtype),
        bias=bias and Pointer("bias", bias.dtype),
        out=Pointer(names[2], out.dtype),
        total=total and Pointer(names[3], total.dtype),
        count=rows.count,
        width=rows.width,
        x_stride=rows.stride,
        residual_stride=r.stride if r else 0,
        out_stride=y.stride,
        total_stride=z.stride if z else 0,
        eps=float(eps),
        offset=float(offset),
        CENTRED=centred,
        CAST_FIRST=cast_first,
        **blocks.constants,
    )


_LAYER = {"legal": layer_norm.layer_norm_legal, "layouts": layer_norm.LAYOUTS} | ROW_SPACE


@aten_kernel("layer_norm.default", kind="gpu", over=("input",), **_LAYER)
def _layer_norm(
    cfg: Config, target: Target, x: TensorType, weight: Any, bias: Any, *, eps: float, **attrs: Any
) -> Launch:
    names = ("input", None, "out", None)
    return norm_launch(cfg, names, x, None, weight, bias, eps, centred=True)


@layer_norm.add_layer_norm.kernel(
    "gpu", legal=layer_norm.add_layer_norm_legal, layouts=layer_norm.LAYOUTS, **ROW_SPACE
)
def _add_layer_norm(
    cfg: Config,
    target: Target,
    x: TensorType,
    residual: TensorType,
    weight: Any,
    bias: Any,
    *,
    eps: float,
) -> Launch:
    names = ("x", "residual", "out0", "out1")
    return norm_launch(cfg, names, x, residual, weight, bias, eps, centred=True)


@rms_norm.rms_norm.kernel(
    "gpu", legal=rms_norm.rms_norm_legal, layouts=rms_norm.LAYOUTS, over=("x",), **ROW_SPACE
)
def _rms_norm(cfg: Config, target: Target, x: TensorType, weight: Any, **attrs: Any) -> Launch:
    names = ("x", None, "out", None)
    return norm_launch(cfg, names, x, None, weight, None, centred=False, **attrs)


@rms_norm.add_rms_norm.kernel(
    "gpu", legal=rms_norm.add_rms_norm_legal, layouts=rms_norm.LAYOUTS, **ROW_SPACE
)
def _add_rms_norm(
    cfg: Config, target: Target, x: TensorType, residual: TensorType, weight: Any, **attrs: Any
) -> Launch:
    names = ("x", "residual", "out0", "out1")
    return norm_launch(cfg, names, x, residual, weight, None, centred=False, **attrs)


@aten_kernel(
    "rms_norm.default",
    kind="gpu",
    legal=rms_norm.aten_rms_norm_legal,
    layouts=rms_norm.LAYOUTS,
    **ROW_SPACE,
)
def _aten_rms_norm(
    cfg: Config, target: Target, x: TensorType, weight: Any, *, eps: float, **attrs: Any
) -> Launch:
    return norm_launch(cfg, ("input", None, "out", None), x, None, weight, None, eps, centred=False)
