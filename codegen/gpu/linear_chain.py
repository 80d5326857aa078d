"""Thin factors on a GPU: a program takes its rows through both products, or through an MLP's four.

What lies between them stays on the chip: the products with the thin factors whole, the hidden
features a tile at a time.
"""

from __future__ import annotations

from typing import Any

import torch

from infopt.codegen.gpu.linear import divides
from infopt.codegen.gpu.linear_source import EPILOGUE
from infopt.codegen.gpu.text import ACTIVATE, HEADER, launch
from infopt.codegen.gpu.tiles import power_of_two
from infopt.codegen.kernel import Config
from infopt.codegen.kernels.chain_calls import MOST, split
from infopt.codegen.kernels.linear_chain import CHAIN_LAYOUTS, OVER, chain_legal, linear_chain
from infopt.codegen.kernels.rows import as_rows, ceil_div, row_stride
from infopt.codegen.launch import Launch, Pointer
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType

# Of what both thin products may have: more do not fit the registers. f32 is not for tensor cores.
MOST_RANK = {torch.float32: 16, torch.float16: 256, torch.bfloat16: 256}

SOURCE = (
    HEADER
    + ACTIVATE
    + EPILOGUE
    + '''

@triton.jit
def thin(acc, bias, rank, ACTIVATION: tl.constexpr, dtype: tl.constexpr):
    """act(acc + bias) as the next product's operand, 0 in features that do not exist."""
    features = tl.arange(0, acc.shape[1])
    if bias is not None:
        acc += tl.load(bias + features, mask=features < rank, other=0.0).to(tl.float32)[None, :]
    return tl.where((features < rank)[None, :], activate(acc, ACTIVATION), 0.0).to(dtype)


@triton.jit
def turned(weight, stride, rows, n, columns, k):
    """weight[rows, columns]T, 0 outside of [n, k]."""
    at = weight + rows.to(tl.int64)[None, :] * stride + columns[:, None]
    return tl.load(at, mask=(rows < n)[None, :] & (columns < k)[:, None], other=0.0)


@triton.jit
def chain_rows(x, w0, w1, w2, w3, b0, b1, b2, b3, residual, out, m, k, rank, hidden, second, n,
               x_stride, s0, s1, s2, s3, residual_stride, out_stride, ACTIVATION_0: tl.constexpr,
               ACTIVATION_1: tl.constexpr, ACTIVATION_2: tl.constexpr, ACTIVATION_3: tl.constexpr,
               FOUR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
               BLOCK_K: tl.constexpr, RANK: tl.constexpr, SECOND: tl.constexpr,
               EVEN_K: tl.constexpr):
    """x -> act(x w0T + b0) -> act(. w1T + b1), FOUR: and on with w2 and w3; + residual."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    depth, features = tl.arange(0, BLOCK_K), tl.arange(0, RANK)
    # rows and features that do not exist read the first
    x_at = x + tl.where(rows < m, rows, 0).to(tl.int64)[:, None] * x_stride + depth[None, :]
    w_at = w0 + tl.where(features < rank, features, 0).to(tl.int64)[None, :] * s0 + depth[:, None]
    acc = tl.zeros((BLOCK_M, RANK), dtype=tl.float32)
    for start in range(0, k, BLOCK_K):
        if EVEN_K:
            a, b = tl.load(x_at), tl.load(w_at)
        else:
            a = tl.load(x_at, mask=(depth < k - start)[None, :], other=0.0)
            b = tl.load(w_at, mask=(depth < k - start)[:, None], other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
        x_at += BLOCK_K
        w_at += BLOCK_K
    p = thin(acc, b0, rank, ACTIVATION_0, x.dtype.element_ty)
    tile = tl.arange(0, BLOCK_N)
    if FOUR:
        others = tl.arange(0, SECOND)
        total = tl.zeros((BLOCK_M, SECOND), dtype=tl.float32)
        for start in range(0, hidden, BLOCK_N):
            columns = start + tile
            h = tl.dot(p, turned(w1, s1, columns, hidden, features, rank), input_precision="ieee")
            if b1 is not None:
                h += tl.load(b1 + columns, mask=columns < hidden, other=0.0).to(tl.float32)[None, :]
            h = tl.where((columns < hidden)[None, :], activate(h, ACTIVATION_1), 0.0)
            weight = turned(w2, s2, others, second, columns, hidden)
            total = tl.dot(h.to(x.dtype.element_ty), weight, total, input_precision="ieee")
        q = thin(total, b2, second, ACTIVATION_2, x.dtype.element_ty)
        for start in range(0, n, BLOCK_N):
            columns = start + tile
            y = tl.dot(q, turned(w3, s3, columns, n, others, second), input_precision="ieee")
            finish(y, y, b3, None, residual, out, rows, columns, m, n, residual_stride,
                   out_stride, ACTIVATION_3, False)
    else:
        for start in range(0, n, BLOCK_N):
            columns = start + tile
            y = tl.dot(p, turned(w1, s1, columns, n, features, rank), input_precision="ieee")
            finish(y, y, b1, None, residual, out, rows, columns, m, n, residual_stride,
                   out_stride, ACTIVATION_1, False)
'''
)

