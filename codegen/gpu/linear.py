"""Linear layers on a GPU: tiles of tensor-core products with the epilogue in registers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
from sympy import And, Gt, Le, Min

from infopt.codegen.gpu.descriptors import describable, grid_for
from infopt.codegen.gpu.linear_source import FEW_SOURCE, SOURCE
from infopt.codegen.gpu.text import launch
from infopt.codegen.gpu.tiles import Tile
from infopt.codegen.kernel import Config, aten_kernel
from infopt.codegen.kernels.linear import (
    LAYOUTS,
    gated_legal,
    gated_linear,
    linear_act,
    linear_legal,
    only_if,
)
from infopt.codegen.kernels.rows import SHORT, as_rows, ceil_div, row_stride
from infopt.codegen.launch import Launch, Pointer, Scratch, Work
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

ROWS_OF_FEW = 16  # up to so many rows, the weight streams by instead of being tiled
MEDIUM = 64  # up to so many rows, one row of small tiles
GROUP = 8  # rows of tiles that share operands in the second cache
SUM_BLOCK = 512

# What the tuner may try, the usual first; "usual" leaves it to the sizes.
TILES_SPACE = {
    "tile": (
        *("usual", "128x256x64 w8 s3", "128x128x64 w8 s3", "128x64x64 w4 s4", "64x128x64 w4 s4"),
        "64x64x64 w4 s4",
    ),
    "few": ("usual", "16x256 w4 s3", "8x512 w4 s4", "32x256 w8 s3"),
    "persistent": ("usual", True, False, "flat"),
    "loads": ("pointers", "descriptors"),
}


@dataclass(frozen=True)
class Layer:
    """A linear layer in the names of an op's parameters, None where it has no such tensor."""

    x: str
    weight: str
    up: str | None = None
    bias: str | None = None
    up_bias: str | None = None
    residual: str | None = None


def usual_tile(m: Size, n: Size, dtype: torch.dtype, target: Target) -> Tile:
    """The tile for a product of m rows and n columns (open ones count as many)."""
    if dtype is torch.float32:  # summed without tensor cores, from registers
        return Tile(64, 64, 16, 4, 3)
    few = isinstance(m, int) and m <= MEDIUM
    if few or (isinstance(n, int) and n <= 64):
        return Tile(64, 64, 64, 4, 4)
    small = isinstance(m, int) and isinstance(n, int) and m * n < 128 * 128 * target.cores
    if small:
        return Tile(128, 64, 64, 4, 3)
    if target.arch not in ("sm90", "sm100"):
        return Tile(128, 128, 64, 8, 3)
    return Tile(128, 256, 64, 8, 3)


def layer_launches(
    cfg: Config,
    target: Target,
    layer: Layer,
    x: TensorType,
    weight: TensorType,
    bias: TensorType | None,
    residual: TensorType | None,
    activation: str,
) -> list[Launch]:
    """The launches of a layer; of those for other numbers of rows than a call has, none runs."""
    rows, out = as_rows(x), as_rows(cfg.out)
    assert rows is not None and out is not None
    r = as_rows(residual) if residual is not None else None
    m, n, k = rows.count, weight.shape[0], weight.shape[1]
    bias_dtype = bias.dtype if bias is not None else x.dtype
    tensors = {
        "x": Pointer(layer.x, x.dtype),
        "weight": Pointer(layer.weight, weight.dtype),
        "up": layer.up and Pointer(layer.up, weight.dtype),
        "bias": layer.bias and Pointer(layer.bias, bias_dtype),
        "up_bias": layer.up_bias and Pointer(layer.up_bias, bias_dtype),
        "residual": residual and Pointer(str(layer.residual), residual.dtype),
        "out": Pointer("out", cfg.out.dtype),
    }
    sizes = {
        **{"m": m, "n": n, "k": k, "x_stride": rows.stride, "weight_stride": row_stride(weight)},
        **{"residual_stride": r.stride if r else 0, "out_stride": out.stride},
    }
    end = {"ACTIVATION": activation, "GATED": layer.up is not None}
    made: list[Launch] = []
    least = 0  # rows that the launches so far are for
    if not target.batch_invariant:  # these sum in another order than the tiles
        made += _row_launches(cfg, target, tensors, sizes, end, sympy.Eq(m, 1))
        few = And(Gt(m, 1), Le(m, ROWS_OF_FEW))
        made += _few_launches(target, tensors, sizes, end, few, x.dtype)
        least = ROWS_OF_FEW
    if cfg.tile != "usual" or isinstance(m, int) or target.batch_invariant:
        tile = usual_tile(m, n, x.dtype, target) if cfg.tile == "usual" else Tile.parse(cfg.tile)
        ranges = [(Gt(m, least), tile)]
    else:
        ranges = [
            (condition, usual_tile(rows_of, n, x.dtype, target))
            for condition, rows_of in (
                (And(Gt(m, least), Le(m, MEDIUM)), MEDIUM),
                (Gt(m, MEDIUM), m),
            )
        ]
    for condition, tile in ranges:
        made.append(_tiles(cfg, target, tensors, sizes, end, condition, tile, x.dtype))
    return [launch for launch in made if 0 not in launch.grid]


