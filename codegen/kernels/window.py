"""The window of convolutions and poolings: kernel, stride, padding, dilation, over two axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infopt.codegen.kernels.rows import ceil_div, round_up
from infopt.compiler.types import Size, TensorType, contiguous_strides

Pair = tuple[int, int]
_STAGED = 24576  # bytes of staged rows that leave room in the first cache


@dataclass(frozen=True)
class Window:
    """(height, width) of everything; padding: above and to the left. Lines have height 1."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int = 1

    def numbers(self, x: TensorType, out: TensorType) -> tuple[Size, ...]:
        """Sizes of x and out, then the window, in the order of csrc/conv_window.h."""
        return (
            *plane(x),
            *plane(out),
            *self.kernel,
            *self.stride,
            *self.padding,
            *self.dilation,
        )

    def rows_of_task(self, out: TensorType) -> int:
        """Output rows of a task whose input is staged in scratch (csrc/plane_window.h)."""
        height, width = plane(out)
        if not isinstance(height, int) or not isinstance(width, int):
            return 8
        rows = height
        while rows > 1 and self.staged_bytes(out, rows) > _STAGED:  # type: ignore[operator]
            rows = (rows + 1) // 2
        return rows

    def staged_bytes(self, out: TensorType, rows: int) -> Size:
        """Scratch for the input of `rows` output rows."""
        span = (self.kernel[1] - 1) * self.dilation[1] + 1
        width = (round_up(plane(out)[1], 16) + ceil_div(span, self.stride[1])) * self.stride[1]
        seen = (rows - 1) * self.stride[0] + (self.kernel[0] - 1) * self.dilation[0] + 1
        return 4 * round_up(seen * width, 2) + 8 * self.kernel[1]


def pair(value: int | Sequence[int], rank: int, line: int) -> Pair:
    """An attribute of a window over `rank` axes as (height, width); `line` is a line's height."""
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    if len(values) == 1:
        values = values * rank
    return (line, values[0]) if rank == 1 else (values[0], values[1])


def window_of(weight: TensorType, attrs: Mapping[str, Any]) -> Window:
    """The window of a convolution. With padding "same" the odd one is below and to the right."""
    rank = weight.rank - 2
    kernel = pair(weight.shape[2:], rank, 1)  # type: ignore[arg-type]
    dilation = pair(attrs["dilation"], rank, 1)
    padding = attrs["padding"]
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        around = (total[0] // 2, total[1] // 2)
    elif len(padding) == 2 * rank:
        around = pair(padding[::2], rank, 0)
    else:
        around = pair(0 if padding == "valid" else padding, rank, 0)
    return Window(kernel, pair(attrs["stride"], rank, 1), around, dilation, attrs["groups"])


def plane(t: TensorType) -> tuple[Size, Size]:
    """(height, width) of an image, of a line height 1."""
    return (1, t.shape[-1]) if t.rank == 3 else (t.shape[-2], t.shape[-1])


def neighbouring_columns(t: TensorType) -> tuple[Size, ...] | None:
    """Wanted strides for a kernel that reads images row by row."""
    fine = t.strides[-1] == 1 or t.shape[-1] == 1
    return None if fine else contiguous_strides(t.shape)


def plane_strides(t: TensorType) -> tuple[Size, Size, Size]:
    """Elements between images, channels, rows."""
    row: Size = 0 if t.rank == 3 else t.strides[2]
    return t.strides[0], t.strides[1], row
