"""Matrix products of two computed values on a GPU: tiles of every batch in one launch.

A product with a transposed matrix is a linear layer (linear.py). Few rows and a single batch: k is
cut into shares that are summed in a fixed order, for all multiprocessors to have something to do.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from sympy import Gt, Le

from infopt.codegen.gpu.linear import (
    GROUP,
    ROWS_OF_FEW,
    SUM_BLOCK,
    TILES_SPACE,
    Layer,
    divides,
    layer_launches,
    shares,
    usual_tile,
    work_of_sum,
)
from infopt.codegen.gpu.matmul_source import SOURCE
from infopt.codegen.gpu.text import launch
from infopt.codegen.gpu.tiles import Tile, power_of_two
from infopt.codegen.kernel import Config, aten_kernel
from infopt.codegen.kernels.linear import only_if
from infopt.codegen.kernels.matmul import (
    added_legal,
    batches_of,
    broadcast_strides,
    product_legal,
)
from infopt.codegen.kernels.rows import SHORT, as_rows, ceil_div, dense_last
from infopt.codegen.launch import Launch, Pointer, Scratch, Work
from infopt.codegen.sizes import product, same
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType, contiguous_strides


def neighbours(t: TensorType) -> tuple[Size, ...] | None:
    """Wanted strides: neighbouring elements along the rows or along the columns."""
    fine = 1 in t.strides[-2:] or 1 in t.shape[-2:]
    return None if fine else contiguous_strides(t.shape)


def _turned(t: TensorType) -> bool:
    """Whether neighbours in memory are along the columns."""
    return t.strides[-1] != 1 and t.shape[-1] != 1


def product_launches(
    cfg: Config,
    target: Target,
    a: TensorType,
    b: TensorType,
    names: tuple[str, str, str | None],
    added: TensorType | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> list[Launch]:
    """alpha a b + beta added; names: the parameters a, b, added."""
    out, n, k = cfg.out, b.shape[-1], b.shape[-2]
    bias = added if added is None or (added.rank == 1 and beta == 1) else None
    plain = alpha == 1 and bias is added
    rows = as_rows(a)
    rows = None if rows is None or rows.stride == 0 else rows
    if plain and rows and b.rank == 2 and same(b.strides[0], 1) and not same(b.strides[1], 1):
        layer = Layer(names[0], names[1], bias=names[2] if added is not None else None)
        weight = TensorType((n, k), b.dtype, (b.strides[1], 1))
        return layer_launches(cfg, target, layer, a, weight, added, None, "none")
    m, a_step = a.shape[-2], a.strides[-1] if _turned(a) else a.strides[-2]
    batches = batches_of(a, b, out)
    d_row, _, *d_batch = broadcast_strides(added, out) if added is not None else [0] * 5
    if rows and (added is None or added.rank == 1) and all(x == 1 for x in b.shape[:-2]):
        m, a_step, batches = rows.count, rows.stride, [(1, 0, 0, 0)] * 3  # all batches are rows
    tensors: dict[str, Any] = {
        "a": Pointer(names[0], a.dtype),
        "b": Pointer(names[1], b.dtype),
        "added": Pointer(str(names[2]), added.dtype) if added is not None else None,
        "out": Pointer("out", out.dtype),
    }
    sizes: dict[str, Any] = {
        **{"m": m, "n": n, "k": k, "a_step": a_step},
        **{"b_step": b.strides[-1] if _turned(b) else b.strides[-2]},
        **{"n1": batches[1][0], "n2": batches[2][0]},
        **{f"{x}{i}": batches[i][at] for x, at in (("a", 1), ("b", 2)) for i in range(3)},
        **{f"d{i}": stride for i, stride in enumerate(d_batch)},
        **{"d_row": d_row, "alpha": float(alpha), "beta": float(beta)},
    }
    turned = {"A_TURNED": rows is None and _turned(a), "B_TURNED": _turned(b)}
    count = product([batch[0] for batch in batches])
    made: list[Launch] = []
    least = 0  # rows that the launches so far are for
    if plain and count == 1 and not target.batch_invariant:  # these sum k in shares
        # of deeper ones something is spilled on sm100
        depth = 32 if a.dtype is torch.float32 else 64 if target.arch == "sm100" else 128
        tile = Tile(ROWS_OF_FEW, 64, depth, 4, 3)
        tile = tile.fitted(target, (tile.m + tile.n) * a.dtype.itemsize)
        made += _tiles(target, tensors, sizes, turned, count, Le(m, ROWS_OF_FEW), tile, True)
        least = ROWS_OF_FEW
    tile = _usual_tile(m, n, count, a.dtype, target)
    if cfg.tile != "usual":
        tile = Tile.parse(cfg.tile)
        if a.dtype is torch.float32:  # from registers: larger tiles do not fit them
            tile = Tile(min(tile.m, 64), min(tile.n, 64), 16, 4, tile.stages)
    known = all(isinstance(size, int) for size in (m, n, k, a_step, sizes["b_step"]))
    if a.dtype is torch.float32 and (all(turned.values()) or not known):
        tile = replace(tile, n=min(tile.n, 32))  # of wider ones something is spilled here or there
    tile = tile.fitted(target, (tile.m + tile.n) * a.dtype.itemsize)
    made += _tiles(target, tensors, sizes, turned, count, Gt(m, least), tile, False)
    return [each for each in made if 0 not in each.grid]


def _usual_tile(m: Size, n: Size, batches: Size, dtype: torch.dtype, target: Target) -> Tile:
    """No larger than a batch is; by the work of all batches."""
    tile = usual_tile(product((m, batches)), n, dtype, target)
    if isinstance(m, int) and m < tile.m:
        tile = replace(tile, m=power_of_two(m))
    return replace(tile, warps=4) if tile.m * tile.n <= 64 * 64 else tile


def _tiles(
    target: Target,
    tensors: dict[str, Any],
    sizes: dict[str, Any],
    turned: dict[str, bool],
    batches: Size,
    condition: Any,
    tile: Tile,
    shared_out: bool,
) -> list[Launch]:
    m, n, k = (sizes[name] for name in "mnk")
    x = tensors["a"].dtype
    split = shares(n, k, tile, target) if shared_out else 1
    rows = min(m, ROWS_OF_FEW) if isinstance(m, int) else ROWS_OF_FEW
    parts = Pointer(Scratch("parts", 4 * split * rows * n), torch.float32) if split > 1 else None
    count = batches * ceil_div(m, tile.m) * ceil_div(n, tile.n)
    first = launch(
        SOURCE,
        "product_tiles",
        grid=(only_if(condition, count), split),
        warps=tile.warps,
        stages=tile.stages,
        **{**tensors, "added": None if split > 1 else tensors["added"]},
        parts=parts,
        **sizes,
        **turned,
        **{"BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k},
        **{"EVEN_K": divides(tile.k * split, k), "GROUP": GROUP, "SPLIT": split},
        work=Work(
            steps=ceil_div(ceil_div(k, tile.k), split),
            flops=2 * tile.m * tile.n * tile.k,
            loads=(tile.m + tile.n) * tile.k * x.itemsize,
            dtype=SHORT[x],
            values=tile.m * tile.n,
            stores=tile.m * tile.n * (4 if split > 1 else x.itemsize),
        ),
    )
    if parts is None:
        return [first]
    last = launch(
        SOURCE,
        "linear_sum",
        grid=(only_if(condition, ceil_div(n, SUM_BLOCK)), m),
        parts=parts,
        **{"bias": tensors["added"], "up_bias": None, "residual": None, "out": tensors["out"]},
        **{"m": m, "n": n, "residual_stride": 0, "out_stride": n},
        **{"ACTIVATION": "none", "GATED": False, "BLOCK_N": SUM_BLOCK, "SPLIT": split},
        work=work_of_sum(1, split),
    )
    return [first, last]


def _declare(name: str, first: str, second: str) -> None:
    @aten_kernel(
        name,
        kind="gpu",
        legal=product_legal,
        layouts={first: neighbours, second: neighbours},
        **TILES_SPACE,
    )
    def emit(cfg: Config, target: Target, a: TensorType, b: TensorType) -> list[Launch]:
        return product_launches(cfg, target, a, b, (first, second, None))


_declare("mm.default", "self", "mat2")
_declare("bmm.default", "self", "mat2")
_declare("matmul.default", "self", "other")


def _declare_added(name: str, first: str, second: str) -> None:
    @aten_kernel(
        name,
        kind="gpu",
        legal=added_legal,
        layouts={"self": dense_last, first: neighbours, second: neighbours},
        **TILES_SPACE,
    )
    def emit(
        cfg: Config,
        target: Target,
        added: TensorType,
        a: TensorType,
        b: TensorType,
        *,
        beta: float,
        alpha: float,
    ) -> list[Launch]:
        names = (first, second, "self")
        return product_launches(cfg, target, a, b, names, added, alpha, beta)


_declare_added("addmm.default", "mat1", "mat2")
_declare_added("baddbmm.default", "batch1", "batch2")
