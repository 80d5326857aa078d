"""How much attention each key receives, on a GPU: the scores are made twice and stored never.

First every query's highest score and sum of weights, then every key's share of all queries.
"""

from __future__ import annotations

import torch

from infopt.codegen.gpu.attention import DEEPEST
from infopt.codegen.gpu.attention_source import SOURCE as ATTENTION_SOURCE
from infopt.codegen.gpu.text import launch
from infopt.codegen.gpu.tiles import power_of_two
from infopt.codegen.kernel import Config
from infopt.codegen.kernels.attention_received import attention_received, received_legal
from infopt.codegen.kernels.rows import ceil_div, contiguous, dense_last
from infopt.codegen.launch import Launch, Pointer, Scratch
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType

SOURCE = (
    ATTENTION_SOURCE
    + '''

@triton.jit
def scores_of(q_block, k, bias, columns, keys, k_stride, scale, D: tl.constexpr,
              BLOCK_D: tl.constexpr):
    """Scores of queries with some keys in powers of two, -inf for keys that do not exist."""
    exists = columns < keys
    k_block = block_of(k, columns.to(tl.int64), k_stride, exists, D, BLOCK_D, True)
    z = tl.dot(q_block, tl.trans(k_block), input_precision="ieee") * (scale * 1.4426950408889634)
    if bias is not None:
        z += tl.load(bias + columns, mask=exists, other=0.0)[None, :] * 1.4426950408889634
    return tl.where(exists[None, :], z, float("-inf"))


@triton.jit
def weight_sums(q, k, bias, sums, heads, queries, keys, q_batch, q_head, q_stride, k_batch, k_head,
                k_stride, scale, GROUPS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
                BLOCK_D: tl.constexpr):
    """Of BLOCK queries of a head the highest score and the sum of weights."""
    batch = (tl.program_id(0) // heads).to(tl.int64)
    head = (tl.program_id(0) % heads).to(tl.int64)
    rows = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    in_rows = rows < queries
    q_block = block_of(q + batch * q_batch + head * q_head, rows.to(tl.int64), q_stride, in_rows, D,
                       BLOCK_D, True)
    k += batch * k_batch + head // GROUPS * k_head
    if bias is not None:
        bias += batch * keys
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    most = tl.full((BLOCK,), float("-inf"), dtype=tl.float32)
    for start in range(0, keys, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        z = scores_of(q_block, k, bias, columns, keys, k_stride, scale, D, BLOCK_D)
        higher = tl.maximum(most, tl.max(z, axis=1))
        origin = tl.where(higher == float("-inf"), 0.0, higher)  # nothing is seen yet
        total = total * tl.exp2(most - origin) + tl.sum(tl.exp2(z - origin[:, None]), axis=1)
        most = higher
    at = sums + (tl.program_id(0).to(tl.int64) * queries + rows) * 2
    tl.store(at, most, mask=in_rows)
    tl.store(at + 1, total, mask=in_rows)


@triton.jit
def weights_received(q, k, bias, sums, out, heads, queries, keys, q_batch, q_head, q_stride,
                     k_batch, k_head, k_stride, scale, GROUPS: tl.constexpr, D: tl.constexpr,
                     BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """The mean weight of BLOCK keys over all queries of a head."""
    batch = (tl.program_id(0) // heads).to(tl.int64)
    head = (tl.program_id(0) % heads).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    q += batch * q_batch + head * q_head
    k += batch * k_batch + head // GROUPS * k_head
    if bias is not None:
        bias += batch * keys
    received = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, queries, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        in_rows = rows < queries
        q_block = block_of(q, rows.to(tl.int64), q_stride, in_rows, D, BLOCK_D, True)
        z = scores_of(q_block, k, bias, columns, keys, k_stride, scale, D, BLOCK_D)
        at = sums + (tl.program_id(0).to(tl.int64) * queries + rows) * 2
        most = tl.load(at, mask=in_rows, other=0.0)
        total = tl.load(at + 1, mask=in_rows, other=1.0)
        p = tl.exp2(z - most[:, None]) / total[:, None]
        received += tl.sum(tl.where(in_rows[:, None], p, 0.0), axis=0)
    at = out + tl.program_id(0).to(tl.int64) * keys + columns
    tl.store(at, received / queries, mask=columns < keys)
'''
)


def _legal(
    target: Target, q: TensorType, k: TensorType, bias: TensorType | None, *, scale: float
) -> str | None:
    if not (isinstance(q.shape[3], int) and q.shape[3] <= DEEPEST):
        return f"heads of {q.shape[3]}, expected at most {DEEPEST}"
    return received_legal(target, q, k, bias, scale=scale)


@attention_received.kernel(
    "gpu", legal=_legal, layouts={"q": dense_last, "k": dense_last, "bias": contiguous}
)
def _received(
    cfg: Config,
    target: Target,
    q: TensorType,
    k: TensorType,
    bias: TensorType | None,
    *,
    scale: float,
) -> list[Launch]:
    (batch, heads, queries, depth), keys = q.shape, k.shape[2]
    block = 32 if q.dtype is torch.float32 or depth > 128 else 64
    if q.dtype is torch.float32 and depth > 64:
        block = 16
    sums = Scratch("sums", 8 * batch * heads * queries)
    read = {
        "q": Pointer("q", q.dtype),
        "k": Pointer("k", k.dtype),
        "bias": bias and Pointer("bias", bias.dtype),
        "sums": Pointer(sums, torch.float32),
    }
    sizes = {
        **{"heads": heads, "queries": queries, "keys": keys},
        **{
            f"{name}_{what}": stride
            for name, t in (("q", q), ("k", k))
            for what, stride in zip(("batch", "head", "stride"), t.strides[:3], strict=True)
        },
        **{"scale": float(scale), "GROUPS": heads // k.shape[1], "D": depth},
        **{"BLOCK": block, "BLOCK_D": power_of_two(depth)},
    }
    of_queries = (batch * heads, ceil_div(queries, block))
    of_keys = (batch * heads, ceil_div(keys, block))
    out = {"out": Pointer("out", cfg.out.dtype)}
    # keys that stay for all turns are kept in registers where loads of f32 factors overlap: spilled
    stages = 1 if q.dtype is torch.float32 else 3
    return [
        launch(SOURCE, "weight_sums", grid=of_queries, stages=stages, **read, **sizes),
        launch(SOURCE, "weights_received", grid=of_keys, stages=stages, **read, **out, **sizes),
    ]
