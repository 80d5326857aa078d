"""Poolings of lines and images: maximum, average, and averages of equal parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infopt.codegen.kernel import Call, Config, aten_kernel
from infopt.codegen.kernels.rows import FLOATS, SHORT, ceil_div, is_positive, round_up
from infopt.codegen.kernels.window import Window, neighbouring_columns, pair, plane, plane_strides
from infopt.codegen.sizes import product
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

_MAXIMUM, _AVERAGE = 0, 1
_LAYOUTS = {"self": neighbouring_columns}


def _legal(target: Target, x: TensorType, **attrs: Any) -> str | None:
    if x.dtype not in FLOATS:
        return f"x is {x.dtype}"
    for name in ("kernel_size", "stride", "padding", "dilation", "output_size"):
        sizes = attrs.get(name, ())
        if not all(isinstance(n, int) for n in (sizes if isinstance(sizes, tuple) else (sizes,))):
            return f"{name} {sizes}: expected known sizes"
    return None


def batched(axes: int) -> Any:
    def legal(target: Target, x: TensorType, **attrs: Any) -> str | None:
        if x.rank != axes + 2:
            return f"x is {x}: expected a batch of {'lines' if axes == 1 else 'images'}"
        return _legal(target, x, **attrs)

    return legal


def pooled(attrs: Mapping[str, Any], axes: int) -> Window:
    kernel = pair(attrs["kernel_size"], axes, 1)
    stride = pair(attrs["stride"], axes, 1) if attrs.get("stride") else kernel
    padding, dilation = attrs.get("padding", 0), attrs.get("dilation", 1)
    return Window(kernel, stride, pair(padding, axes, 0), pair(dilation, axes, 1))


def _shape(x: TensorType, out: TensorType, window: Window) -> tuple[Size, ...]:
    """The numbers of csrc/conv_window.h: every channel is a group."""
    return x.shape[0], x.shape[1], 1, 1, *window.numbers(x, out), *plane_strides(x)


def _call(x: TensorType, out: TensorType, window: Window, *how: Size) -> Call:
    rows = window.rows_of_task(out)
    pooling, *rest = how
    height, width = plane(out)
    return Call(
        f"infopt_pool_{SHORT[x.dtype]}",
        ("self", "out"),
        (*_shape(x, out, window), pooling, rows, *rest),
        product((x.shape[0], x.shape[1], ceil_div(height, rows))),
        scratch=window.staged_bytes(out, rows) + 4 * round_up(width, 16),
    )


def _declare(axes: int) -> None:
    @aten_kernel(f"max_pool{axes}d.default", legal=batched(axes), layouts=_LAYOUTS)
    def maximum(cfg: Config, target: Target, x: TensorType, **attrs: Any) -> Call:
        return _call(x, cfg.out, pooled(attrs, axes), _MAXIMUM, 0, 0)

    @aten_kernel(f"avg_pool{axes}d.default", legal=batched(axes), layouts=_LAYOUTS)
    def average(cfg: Config, target: Target, x: TensorType, **attrs: Any) -> Call:
        counted, divisor = int(attrs["count_include_pad"]), attrs.get("divisor_override") or 0
        return _call(x, cfg.out, pooled(attrs, axes), _AVERAGE, counted, divisor)

    @aten_kernel(f"adaptive_avg_pool{axes}d.default", legal=parts_legal(axes), layouts=_LAYOUTS)
    def parts(cfg: Config, target: Target, x: TensorType, **attrs: Any) -> Call:
        window = Window((1, 1), (1, 1), (0, 0), (1, 1))
        return Call(
            f"infopt_adaptive_average_{SHORT[x.dtype]}",
            ("self", "out"),
            _shape(x, cfg.out, window),
            product(x.shape[:2]),
        )


def parts_legal(axes: int) -> Any:
    def legal(target: Target, x: TensorType, **attrs: Any) -> str | None:
        if not all(is_positive(n) for n in x.shape[2:]):
            return f"x is {x}: its planes may be empty"
        return batched(axes)(target, x, **attrs)

    return legal


_declare(1)
_declare(2)
