"""Poolings on a GPU: windows and equal parts of planes, a pixel of the result for each lane."""

from __future__ import annotations

from typing import Any

from infopt.codegen.gpu.reduce import SOURCE as REDUCE_SOURCE
from infopt.codegen.gpu.reduce import reduce_launch
from infopt.codegen.gpu.text import launch
from infopt.codegen.kernel import Config, aten_kernel
from infopt.codegen.kernels.pool import batched, parts_legal, pooled
from infopt.codegen.kernels.rows import ceil_div
from infopt.codegen.kernels.window import neighbouring_columns, plane, plane_strides
from infopt.codegen.launch import Launch, Pointer
from infopt.codegen.sizes import product
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

SOURCE = (
    REDUCE_SOURCE
    + '''

@triton.jit
def pool_windows(x, out, channels, height, width, plane, out_width, x_batch, x_channel, x_row,
                 taps_h, taps_w, stride_h, stride_w, above, left, apart_h, apart_w, divisor,
                 MAXIMUM: tl.constexpr, COUNTED: tl.constexpr, BLOCK: tl.constexpr):
    """The greatest element of windows, or their mean. divisor: what sums are divided by; 0: the
    elements of the window, with padding where it is COUNTED."""
    image = (tl.program_id(0) // channels).to(tl.int64)
    x += image * x_batch + (tl.program_id(0) % channels).to(tl.int64) * x_channel
    p = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    y0 = p // out_width * stride_h - above
    x0 = p % out_width * stride_w - left
    acc = tl.full((BLOCK,), float("-inf") if MAXIMUM else 0.0, dtype=tl.float32)
    for tap in range(0, taps_h * taps_w):
        row, column = y0 + tap // taps_w * apart_h, x0 + tap % taps_w * apart_w
        inside = (p < plane) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        v = tl.load(x + row.to(tl.int64) * x_row + column, mask=inside, other=0.0).to(tl.float32)
        if MAXIMUM:
            acc = tl.where(inside, greatest(acc, v), acc)
        else:
            acc += v
    if not MAXIMUM:
        y1, x1 = tl.minimum(y0 + taps_h, height + above), tl.minimum(x0 + taps_w, width + left)
        if not COUNTED:
            y0, x0 = tl.maximum(y0, 0), tl.maximum(x0, 0)
            y1, x1 = tl.minimum(y1, height), tl.minimum(x1, width)
        acc /= tl.where(divisor == 0, (y1 - y0) * (x1 - x0), divisor).to(tl.float32)
    at = out + tl.program_id(0).to(tl.int64) * plane + p
    tl.store(at, acc.to(out.dtype.element_ty), mask=p < plane)


@triton.jit
def pool_parts(x, out, channels, height, width, out_height, out_width, x_batch, x_channel, x_row,
               most_h, most_w, BLOCK: tl.constexpr):
    """The means of parts of a plane, of most_h times most_w elements at most."""
    image = (tl.program_id(0) // channels).to(tl.int64)
    x += image * x_batch + (tl.program_id(0) % channels).to(tl.int64) * x_channel
    p = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    i, j = p // out_width, p % out_width
    y0, x0 = i * height // out_height, j * width // out_width
    y1, x1 = tl.cdiv((i + 1) * height, out_height), tl.cdiv((j + 1) * width, out_width)
    inner = p < out_height * out_width
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    for tap in range(0, most_h * most_w):
        row, column = y0 + tap // most_w, x0 + tap % most_w
        inside = inner & (row < y1) & (column < x1)
        at = x + row.to(tl.int64) * x_row + column
        acc += tl.load(at, mask=inside, other=0.0).to(tl.float32)
    acc /= ((y1 - y0) * (x1 - x0)).to(tl.float32)
    at = out + tl.program_id(0).to(tl.int64) * out_height * out_width + p
    tl.store(at, acc.to(out.dtype.element_ty), mask=inner)
'''
)
_LAYOUTS = {"self": neighbouring_columns}
_PIXELS = 256  # of one program


def _planes(x: TensorType, out: TensorType) -> tuple[tuple[Size, Size], dict[str, Any]]:
    """The grid, and what all kernels begin with."""
    height, width = plane(x)
    grid = (product((x.shape[0], x.shape[1])), ceil_div(product(plane(out)), _PIXELS))
    given = {"x": Pointer("self", x.dtype), "out": Pointer("out", out.dtype)}
    return grid, given | {"channels": x.shape[1], "height": height, "width": width}


def _windows(
    x: TensorType,
    out: TensorType,
    attrs: Any,
    axes: int,
    maximum: bool,
    counted: bool = False,
    divisor: int = 0,
) -> Launch:
    window = pooled(attrs, axes)
    grid, given = _planes(x, out)
    return launch(
        SOURCE,
        "pool_windows",
        grid=grid,
        **given,
        **{"plane": product(plane(out)), "out_width": plane(out)[1]},
        **dict(zip(("x_batch", "x_channel", "x_row"), plane_strides(x), strict=True)),
        **dict(zip(("taps_h", "taps_w"), window.kernel, strict=True)),
        **dict(zip(("stride_h", "stride_w"), window.stride, strict=True)),
        **dict(zip(("above", "left"), window.padding, strict=True)),
        **dict(zip(("apart_h", "apart_w"), window.dilation, strict=True)),
        **{"divisor": divisor, "MAXIMUM": maximum, "COUNTED": counted, "BLOCK": _PIXELS},
    )


def _declare(axes: int) -> None:
    @aten_kernel(f"max_pool{axes}d.default", kind="gpu", legal=batched(axes), layouts=_LAYOUTS)
    def maximum(cfg: Config, target: Target, x: TensorType, **attrs: Any) -> Launch:
        return _windows(x, cfg.out, attrs, axes, True)

    @aten_kernel(f"avg_pool{axes}d.default", kind="gpu", legal=batched(axes), layouts=_LAYOUTS)
    def average(cfg: Config, target: Target, x: TensorType, **attrs: Any) -> Launch:
        counted, divisor = attrs["count_include_pad"], attrs.get("divisor_override") or 0
        return _windows(x, cfg.out, attrs, axes, False, bool(counted), divisor)

    @aten_kernel(
        f"adaptive_avg_pool{axes}d.default", kind="gpu", legal=parts_legal(axes), layouts=_LAYOUTS
    )
    def parts(cfg: Config, target: Target, x: TensorType, **attrs: Any) -> Launch:
        (height, width), (out_height, out_width) = plane(x), plane(cfg.out)
        if out_height == out_width == 1:
            return reduce_launch("mean", x, cfg.out.dtype, tuple(range(2, x.rank)))
        grid, given = _planes(x, cfg.out)
        return launch(
            SOURCE,
            "pool_parts",
            grid=grid,
            **given,
            **{"out_height": out_height, "out_width": out_width},
            **dict(zip(("x_batch", "x_channel", "x_row"), plane_strides(x), strict=True)),
            **{"most_h": ceil_div(height, out_height) + 1},
            **{"most_w": ceil_div(width, out_width) + 1},
            BLOCK=_PIXELS,
        )


_declare(1)
_declare(2)
