"""Convolutions on a GPU: products of weights with what the window sees, which no memory holds.

A tile has features for rows and output pixels for columns: weights are read along their rows,
pixels and results along theirs. (Implicit GEMM, Chetlur et al., cuDNN, arXiv 1410.0759.)
"""

from __future__ import annotations

from typing import Any

import torch

from infopt.codegen.gpu.linear import divides
from infopt.codegen.gpu.text import ACTIVATE, HEADER, launch
from infopt.codegen.gpu.tiles import Tile
from infopt.codegen.kernel import Config, aten_kernel
from infopt.codegen.kernels.conv import (
    LAYOUTS,
    by_tap,
    conv_act,
    conv_legal,
    is_depthwise,
    plain_legal,
)
from infopt.codegen.kernels.narrow_conv import narrow_conv, narrow_conv_legal
from infopt.codegen.kernels.rows import ceil_div
from infopt.codegen.kernels.window import (
    Window,
    neighbouring_columns,
    plane,
    plane_strides,
    window_of,
)
from infopt.codegen.launch import Launch, Pointer
from infopt.codegen.sizes import product
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

SOURCE = (
    HEADER
    + ACTIVATE
    + '''

@triton.jit
def finished(y, scale, shift, residual, feature, at, inside, ACTIVATION: tl.constexpr,
             ADD_FIRST: tl.constexpr):
    """act(y * scale + shift) + residual, or with ADD_FIRST the sum before act."""
    if scale is not None:
        y = y * tl.load(scale + feature).to(tl.float32)
    if shift is not None:
        y = y + tl.load(shift + feature).to(tl.float32)
    if residual is not None:
        more = tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        if ADD_FIRST:
            y = activate(y + more, ACTIVATION)
        else:
            y = activate(y, ACTIVATION) + more
    else:
        y = activate(y, ACTIVATION)
    return y


@triton.jit
def conv_tiles(x, weight, scale, shift, residual, out, pixels, features, total, depth, channels,
               height, width, plane, out_width, x_batch, x_channel, x_row, w_stride,
               stride_h, stride_w, above, left, apart_h, apart_w, TAPS: tl.constexpr,
               TAPS_W: tl.constexpr, BY_TAP: tl.constexpr, NARROW: tl.constexpr,
               ACTIVATION: tl.constexpr, ADD_FIRST: tl.constexpr, EVEN_K: tl.constexpr,
               BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """Some features of a group at some pixels of all images. depth: channels of a group times taps,
    in the order in which weights lie; NARROW: factors are rounded to bf16."""
    group = tl.program_id(1)
    tiles = tl.cdiv(features, BLOCK_M)
    f = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    p = tl.program_id(0) // tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    in_pixels = p < pixels
    # features that do not exist read the first, and are not stored
    feature = group * features + tl.where(f < features, f, 0)
    image = (p // plane).to(tl.int64)
    place = p % plane
    y0 = place // out_width * stride_h - above
    x0 = place % out_width * stride_w - left
    origin = x + image * x_batch + (group * channels).to(tl.int64) * x_channel
    origin += y0.to(tl.int64) * x_row + x0
    w_rows = weight + feature.to(tl.int64)[:, None] * w_stride
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, depth, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        if BY_TAP:
            tap, channel = k // channels, k % channels
        else:
            tap, channel = k % TAPS, k // TAPS
        down, right = tap // TAPS_W * apart_h, tap % TAPS_W * apart_w
        moves = channel.to(tl.int64) * x_channel + down.to(tl.int64) * x_row + right
        row, column = y0[None, :] + down[:, None], x0[None, :] + right[:, None]
        inside = in_pixels[None, :] & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        if EVEN_K:
            a = tl.load(w_rows + k[None, :])
        else:
            a = tl.load(w_rows + k[None, :], mask=(k < depth)[None, :], other=0.0)
            inside = inside & (k < depth)[:, None]
        b = tl.load(origin[None, :] + moves[:, None], mask=inside, other=0.0)
        if NARROW:
            a, b = a.to(tl.bfloat16), b.to(tl.bfloat16)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    inside = (f < features)[:, None] & in_pixels[None, :]
    at = (image * total * plane + place)[None, :] + feature.to(tl.int64)[:, None] * plane
    y = finished(acc, scale, shift, residual, feature[:, None], at, inside, ACTIVATION, ADD_FIRST)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def conv_planes(x, weight, scale, shift, residual, out, shared, total, height, width, plane,
                out_width, x_batch, x_channel, x_row, w_stride, stride_h, stride_w, above, left,
                apart_h, apart_w, taps_h, taps_w, ACTIVATION: tl.constexpr,
                ADD_FIRST: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK pixels of one feature, of one channel; `shared` features have the same channel."""
    image = (tl.program_id(0) // total).to(tl.int64)
    feature = tl.program_id(0) % total
    p = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    y0 = p // out_width * stride_h - above
    x0 = p % out_width * stride_w - left
    x += image * x_batch + (feature // shared).to(tl.int64) * x_channel
    w_at = weight + feature.to(tl.int64) * w_stride
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    for tap in range(0, taps_h * taps_w):
        row, column = y0 + tap // taps_w * apart_h, x0 + tap % taps_w * apart_w
        inside = (p < plane) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        v = tl.load(x + row.to(tl.int64) * x_row + column, mask=inside, other=0.0).to(tl.float32)
        acc += tl.where(inside, v * tl.load(w_at + tap).to(tl.float32), 0.0)
    at = (image * total + feature) * plane + p
    y = finished(acc, scale, shift, residual, feature, at, p < plane, ACTIVATION, ADD_FIRST)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=p < plane)
'''
)
TILES_SPACE = {"tile": ("usual", "64x64x32 w4 s3")}
_PIXELS = 256  # of one program that slides over a plane


