"""How much attention each key receives, without the matrix of attention weights."""

from __future__ import annotations

from typing import Any

import torch

from infopt.codegen.kernel import Call, Config, kernel_op
from infopt.codegen.kernels.rows import ELEMENT, FLOATS, contiguous, dense_last, round_up
from infopt.compiler.accuracy import Exact
from infopt.compiler.cost import flops_of
from infopt.compiler.graph import Node
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType


def _cases() -> Any:
    for dtype in (torch.float32, torch.bfloat16):
        q, k = torch.randn(2, 4, 11, 20).to(dtype), torch.randn(2, 2, 21, 20).to(dtype)
        yield (q, k, None), {"scale": 0.2}
        yield (k, k, (torch.rand(2, 21) > 0.5).float().log()), {"scale": 1.0}


@kernel_op(cases=_cases, tolerance=Exact())
def attention_received(q, k, bias=None, *, scale):
    """The mean over queries of softmax(scale q kᵀ + bias), f32 [B, H, S], for q [B, H, T, D], k
    [B, H / groups, S, D] and a bias f32 [B, S] by key."""
    wide = torch.promote_types(q.dtype, torch.float32)
    keys = k.to(wide).repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = scale * (q.to(wide) @ keys.transpose(2, 3))
    if bias is not None:
        scores = scores + bias[:, None, None]
    return scores.softmax(-1).mean(2).float()


@flops_of("attention_received")
def _flops(node: Node) -> Size:
    """One product and a softmax of the scores; 16 operations for each, as of softmax alone."""
    q, k = (node.args[i].tensor_type for i in (0, 1))
    return q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] * (2 * q.shape[3] + 16)


def received_legal(
    target: Target, q: TensorType, k: TensorType, bias: TensorType | None, *, scale: float
) -> str | None:
    if q.dtype not in FLOATS or q.dtype != k.dtype:
        return f"dtypes {q.dtype} and {k.dtype}"
    heads = (q.shape[1], k.shape[1])
    if not all(isinstance(n, int) and n for n in heads) or heads[0] % heads[1]:
        return f"{heads[0]} heads of {heads[1]}"
    return None if bias is None or bias.dtype is torch.float32 else f"a bias {bias}"


@attention_received.kernel(
    "cpu", legal=received_legal, layouts={"q": dense_last, "k": dense_last, "bias": contiguous}
)
def _received(
    cfg: Config,
    target: Target,
    q: TensorType,
    k: TensorType,
    bias: TensorType | None,
    *,
    scale: float,
) -> Call:
    (batch, heads, queries, depth), keys = q.shape, k.shape[2]
    strides = (*q.strides[:3], *k.strides[:3])
    numbers = (queries, keys, depth, heads, k.shape[1], *strides, ELEMENT[q.dtype], float(scale))
    scratch = 4 * (round_up(keys, 16) * (depth + 5) + 4 * depth + 16)
    names = ("q", "k", bias and "bias", "out")
    return Call("infopt_attention_received", names, numbers, batch * heads, scratch=scratch)
