"""Linear layers with weights in few bits on a GPU: numbers are made of them in registers.

The product is weight xT, the narrow weight on the left; a factor is applied once to the sum of its
group. Activations in bytes are made by a launch of their own, and their products are of integers;
so is what entries beside a weight add (remainder.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy
import torch
from sympy import Gt, Le

from infopt.codegen.gpu.linear import divides, shares, work_of_sum
from infopt.codegen.gpu.quantized_linear_source import SOURCE
from infopt.codegen.gpu.remainder import rest_launches
from infopt.codegen.gpu.row_bytes import bytes_of
from infopt.codegen.gpu.text import launch
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
from infopt.codegen.launch import Launch, Pointer, Scratch, Work
from infopt.codegen.weight_formats.formats import stored_format
from infopt.codegen.weight_formats.integers import Integers
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

FEW_ROWS = 16  # up to so many rows share one block, and k is cut for all to have work
SUM_BLOCK = 512
_UNPACKING = {19: 12, 20: 10}  # operations that make a number of a stored weight, by layout
_USUAL_UNPACKING = 4
_CONVERTING = ("sm90", "sm100")  # whose own floats of 8 bits are these; gfx942 has another e4m3
# "columns x rows" of a block for many rows, the usual first
QUANTIZED_SPACE = {"block": ("usual", "128x64 w8 s3", "64x64 w4 s3", "64x32 w4 s3")}


@dataclass(frozen=True)
class StoredLayer:
    """A layer's tensors by role: pointers, or None; strides are those of both sides' matrices.

    remainders  by the role of what they add: "rest", "up_rest", each with its length
    """

    format: Integers
    compute: str
    tensors: dict[str, Pointer | None]
    remainders: dict[str, tuple[Pointer, Size]]
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
        into = {"codes": codes, "steps": tensors["steps"], "zeros": tensors["zeros"]}
        made.append(bytes_of(x, rows, into, x_stride))
    tensors |= layer.tensors | {"out": Pointer("out", cfg.out.dtype)}
    sizes = {"m": m, "n": n, "k": k, "x_stride": x_stride, "value_stride": layer.value_stride}
    sizes |= {"scale_stride": layer.scale_stride, "residual_stride": r.stride if r else 0}
    sizes |= {"out_stride": out.stride}
    end = {"ACTIVATION": activation, "GATED": tensors["up"] is not None}
    wide = layer.compute == "f32"
    few = sympy.false if target.batch_invariant else Le(m, FEW_ROWS)
    if layer.remainders:
        narrow = layer.compute == "bf16"
        source = Pointer("x", x.dtype)
        before, rests = rest_launches(source, rows, n, layer.remainders, narrow, few, FEW_ROWS)
        made += before
        tensors |= rests
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
    depth = max(group, 32 if layer.format.bits == 8 else 64)
    if layer.format.layout == 19:
        depth = 64  # codes of 128 and what they become take every register that there is
    elif not group:
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
        **{"LAYOUT": layer.format.layout, "GROUP": group, "COMPUTE": layer.compute},
        NATIVE=target.arch in _CONVERTING,
        **{"BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": depth},
        **{"EVEN_K": divides(depth, k), "SPLIT": split, "STAGES": tile.stages},
        work=Work(
            steps=ceil_div(ceil_div(k, depth), split) * sides,  # one side after the other
            flops=2 * tile.m * tile.n * depth,
            vector=_UNPACKING.get(layer.format.layout, _USUAL_UNPACKING) * tile.n * depth,
            loads=tile.m * depth * held + tile.n * depth * layer.format.bits // 8,
            dtype={"int8": "i8"}.get(layer.compute, layer.compute),
            values=sides * tile.m * tile.n,
            stores=sides * tile.m * tile.n * (4 if split > 1 else 2),
        ),
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
        work=work_of_sum(sides, split),
    )
    return [first, last]


def _compute(x: TensorType, activations: str) -> str:
    if activations == "int8":
        return "int8"
    return "bf16" if activations == "bf16" or x.dtype is torch.bfloat16 else "f32"


def _lengths(**given: tuple[str, TensorType | None]) -> dict[str, tuple[Pointer, Size]]:
    """Remainders that there are, by role, with their lengths."""
    return {r: (Pointer(n, t.dtype), t.shape[0]) for r, (n, t) in given.items() if t is not None}


# in the order of the kernel's parameters
_ROLES = (
    *("values", "scales", "sums", "up", "up_scales", "up_sums", "rest", "up_rest"),
    *("bias", "up_bias", "residual"),
)
_ROUNDED = ("none", "bf16", "int8")


def _legal(target: Target, x: TensorType, *rest: Any, activations: str, **attrs: Any) -> str | None:
    if activations not in _ROUNDED:
        return f"rows rounded as {activations}"
    if attrs["out_step"]:
        return "results rounded to bytes"
    return quantized_legal(target, x, *rest, activations=activations, **attrs)


@quantized_linear.kernel(
    "gpu", legal=_legal, layouts=LAYOUTS, over=("residual",), **QUANTIZED_SPACE
)
def _quantized_linear(
    cfg: Config,
    target: Target,
    x: TensorType,
    values: TensorType,
    scales: TensorType,
    sums: TensorType,
    bias: TensorType | None,
    residual: TensorType | None,
    remainder: TensorType | None,
    out_factors: TensorType | None,
    *,
    format: str,
    activations: str,
    activation: str,
    out: torch.dtype,
    **fixed: Any,
) -> list[Launch]:
    given = {"values": values, "scales": scales, "sums": sums, "bias": bias, "residual": residual}
    found = {name: t and Pointer(name, t.dtype) for name, t in given.items()}
    layer = StoredLayer(
        stored_format(format),
        _compute(x, activations),
        {role: found.get(role) for role in _ROLES},
        _lengths(rest=("remainder", remainder)),
        row_stride(values),
        row_stride(scales),
    )
    return quantized_launches(cfg, target, layer, x, values.shape[0], residual, activation)


def _gated_legal(
    target: Target, x: TensorType, gate: TensorType, gate_scales: TensorType, *rest: Any, **attrs
) -> str | None:
    up, up_scales = rest[1], rest[2]
    if attrs["activations"] not in _ROUNDED:
        return f"rows rounded as {attrs['activations']}"
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
    gate_remainder: TensorType | None,
    up_remainder: TensorType | None,
    *,
    format: str,
    activations: str,
    activation: str,
    out: torch.dtype,
    **fixed: Any,
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
    found |= {"values": found["gate"], "scales": found["gate_scales"], "sums": found["gate_sums"]}
    found |= {"bias": found["gate_bias"]}
    layer = StoredLayer(
        stored_format(format),
        _compute(x, activations),
        {role: found.get(role) for role in _ROLES},
        _lengths(rest=("gate_remainder", gate_remainder), up_rest=("up_remainder", up_remainder)),
        row_stride(gate),
        row_stride(gate_scales),
    )
    return quantized_launches(cfg, target, layer, x, gate.shape[0], None, activation)