def _usual_tile(features: int, pixels: Size, narrow: bool) -> Tile:
    if not narrow:  # summed without tensor cores, from registers
        return Tile(32, 32, 16, 4, 2)
    if features > 64 and not (isinstance(pixels, int) and pixels <= 4096):
        return Tile(128, 128, 32, 8, 3)
    return Tile(64 if features > 32 else 32, 64, 32, 4, 3)


def conv_launch(
    cfg: Config,
    target: Target,
    x: TensorType,
    weight: TensorType,
    names: tuple[str, str, str | None, str | None, str | None],
    window: Window,
    scale: TensorType | None = None,
    shift: TensorType | None = None,
    activation: str = "none",
    add_first: bool = False,
    narrow: bool = False,
) -> Launch:
    """names: parameters of x, weight, scale, shift, residual; narrow: factors are rounded to
    bf16."""
    out, (total, channels) = cfg.out, weight.shape[:2]
    height, width = plane(out)
    taps = product(window.kernel)
    features, depth = total // window.groups, channels * taps
    given = {"scale": (names[2], scale), "shift": (names[3], shift), "residual": (names[4], out)}
    tensors = {
        "x": Pointer(names[0], x.dtype),
        "weight": Pointer(names[1], weight.dtype),
        **{n: Pointer(name, t.dtype) if name and t else None for n, (name, t) in given.items()},
        "out": Pointer("out", out.dtype),
    }
    sizes = dict(zip(("height", "width"), plane(x), strict=True))
    sizes |= {"plane": product((height, width)), "out_width": width}
    sizes |= dict(zip(("x_batch", "x_channel", "x_row"), plane_strides(x), strict=True))
    sizes |= {"w_stride": weight.strides[0] if total != 1 else depth}
    sizes |= dict(zip(("stride_h", "stride_w"), window.stride, strict=True))
    sizes |= dict(zip(("above", "left"), window.padding, strict=True))
    sizes |= dict(zip(("apart_h", "apart_w"), window.dilation, strict=True))
    end = {"ACTIVATION": activation, "ADD_FIRST": add_first}
    if is_depthwise(weight, window.groups):
        return launch(
            SOURCE,
            "conv_planes",
            grid=(product((x.shape[0], total)), ceil_div(sizes["plane"], _PIXELS)),
            **tensors,
            **{"shared": features, "total": total, **sizes},
            **dict(zip(("taps_h", "taps_w"), window.kernel, strict=True)),
            **end,
            BLOCK=_PIXELS,
        )
    pixels = product((x.shape[0], sizes["plane"]))
    tensor_cores = narrow or x.dtype is not torch.float32
    tile = _usual_tile(features, pixels, tensor_cores)
    if cfg.tile != "usual" and tensor_cores:
        tile = Tile.parse(cfg.tile)
    itemsize = max(x.dtype.itemsize, weight.dtype.itemsize)
    tile = tile.fitted(target, (tile.m + tile.n) * itemsize)
    return launch(
        SOURCE,
        "conv_tiles",
        grid=(ceil_div(features, tile.m) * ceil_div(pixels, tile.n), window.groups),
        warps=tile.warps,
        stages=tile.stages,
        **tensors,
        **{"pixels": pixels, "features": features, "total": total, "depth": depth},
        **{"channels": channels, **sizes},
        **{"TAPS": taps, "TAPS_W": window.kernel[1], "BY_TAP": by_tap(weight), "NARROW": narrow},
        **end,
        EVEN_K=divides(tile.k, depth),
        **{"BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k},
    )


_LAYOUTS = LAYOUTS | {"x": neighbouring_columns, "input": neighbouring_columns}


def _fused(cfg, target, x, weight, scale, shift, residual, attrs, narrow) -> Launch:
    names = ("x", "weight", scale and "scale", shift and "shift", residual and "residual")
    how = {name: attrs[name] for name in ("activation", "add_first")}
    window = window_of(weight, attrs)
    return conv_launch(cfg, target, x, weight, names, window, scale, shift, **how, narrow=narrow)


@conv_act.kernel("gpu", legal=conv_legal, layouts=_LAYOUTS, over=("residual",), **TILES_SPACE)
def _conv_act(
    cfg: Config,
    target: Target,
    x: TensorType,
    weight: TensorType,
    scale: TensorType | None,
    shift: TensorType | None,
    residual: TensorType | None,
    **attrs: Any,
) -> Launch:
    return _fused(cfg, target, x, weight, scale, shift, residual, attrs, False)


@narrow_conv.kernel("gpu", legal=narrow_conv_legal, layouts=_LAYOUTS, **TILES_SPACE)
def _narrow_conv(
    cfg: Config,
    target: Target,
    x: TensorType,
    weight: TensorType,
    scale: TensorType | None,
    shift: TensorType | None,
    residual: TensorType | None,
    **attrs: Any,
) -> Launch:
    return _fused(cfg, target, x, weight, scale, shift, residual, attrs, True)


@aten_kernel(
    *("conv1d.default", "conv2d.default", "conv1d.padding", "conv2d.padding"),
    kind="gpu",
    legal=plain_legal,
    layouts=_LAYOUTS,
    **TILES_SPACE,
)
def _conv(
    cfg: Config,
    target: Target,
    x: TensorType,
    weight: TensorType,
    bias: TensorType | None,
    **attrs: Any,
) -> Launch:
    names = ("input", "weight", None, bias and "bias", None)
    return conv_launch(cfg, target, x, weight, names, window_of(weight, attrs), shift=bias)