TILES_SPACE = {"tile": ("usual", "fewer rows")}


def _legal(
    target: Target, x: TensorType, *operands: TensorType | None, functions: tuple[str, ...]
) -> str | None:
    reason = chain_legal(target, x, *operands, functions=functions)
    if reason is not None:
        return reason
    weights, *_, up1, _ = split(operands)
    if up1 is not None:
        return "a gate among the products"
    if len(weights) == 3:
        return "three products, expected two or four"
    most = MOST_RANK[x.dtype]
    ranks = [int(w.shape[0]) for w in weights[::2]]  # type: ignore[arg-type]
    if max(ranks) > most:
        return f"rank {max(ranks)} in {x.dtype}, of which the registers hold {most}"
    return None


def _tile(named: str, target: Target, x: TensorType, rank: int) -> tuple[int, int, int]:
    """Rows, features at a time, and warps: those of which nothing is spilled."""
    if x.dtype.itemsize > 2:
        return (32, 64 if named == "fewer rows" else 32, 4)
    amd, wide = target.arch.startswith("gfx"), rank > 128
    if wide:
        return (32, 32, 4) if amd else (32, 64, 8)
    if named == "fewer rows":
        return (32, 64, 4)
    return (64, 64, 4 if amd else 8)


@linear_chain.kernel("gpu", legal=_legal, layouts=CHAIN_LAYOUTS, over=OVER, **TILES_SPACE)
def _linear_chain(
    cfg: Config,
    target: Target,
    x: TensorType,
    *operands: TensorType | None,
    functions: tuple[str, ...],
) -> Launch:
    weights, biases, residual, *_ = split(operands)
    rows, out = as_rows(x), as_rows(cfg.out)
    added = as_rows(residual) if residual is not None else None
    assert rows is not None and out is not None
    ranks = [int(w.shape[0]) for w in weights[::2]]  # type: ignore[arg-type]
    block_m, block_n, warps = _tile(cfg.tile, target, x, max(ranks))
    block_k = 64 if x.dtype.itemsize == 2 else 16
    absent = [None] * (MOST - len(weights))
    names = [*(f"w{i}" for i in range(MOST)), *(f"b{i}" for i in range(MOST))]
    tensors: dict[str, Any] = dict(zip(names, [*weights, *absent, *biases, *absent], strict=True))
    four = len(weights) == MOST
    strides = [*(row_stride(w) for w in weights), *([0] * len(absent))]
    acts = [*functions, *(["none"] * len(absent))]
    sizes: dict[str, Any] = {
        **{"m": rows.count, "k": rows.width, "rank": ranks[0]},
        **{"hidden": weights[1].shape[0], "second": ranks[-1], "n": out.width},
        **{"x_stride": rows.stride, **{f"s{i}": stride for i, stride in enumerate(strides)}},
        **{"residual_stride": added.stride if added else 0, "out_stride": out.stride},
    }
    constants: dict[str, Any] = {
        **{f"ACTIVATION_{i}": name for i, name in enumerate(acts)},
        **{"FOUR": four, "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k},
        **{"RANK": power_of_two(ranks[0]), "SECOND": power_of_two(ranks[-1])},
    }
    pointers: dict[str, Any] = {name: t and Pointer(name, t.dtype) for name, t in tensors.items()}
    return launch(
        SOURCE,
        "chain_rows",
        grid=(ceil_div(rows.count, block_m),),
        warps=warps,
        stages=2,
        x=Pointer("x", x.dtype),
        **pointers,
        residual=residual and Pointer("residual", residual.dtype),
        out=Pointer("out", cfg.out.dtype),
        **sizes,
        **constants,
        EVEN_K=divides(block_k, rows.width),
    )
