"""Convolutions in one and two dimensions: y = act(conv(x, w) * scale + shift) + residual.

Weights stay as torch stores them; what the window sees is brought into panels of 16 output pixels
as it is needed (csrc/conv.h). Images are read and written with neighbouring columns (NCHW).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from infopt.codegen.kernel import Call, Config, aten_kernel, kernel_op
from infopt.codegen.kernels.linear import ACTIVATIONS, ROW_FORMAT, activate
from infopt.codegen.kernels.rows import FLOATS, SHORT, ceil_div, contiguous, is_positive, round_up
from infopt.codegen.kernels.window import (
    Window,
    neighbouring_columns,
    plane,
    plane_strides,
    window_of,
)
from infopt.codegen.sizes import product, same
from infopt.compiler.accuracy import Exact
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType, contiguous_strides

_PANELS = 16  # of one task at most
_PANEL_BYTES = 1 << 19  # of panels: half a second cache
_DEPTH_BYTES = 4096  # of k that panels hold at once
# Costs in products of one weight and one panel: to make a row of a panel (from neighbours; so many
# times that where edges meet, where pixels are two apart), to read a weight, a task.
_PACKING, _EDGES, _APART, _WEIGHTS, _TASK = 8, 2, 3, 0.5, 16
_FEW_PIXELS = 4  # of a last panel, that are multiplied one by one
_SHARED_PLANE = 8  # features of one channel that a sliding window computes one by one


def _cases() -> Any:
    for dtype in (torch.float32, torch.bfloat16):
        x, w = torch.randn(2, 6, 9, 11, dtype=dtype), torch.randn(10, 3, 3, 3, dtype=dtype) / 5
        attrs = {"stride": (2, 1), "padding": (1, 1), "groups": 2}
        residual = torch.randn(2, 10, 5, 11, dtype=dtype)
        scale, shift = torch.rand(10) + 0.5, torch.randn(10)
        yield (x, w, scale, shift, residual), attrs | {"activation": "relu", "add_first": True}
        yield (x, w, None, shift.to(dtype), residual), attrs | {"activation": "silu"}
    line = torch.randn(2, 4, 40)
    yield (x[:1], w[:, :3]), {"groups": 2, "padding": (2, 0, 1, 3), "stride": (2, 2)}
    yield (line, torch.randn(7, 4, 5), None, torch.randn(7)), {"dilation": (2,), "stride": (3,)}


@kernel_op(cases=_cases, tolerance=Exact())
def conv_act(
    x,
    weight,
    scale=None,
    shift=None,
    residual=None,
    *,
    stride=(1,),
    padding=(0,),
    dilation=(1,),
    groups=1,
    activation="none",
    add_first=False,
):
    """act(conv(x, weight) * scale + shift) + residual, or with add_first the sum before act.

    x [N, C, L] or [N, C, H, W], weight [O, C / groups, ...], scale and shift [O] in f32 or x's
    dtype, residual like the result. stride, padding ("same", "valid" or sizes), dilation and groups
    are those of torch's convolutions; padding may also be (before, after) of every axis in turn.
    """
    convolve = F.conv1d if x.dim() == 3 else F.conv2d
    if not isinstance(padding, str) and len(padding) == 2 * (x.dim() - 2):
        x, padding = (
            F.pad(x, [n for d in range(len(padding), 0, -2) for n in padding[d - 2 : d]]),
            0,
        )
    y = convolve(x, weight, None, stride, padding, dilation, groups)
    features = (-1, *[1] * (x.dim() - 2))
    if scale is not None:
        y = y * scale.reshape(features)
    if shift is not None:
        y = y + shift.reshape(features)
    if residual is not None and add_first:
        y = y + residual
    y = activate(y, activation)
    if residual is not None and not add_first:
        y = y + residual
    return y.to(x.dtype)


def conv_legal(
    target: Target,
    x: TensorType,
    weight: TensorType,
    scale: TensorType | None = None,
    shift: TensorType | None = None,
    residual: TensorType | None = None,
    **attrs: Any,
) -> str | None:
    if x.rank not in (3, 4) or weight.rank != x.rank:
        return f"x is {x}, weight {weight}: expected a batch of lines or images"
    if x.dtype not in FLOATS or weight.dtype != x.dtype:
        return f"dtypes {x.dtype} and {weight.dtype}"
    if any(v is not None and v.dtype not in (x.dtype, torch.float32) for v in (scale, shift)):
        return "scale or shift of another dtype"
    if residual is not None and residual.dtype != x.dtype:
        return f"a residual of {residual.dtype}"
    if not all(isinstance(n, int) for n in weight.shape):
        return f"weight {weight}: expected known sizes"
    if attrs.get("activation", "none") not in ACTIVATIONS:
        return f"activation {attrs['activation']}"
    if not all(is_positive(n) for n in weight.shape):
        return "an empty product"
    return None


def plain_legal(
    target: Target, x: TensorType, weight: TensorType, bias: TensorType | None, **attrs: Any
) -> str | None:
    return conv_legal(target, x, weight, None, bias)


def by_tap(weight: TensorType) -> bool:
    """Whether the weights of a feature lie by tap, then by channel: torch's channels_last."""
    _, channels, *kernel = weight.shape
    wanted = contiguous_strides((*kernel, channels))
    strides = (*weight.strides[2:], weight.strides[1])
    sizes = (*kernel, channels)
    return all(n == 1 or same(s, w) for n, s, w in zip(sizes, strides, wanted, strict=True))