def _tiles(
    cfg: Config,
    target: Target,
    tensors: Any,
    sizes: Any,
    end: Any,
    condition: Any,
    tile: Tile,
    dtype: torch.dtype,
) -> Launch:
    m, n, k = sizes["m"], sizes["n"], sizes["k"]
    sides = 2 if end["GATED"] else 1
    if dtype is torch.float32:  # from registers: larger tiles do not fit them, 8 warps spill
        tile = replace(tile, m=min(tile.m, 64), n=min(tile.n, 64), k=min(tile.k, 16), warps=4)
    tile = tile.fitted(target, (tile.m + tile.n) * dtype.itemsize)
    if sides == 2:  # half of the columns are the gate's, half the other's
        # of wider ones something is spilled on sm80
        most = 64 if target.arch == "sm80" else 128
        tile = replace(tile, n=min(most, tile.n // 2))
    matrices = ((m, k, sizes["x_stride"]), (n, k, sizes["weight_stride"]))
    described = cfg.loads == "descriptors" and all(describable(*s, dtype, target) for s in matrices)
    count = ceil_div(m, tile.m) * ceil_div(n, tile.n)
    persistent = cfg.persistent
    if persistent == "usual":
        persistent = isinstance(count, int) and count > 2 * target.cores
    elif isinstance(count, int) and count <= target.cores:
        persistent = False  # each has one
    if target.arch == "sm100" and tile.m <= 64 and (sides == 2 or persistent == "flat"):
        persistent = False  # something is spilled around a loop over such tiles
    flat = described and persistent == "flat"
    programs = Min(count, target.cores) if persistent else count
    if described:
        programs = grid_for(m, programs)
    return launch(
        SOURCE,
        "linear_tiles",
        grid=(only_if(condition, int(programs) if isinstance(count, int) else programs),),
        warps=tile.warps,
        stages=tile.stages,
        **tensors,
        **sizes,
        **end,
        **{"BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k},
        **{"EVEN_K": divides(tile.k, k), "GROUP": GROUP, "PERSISTENT": bool(persistent)},
        **{"DESCRIPTORS": described, "FLAT": flat},
        descriptors=(1 + sides) * described,
        PIECES=pieces(tile, sides),
        work=Work(
            steps=ceil_div(k, tile.k),
            flops=2 * sides * tile.m * tile.n * tile.k,
            loads=(tile.m + sides * tile.n) * tile.k * dtype.itemsize,
            dtype=SHORT[dtype],
            values=sides * tile.m * tile.n,
            stores=tile.m * tile.n * dtype.itemsize,
            units=count,
            flat=flat,
        ),
    )


def _row_launches(
    cfg: Config, target: Target, tensors: Any, sizes: Any, end: Any, condition: Any
) -> list[Launch]:
    n, k = sizes["n"], sizes["k"]
    form = ("8x256 w4 s3" if end["GATED"] else "16x256 w4 s3") if cfg.few == "usual" else cfg.few
    tile = Tile.parse("1x" + form)
    itemsize = tensors["weight"].dtype.itemsize
    tile = tile.fitted(target, (2 if end["GATED"] else 1) * tile.n * itemsize)
    return _streamed("linear_row", target, tensors, sizes, end, condition, tile, 1, k, n)


def _few_launches(
    target: Target, tensors: Any, sizes: Any, end: Any, condition: Any, dtype: torch.dtype
) -> list[Launch]:
    n, k = sizes["n"], sizes["k"]
    depth = 32 if dtype is torch.float32 else 128
    tile = Tile(ROWS_OF_FEW, 32 if dtype is torch.float32 else 64, depth, 4, 3)
    sides = 2 if end["GATED"] else 1
    tile = tile.fitted(target, (tile.m + sides * tile.n) * dtype.itemsize)
    return _streamed("linear_few", target, tensors, sizes, end, condition, tile, tile.m, k, n)


def _streamed(
    entry: str,
    target: Target,
    tensors: Any,
    sizes: Any,
    end: Any,
    condition: Any,
    tile: Tile,
    most_rows: int,
    k: Size,
    n: Size,
) -> list[Launch]:
    """The launch of a kernel past which the weight streams, and of the sum of its shares."""
    split = shares(n, k, tile, target)
    sides = 2 if end["GATED"] else 1
    parts = None
    if split > 1:
        parts = Pointer(Scratch("parts", 4 * sides * split * most_rows * n), torch.float32)
    block = {"BLOCK_M": tile.m} if entry == "linear_few" else {}
    x = tensors["x"].dtype
    weights, made = sides * tile.n * tile.k, sides * tile.m * tile.n
    by_products = entry == "linear_few"  # a single row is summed lane by lane
    work = Work(
        steps=ceil_div(ceil_div(k, tile.k), split),
        flops=2 * tile.m * weights if by_products else 0,
        vector=0 if by_products else 3 * weights,
        loads=(tile.m * tile.k + weights) * x.itemsize,
        dtype=SHORT[x],
        values=made if by_products else weights,
        stores=made * (4 if split > 1 else x.itemsize),
    )
    columns = only_if(condition, ceil_div(n, tile.n))
    first = launch(
        FEW_SOURCE,
        entry,
        grid=(columns, split),
        warps=tile.warps,
        stages=tile.stages,
        **tensors,
        parts=parts,
        **sizes,
        **end,
        **block,
        **{"BLOCK_N": tile.n, "BLOCK_K": tile.k, "EVEN_K": divides(tile.k * split, k)},
        **{"SPLIT": split, "STAGES": tile.stages},
        work=work,
    )
    if parts is None:
        return [first]
    names = ("bias", "up_bias", "residual", "out")
    last = launch(
        FEW_SOURCE,
        "linear_sum",
        grid=(only_if(condition, ceil_div(n, SUM_BLOCK)), sizes["m"]),
        warps=4,
        parts=parts,
        **{name: tensors[name] for name in names},
        **{name: sizes[name] for name in ("m", "n", "residual_stride", "out_stride")},
        **end,
        **{"BLOCK_N": SUM_BLOCK, "SPLIT": split},
        work=work_of_sum(sides, split),
    )
    return [first, last]


def work_of_sum(sides: int, split: int) -> Work:
    """Of `linear_sum`: a block of columns, all shares of it."""
    shared_out = sides * split * SUM_BLOCK
    return Work(1, 0, 4 * shared_out, "f32", sides * SUM_BLOCK, shared_out, 4 * SUM_BLOCK)


def shares(n: Size, k: Size, tile: Tile, target: Target) -> int:
    """Into how many parts k is cut, for all multiprocessors to have something to read."""
    if not (isinstance(n, int) and isinstance(k, int)):
        return 1
    programs, steps = -(-n // tile.n), -(-k // tile.k)
    split = 1
    while programs * split < target.cores and steps >= 8 * split:
        split *= 2
    return split


def pieces(tile: Tile, sides: int) -> int:
    """In how many pieces a tile gets its epilogue: of 32 values of a thread, at most."""
    values = tile.m * tile.n * sides // (tile.warps * 32)
    return min(4, max(1, values // 32), max(1, tile.n // 32))


def divides(step: int, size: Size) -> bool:
    return isinstance(size, int) and size % step == 0


@linear_act.kernel("gpu", legal=linear_legal, layouts=LAYOUTS, over=("residual",), **TILES_SPACE)
def _linear_act(
    cfg: Config,
    target: Target,
    x: TensorType,
    weight: TensorType,
    bias: TensorType | None,
    residual: TensorType | None,
    *,
    activation: str,
) -> list[Launch]:
    layer = Layer("x", "weight", bias=bias and "bias", residual=residual and "residual")
    return layer_launches(cfg, target, layer, x, weight, bias, residual, activation)


@gated_linear.kernel("gpu", legal=gated_legal, layouts=LAYOUTS, **TILES_SPACE)
def _gated(
    cfg: Config,
    target: Target,
    x: TensorType,
    gate: TensorType,
    up: TensorType,
    gate_bias: TensorType | None,
    up_bias: TensorType | None,
    *,
    activation: str,
) -> list[Launch]:
    layer = Layer("x", "gate", "up", gate_bias and "gate_bias", up_bias and "up_bias")
    return layer_launches(cfg, target, layer, x, gate, gate_bias, None, activation)


@aten_kernel("linear.default", kind="gpu", legal=linear_legal, layouts=LAYOUTS, **TILES_SPACE)
def _linear(
    cfg: Config, target: Target, x: TensorType, weight: TensorType, bias: TensorType | None
) -> list[Launch]:
    layer = Layer("input", "weight", bias=bias and "bias")
    return layer_launches(cfg, target, layer, x, weight, bias, None, "none")
