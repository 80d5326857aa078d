"""Linear layers with weights in few bits on a GPU: integers are unpacked in registers.

The product is weight xT, the narrow weight on the left; a factor is applied once to the sum of its
group. Activations in bytes are made by a launch of their own, and their products are of integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy
import torch
from sympy import Gt, Le

from infopt.codegen.formats import FORMATS, Integers
from infopt.codegen.gpu.linear import EPILOGUE, FEW, PLACE, divides, shares
from infopt.codegen.gpu.row_blocks import row_blocks
from infopt.codegen.gpu.text import ACTIVATE, HEADER, launch
from infopt.codegen.gpu.tiles import Tile
from infopt.codegen.kernel import Config
from infopt.codegen.kernels.linear import only_if
from infopt.codegen.kernels.quantized_linear import (
    LAYOUTS,
    quantized_gated_legal,
    quantized_gated_linear,
    quantized_legal,
    quantized_linear,
)
from infopt.codegen.kernels.rows import as_rows, ceil_div, round_up, row_stride
from infopt.codegen.launch import Launch, Pointer, Scratch
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

PRODUCTS = '''

@triton.jit
def multiply(w, a, COMPUTE: tl.constexpr):
    """Integers w times activations a, the sums in f32, or in i32 where both are bytes."""
    if COMPUTE == "int8":
        y = tl.dot(w, a, out_dtype=tl.int32)
    elif COMPUTE == "bf16":
        y = tl.dot(w.to(tl.bfloat16), a.to(tl.bfloat16))
    else:
        y = tl.dot(w.to(tl.float32), a.to(tl.float32), input_precision="ieee")
    return y


@triton.jit
def take(x_at, depth, k, EVEN_K: tl.constexpr):
    """x[rows, depth] with k downwards, 0 behind its end."""
    if EVEN_K:
        a = tl.load(x_at + depth[:, None])
    else:
        a = tl.load(x_at + depth[:, None], mask=(depth < k)[:, None], other=0)
    return a


@triton.jit
def group_sum(x_at, w_at, scale_at, start, k, BITS: tl.constexpr, GROUP: tl.constexpr,
              COMPUTE: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr):
    """BLOCK_K of k: products summed, and each group's sum times its factor."""
    if BITS == 8:
        depth = start + tl.arange(0, BLOCK_K)
        a = take(x_at, depth, k, EVEN_K)
        if EVEN_K:
            w = tl.load(w_at + depth[None, :], eviction_policy="evict_first")
        else:
            w = tl.load(w_at + depth[None, :], mask=(depth < k)[None, :], other=0,
                        eviction_policy="evict_first")
        y = multiply(w, a, COMPUTE)
        if GROUP > 0:
            y = y.to(tl.float32) * tl.load(scale_at + start // GROUP).to(tl.float32)[:, None]
    else:
        # byte j of a block of 64 holds integers j and j + 32
        byte = tl.arange(0, BLOCK_K // 2)
        depth = start + byte // 32 * 64 + byte % 32
        # a row ends with a whole block: the bytes are there
        last = tl.cdiv(k, 64) * 32
        byte += start // 2
        if EVEN_K:
            packed = tl.load(w_at + byte[None, :], eviction_policy="evict_first")
        else:
            packed = tl.load(w_at + byte[None, :], mask=(byte < last)[None, :], other=0,
                             eviction_policy="evict_first")
        low = (packed & 15).to(tl.int8) - 8
        high = (packed >> 4).to(tl.int8) - 8
        y = multiply(low, take(x_at, depth, k, EVEN_K), COMPUTE).to(tl.float32)
        other = multiply(high, take(x_at, depth + 32, k, EVEN_K), COMPUTE).to(tl.float32)
        if GROUP == 32:
            y *= tl.load(scale_at + start // 32).to(tl.float32)[:, None]
            # behind the last group there are no products
            following = tl.minimum(start // 32 + 1, tl.cdiv(k, 32) - 1)
            y += other * tl.load(scale_at + following).to(tl.float32)[:, None]
        else:
            y = (y + other) * tl.load(scale_at + start // GROUP).to(tl.float32)[:, None]
    return y


@triton.jit
def stored_product(x, steps, zeros, values, scales, sums, rows, columns, m, n, k, begin, end,
                   x_stride, value_stride, scale_stride, BITS: tl.constexpr,
                   GROUP: tl.constexpr, COMPUTE: tl.constexpr, BLOCK_M: tl.constexpr,
                   BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
                   STAGES: tl.constexpr):
    """x[rows] weight[columns]T over a part of k, in f32, [rows, columns]."""
    near = tl.where(columns < n, columns, 0).to(tl.int64)
    rows = tl.where(rows < m, rows, 0).to(tl.int64)
    x_at = x + rows[None, :] * x_stride
    w_at = values + near[:, None] * value_stride
    scale_at = scales + near * scale_stride
    exact: tl.constexpr = COMPUTE == "int8" and GROUP == 0
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.int32 if exact else tl.float32)
    for start in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
        acc += group_sum(x_at, w_at, scale_at, start, k, BITS, GROUP, COMPUTE, BLOCK_K, EVEN_K)
    if COMPUTE == "int8":
        if begin == 0:  # codes stand for themselves less the zero point of their row
            total = tl.load(sums + near)[:, None]
            zero = tl.load(zeros + rows)[None, :]
            if exact:
                acc -= total.to(tl.int32) * zero
            else:
                acc -= total * zero.to(tl.float32)
    y = acc.to(tl.float32)
    if GROUP == 0:
        y *= tl.load(scale_at).to(tl.float32)[:, None]
    if COMPUTE == "int8":
        y *= tl.load(steps + rows)[None, :]
    return tl.trans(y)


@triton.jit
def quantized_tiles(x, steps, zeros, values, scales, sums, up, up_scales, up_sums, bias, up_bias,
                    residual, out, parts, m, n, k, x_stride, value_stride, scale_stride,
                    residual_stride, out_stride, ACTIVATION: tl.constexpr, GATED: tl.constexpr,
                    BITS: tl.constexpr, GROUP: tl.constexpr, COMPUTE: tl.constexpr,
                    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
                    EVEN_K: tl.constexpr, SPLIT: tl.constexpr, STAGES: tl.constexpr):
    """act(x weightT + bias) * (x upT + up_bias) + residual; one tile, one of SPLIT shares of k."""
    row, column = place(tl.program_id(0), tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N), 8)
    rows = row * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = column * BLOCK_N + tl.arange(0, BLOCK_N)
    share = tl.cdiv(tl.cdiv(k, BLOCK_K), SPLIT) * BLOCK_K
    begin = tl.program_id(1) * share
    end = tl.minimum(begin + share, k)
    acc = stored_product(x, steps, zeros, values, scales, sums, rows, columns, m, n, k, begin, end,
                         x_stride, value_stride, scale_stride, BITS, GROUP, COMPUTE, BLOCK_M,
                         BLOCK_N, BLOCK_K, EVEN_K, STAGES)
    acc_up = acc
    if GATED:
        acc_up = stored_product(x, steps, zeros, up, up_scales, up_sums, rows, columns, m, n, k,
                                begin, end, x_stride, value_stride, scale_stride, BITS, GROUP,
                                COMPUTE, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K, STAGES)
    if SPLIT > 1:
        store_part(acc, parts, tl.program_id(1), rows, columns, m, n)
        if GATED:
            store_part(acc_up, parts, SPLIT + tl.program_id(1), rows, columns, m, n)
    else:
        finish(acc, acc_up, bias, up_bias, residual, out, rows, columns, m, n,
               residual_stride, out_stride, ACTIVATION, GATED)


@triton.jit
def nearest(x):
    """The nearest whole number, the even one of two, for |x| < 2**22."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def quantize_rows(x, codes, steps, zeros, m, k, x_stride, code_stride, ROWS: tl.constexpr,
                  BLOCK: tl.constexpr):
    """A row as bytes: step * (code - zero), both less 128 to be signed; see the op. A row with NaN
    or an infinity gets a step of NaN."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_rows = rows < m
    at = x + rows.to(tl.int64)[:, None] * x_stride
    low = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    high = low
    bad = low
    for start in range(0, k, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = in_rows[:, None] & (columns < k)[None, :]
        v = tl.load(at + columns[None, :], mask=inside, other=0.0).to(tl.float32)
        low = tl.minimum(low, v)
        high = tl.maximum(high, v)
        bad = tl.where(tl.abs(v) < float("inf"), bad, 1.0)
    least = tl.min(low, axis=1)
    width = tl.max(high, axis=1) - least
    inverse = tl.where(width > 1e-35, 255.0 / tl.where(width > 1e-35, width, 1.0), 0.0)
    zero = nearest(-least * inverse)
    step = tl.where(tl.max(bad, axis=1) > 0, float("nan"), width / 255)
    tl.store(steps + rows, step, mask=in_rows)
    tl.store(zeros + rows, zero.to(tl.int32) - 128, mask=in_rows)
    for start in range(0, k, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = in_rows[:, None] & (columns < k)[None, :]
        v = tl.load(at + columns[None, :], mask=inside, other=0.0).to(tl.float32)
        code = nearest(tl.where(tl.abs(v) < float("inf"), v, 0.0) * inverse[:, None])
        code = tl.minimum(tl.maximum(code + zero[:, None], 0.0), 255.0)
        to = codes + rows.to(tl.int64)[:, None] * code_stride + columns[None, :]
        tl.store(to, (code.to(tl.int32) - 128).to(tl.int8), mask=inside)
'''

SOURCE = HEADER + ACTIVATE + EPILOGUE + PLACE + FEW + PRODUCTS

FEW_ROWS = 16  # up to so many rows share one block, and k is cut for all to have work
SUM_BLOCK = 512
# "columns x rows" of a block for many rows, the usual first
QUANTIZED_SPACE = {"block": ("usual", "128x64 w8 s3", "64x64 w4 s3", "64x32 w4 s3")}


@dataclass(frozen=True)
class StoredLayer:
    """A layer's tensors by role: pointers, or None; strides are those of both sides' matrices."""

    format: Integers
    compute: str
    tensors: dict[str, Pointer | None]
    value_stride: Size
    scale_stride: Size


def quantized_launches(
    cfg: Config,
    target: Target,
    layer: StoredLayer,
    x: TensorType,
    columns: Size,
    residual: TensorType | None,
    activation: str,
) -> list[Launch]:
    rows, out = as_rows(x), as_rows(cfg.out)
    assert rows is not None and out is not None
    r = as_rows(residual) if residual is not None else None
    m, k, n = rows.count, rows.width, columns
    made: list[Launch] = []
    tensors: dict[str, Any] = {"x": Pointer("x", x.dtype), "steps": None, "zeros": None}
    x_stride = rows.stride
    if layer.compute == "int8":
        x_stride = round_up(k, 16)
        codes = Pointer(Scratch("codes", m * x_stride), torch.int8)
        tensors |= {"x": codes, "steps": Pointer(Scratch("steps", 4 * m), torch.float32)}
        tensors |= {"zeros": Pointer(Scratch("zeros", 4 * m), torch.int32)}
        made.append(_bytes_of(x, rows, tensors, x_stride))
    tensors |= layer.tensors | {"out": Pointer("out", cfg.out.dtype)}
    sizes = {"m": m, "n": n, "k": k, "x_stride": x_stride, "value_stride": layer.value_stride}
    sizes |= {"scale_stride": layer.scale_stride, "residual_stride": r.stride if r else 0}
    sizes |= {"out_stride": out.stride}
    end = {"ACTIVATION": activation, "GATED": tensors["up"] is not None}
    wide = layer.compute == "f32"
    few = sympy.false if target.batch_invariant else Le(m, FEW_ROWS)
    block = ("32x64 w4 s3" if wide else "128x64 w8 s3") if cfg.block == "usual" else cfg.block
    count, rest = block.split("x", 1)
    many = Tile.parse(f"{rest.split()[0]}x{count}x1 {rest.split(' ', 1)[1]}")
    for condition, tile in ((few, Tile(FEW_ROWS, 64, 1, 4, 3)), (Gt(m, FEW_ROWS) | ~few, many)):
        if condition != sympy.false:
            made += _tiles(target, layer, tensors, sizes, end, condition, tile)
    return [launch for launch in made if 0 not in launch.grid]


def _tiles(
    target: Target,
    layer: StoredLayer,
    tensors: dict[str, Any],
    sizes: dict[str, Size],
    end: dict[str, Any],
    condition: Any,
    tile: Tile,
) -> list[Launch]:
    m, n, k = (sizes[name] for name in "mnk")
    group = layer.format.group
    depth = max(group, 64 if layer.format.bits == 4 else 32) or 64
    if not group:
        depth = 64 if layer.compute == "f32" else 128
    held = tensors["x"].dtype.itemsize
    tile = Tile(tile.m, tile.n, depth, tile.warps, tile.stages)
    tile = tile.fitted(target, tile.m * held + tile.n)
    few = tile.m == FEW_ROWS
    split = shares(n, k, tile, target) if few else 1
    sides = 2 if end["GATED"] else 1
    parts = None
    if split > 1:
        parts = Pointer(Scratch("parts", 4 * sides * split * FEW_ROWS * n), torch.float32)
    first = launch(
        SOURCE,
        "quantized_tiles",
        grid=(only_if(condition, ceil_div(m, tile.m) * ceil_div(n, tile.n)), split),
        warps=tile.warps,
        stages=tile.stages,
        **tensors,
        parts=parts,
        **sizes,
        **end,
        **{"BITS": layer.format.bits, "GROUP": group, "COMPUTE": layer.compute},
        **{"BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": depth},
        **{"EVEN_K": divides(depth, k), "SPLIT": split, "STAGES": tile.stages},
    )
    if parts is None:
        return [first]
    last = launch(
        SOURCE,
        "linear_sum",
        grid=(only_if(condition, ceil_div(n, SUM_BLOCK)), m),
        parts=parts,
        **{name: tensors[name] for name in ("bias", "up_bias", "residual", "out")},
        **{name: sizes[name] for name in ("m", "n", "residual_stride", "out_stride")},
        **end,
        **{"BLOCK_N": SUM_BLOCK, "SPLIT": split},
    )
    return [first, last]


def _bytes_of(x: TensorType, rows: Any, tensors: dict[str, Any], stride: Size) -> Launch:
    blocks = row_blocks(rows.width if isinstance(rows.width, int) else 4096)
    return launch(
        SOURCE,
        "quantize_rows",
        grid=blocks.grid(rows.count),
        warps=blocks.warps,
        exact=True,
        x=Pointer("x", x.dtype),
        codes=tensors["x"],
        **{name: tensors[name] for name in ("steps", "zeros")},
        **{"m": rows.count, "k": rows.width, "x_stride": rows.stride, "code_stride": stride},
        **blocks.constants,
    )


def _compute(x: TensorType, activations: str) -> str:
    if activations == "int8":
        return "int8"
    return "bf16" if activations == "bf16" or x.dtype is torch.bfloat16 else "f32"


@quantized_linear.kernel("gpu", legal=quantized_legal, layouts=LAYOUTS, **QUANTIZED_SPACE)
def _quantized_linear(
    cfg: Config,
    target: Target,
    x: TensorType,
    values: TensorType,
    scales: TensorType,
    sums: TensorType,
    bias: TensorType | None,
    residual: TensorType | None,
    *,
    format: str,
    activations: str,
    activation: str,
    out: torch.dtype,
) -> list[Launch]:
    given = {"values": values, "scales": scales, "sums": sums, "bias": bias, "residual": residual}
    found = {name: t and Pointer(name, t.dtype) for name, t in given.items()}
    roles = ("values", "scales", "sums", "up", "up_scales", "up_sums", "bias", "up_bias")
    layer = StoredLayer(
        FORMATS[format],
        _compute(x, activations),
        {role: found.get(role) for role in (*roles, "residual")},
        row_stride(values),
        row_stride(scales),
    )
    return quantized_launches(cfg, target, layer, x, values.shape[0], residual, activation)


def _gated_legal(
    target: Target, x: TensorType, gate: TensorType, gate_scales: TensorType, *rest: Any, **attrs
) -> str | None:
    up, up_scales = rest[1], rest[2]
    if (row_stride(gate), row_stride(gate_scales)) != (row_stride(up), row_stride(up_scales)):
        return "rows of gate and up that lie differently"
    return quantized_gated_legal(target, x, gate, gate_scales, *rest, **attrs)


@quantized_gated_linear.kernel("gpu", legal=_gated_legal, layouts=LAYOUTS, **QUANTIZED_SPACE)
def _quantized_gated(
    cfg: Config,
    target: Target,
    x: TensorType,
    gate: TensorType,
    gate_scales: TensorType,
    gate_sums: TensorType,
    up: TensorType,
    up_scales: TensorType,
    up_sums: TensorType,
    gate_bias: TensorType | None,
    up_bias: TensorType | None,
    *,
    format: str,
    activations: str,
    activation: str,
    out: torch.dtype,
) -> list[Launch]:
    given: dict[str, TensorType | None] = {
        "gate": gate,
        "gate_scales": gate_scales,
        "gate_sums": gate_sums,
        "up": up,
    }
    given |= {"up_scales": up_scales, "up_sums": up_sums}
    given |= {"gate_bias": gate_bias, "up_bias": up_bias}
    found = {name: t and Pointer(name, t.dtype) for name, t in given.items()}
    names = ("gate", "gate_scales", "gate_sums", "up", "up_scales", "up_sums", "gate_bias")
    roles = ("values", "scales", "sums", "up", "up_scales", "up_sums", "bias")
    tensors: dict[str, Any] = {role: found[name] for role, name in zip(roles, names, strict=True)}
    tensors |= {"up_bias": found["up_bias"], "residual": None}
    layer = StoredLayer(
        FORMATS[format],
        _compute(x, activations),
        tensors,
        row_stride(gate),
        row_stride(gate_scales),
    )
    return quantized_launches(cfg, target, layer, x, gate.shape[0], None, activation)