def _weight_strides(weight: TensorType) -> tuple[Size, ...] | None:
    inner = TensorType(weight.shape[1:], weight.dtype, weight.strides[1:])
    if contiguous(inner) is None or by_tap(weight):
        return None
    return contiguous_strides(weight.shape)


def is_depthwise(weight: TensorType, groups: int) -> bool:
    """Whether a window slides over planes: one channel in every group, and few features of it."""
    features, channels = weight.shape[:2]
    few = isinstance(features, int) and features <= _SHARED_PLANE * groups
    return groups > 1 and channels == 1 and few


def _task_shape(
    pixels: int, features: int, window: Window, depth: int, most_depth: int, target: Target
) -> tuple[int, int]:
    """(features, panels) of one task: those that end first on all cores."""
    panels = -(-pixels // 16)
    most = max(1, min(_PANELS, _PANEL_BYTES // (64 * min(depth, 1024))))
    packing = _PACKING * (1 if product(window.kernel) == 1 else _EDGES)
    packing *= 1 if window.stride[-1] == 1 else _APART
    found = []
    for chunks in {-(-panels // take) for take in range(1, most + 1)}:
        take = -(-panels // chunks)
        for parts in range(1, max(1, min(features // 48, 4 * target.cores)) + 1):
            some = -(-features // (16 * parts)) * 16 if parts > 1 else features
            tasks = window.groups * -(-features // some)
            # panels that hold a part of k only are made by every task, others once by every core
            each = packing if depth > most_depth else 0
            makers = 0 if each else min(tasks // window.groups, target.cores) / target.cores
            making = packing * makers * window.groups * pixels / 16
            time = making + _time(pixels, take, some, tasks, target.cores, each)
            found.append((time, some, take))
    return min(found)[1:]


def _time(pixels: int, take: int, some: int, tasks: int, cores: int, packing: int) -> float:
    """Multiplications along one row of k, one after another, of `tasks` for every `take` panels.

    Weights are read once per task, and the last task to end keeps all other cores waiting. The last
    panels may be fewer, so it can pay to give each core some of the features of all pixels: 14 x 14
    pixels are 12.25 panels.
    """

    def work(panels: float) -> float:
        return panels * (some + packing) + _WEIGHTS * some + _TASK

    whole = (-(-pixels // 16) - 1) // take
    rounds, busy = divmod(tasks * whole, cores)
    last = tasks
    if busy:
        rounds, last = rounds + 1, max(0, tasks - (cores - busy))
    rest = work(pixels / 16 - whole * take)
    return rounds * work(take) + -(-last // cores) * rest


def convolution(
    x: TensorType,
    weight: TensorType,
    out: TensorType,
    names: tuple[str, str, str | None, str | None, str | None],
    window: Window,
    target: Target,
    *,
    scale: TensorType | None = None,
    shift: TensorType | None = None,
    activation: str = "none",
    add_first: bool = False,
    narrow: bool = False,
) -> Call:
    """The call of a convolution; names: parameters of x, weight, scale, shift, residual.

    narrow: the products are of bf16 values whatever the operands' dtypes are.
    """
    groups = window.groups
    features, channels = weight.shape[0] // groups, weight.shape[1]  # type: ignore[operator]
    taps = product(window.kernel)
    depth = channels * taps
    held = torch.bfloat16 if narrow or x.dtype is torch.bfloat16 else torch.float32
    most_depth = _DEPTH_BYTES // held.itemsize
    panels = ceil_div(product((out.shape[0], *out.shape[2:])), 16)
    depthwise = is_depthwise(weight, groups)
    if depthwise:
        per_task, panels_per_task = features, window.rows_of_task(out)
    else:
        guesses = (product((out.shape[0], *out.shape[2:])), product(out.shape[2:]), 1024)
        known = max(1, next(n for n in guesses if isinstance(n, int)))
        shape = _task_shape(known, features, window, depth, most_depth, target)
        per_task, panels_per_task = shape

    def format_of(t: TensorType | None) -> int:
        return ROW_FORMAT[t.dtype] if t is not None else 0

    numbers = (
        x.shape[0],
        groups,
        channels,
        features,
        *window.numbers(x, out),
        *plane_strides(x),
        weight.strides[0] if weight.shape[0] != 1 else depth,
        int(by_tap(weight)),
        per_task,
        panels_per_task,
        format_of(x),
        format_of(scale),
        format_of(shift),
        ACTIVATIONS.index(activation),
        int(add_first),
        format_of(out),
        0 if target.batch_invariant else _FEW_PIXELS,
    )
    if depthwise:
        scratch = window.staged_bytes(out, panels_per_task) + 4 * product(window.kernel)
        tasks = product((x.shape[0], groups, features, ceil_div(plane(out)[0], panels_per_task)))
        symbol = f"infopt_depthwise_{SHORT[x.dtype]}"
        return Call(symbol, (*names, "out"), numbers, tasks, scratch=scratch)
    cut = min(-(-depth // 32) * 32, most_depth)
    scratch = 64 * panels_per_task * (cut * held.itemsize // 4 + 1 + round_up(per_task, 16))
    scratch += 400 * (cut + 32) + panels_per_task * (664 + round_up(260 * taps + 4, 64) + 24 * taps)
    tasks = groups * ceil_div(panels, panels_per_task) * ceil_div(features, per_task)
    symbol = f"infopt_conv_{SHORT[held]}_{SHORT[weight.dtype]}"
    return Call(symbol, (*names, "out"), numbers, tasks, scratch=scratch)


LAYOUTS = {"weight": _weight_strides, "scale": contiguous, "shift": contiguous}
LAYOUTS |= {"bias": contiguous, "residual": contiguous}


@conv_act.kernel(
    "cpu",
    legal=conv_legal,
    layouts=LAYOUTS | {"x": neighbouring_columns},
    over=("residual",),
)
def _conv_act(
    cfg: Config,
    target: Target,
    x: TensorType,
    weight: TensorType,
    scale: Any,
    shift: Any,
    residual: Any,
    *,
    activation: str,
    add_first: bool,
    **attrs: Any,
) -> Call:
    names = (
        "x",
        "weight",
        scale and "scale",
        shift and "shift",
        residual and "residual",
    )
    return convolution(
        x,
        weight,
        cfg.out,
        names,
        window_of(weight, attrs),
        target,
        scale=scale,
        shift=shift,
        activation=activation,
        add_first=add_first,
    )


@aten_kernel(
    "conv1d.default",
    "conv2d.default",
    "conv1d.padding",
    "conv2d.padding",
    legal=plain_legal,
    layouts=LAYOUTS | {"input": neighbouring_columns},
)
def _conv(
    cfg: Config, target: Target, x: TensorType, weight: TensorType, bias: Any, **attrs: Any
) -> Call:
    names = ("input", "weight", None, bias and "bias", None)
    return convolution(x, weight, cfg.out, names, window_of(weight, attrs), target, shift=bias)
