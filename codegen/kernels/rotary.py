"""Rotary position embedding of queries and keys."""

from __future__ import annotations

from typing import Any

import torch

from infopt.codegen.kernel import Call, Config, kernel_op
from infopt.codegen.kernels.rows import ELEMENT, FLOATS, ceil_div, contiguous, dense_last, round_up
from infopt.codegen.sizes import same
from infopt.compiler.accuracy import Exact
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

_TOKENS = 4  # of one task


def _cases() -> Any:
    for rotated in (16, 8):
        q, k = torch.randn(2, 4, 5, 16), torch.randn(2, 2, 5, 16)
        cos, sin = torch.randn(1, 5, rotated), torch.randn(1, 5, rotated)
        yield (q, k, cos, sin), {"interleaved": False}
        yield (q, k, cos, sin), {"interleaved": True}


def _turned(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool
) -> torch.Tensor:
    rotated = cos.shape[-1]
    turned, rest = x[..., :rotated], x[..., rotated:]
    if interleaved:
        quarter = torch.stack((-turned[..., 1::2], turned[..., ::2]), -1).flatten(-2)
    else:
        quarter = torch.cat((-turned[..., rotated // 2 :], turned[..., : rotated // 2]), -1)
    y = turned * cos.unsqueeze(1) + quarter * sin.unsqueeze(1)
    return y.to(x.dtype) if rotated == x.shape[-1] else torch.cat((y.to(x.dtype), rest), -1)


@kernel_op(cases=_cases, tolerance=Exact())
def rotary(q, k, cos, sin, *, interleaved=False):
    """(q, k) with the first R features of each head turned by an angle that depends on the token.

    q [B, H, T, D], k [B, H', T, D]; cos, sin [B or 1, T, R] with R even. The pairs that turn are
    (i, i + R/2), or (2i, 2i + 1) where interleaved.
    """
    return _turned(q, cos, sin, interleaved), _turned(k, cos, sin, interleaved)


def rotary_legal(
    target: Target,
    q: TensorType,
    k: TensorType,
    cos: TensorType,
    sin: TensorType,
    *,
    interleaved: bool,
) -> str | None:
    if (
        q.dtype not in FLOATS
        or q.dtype != k.dtype
        or cos.dtype != sin.dtype
        or cos.dtype not in FLOATS
    ):
        return f"dtypes {q.dtype}, {k.dtype}, {cos.dtype}, {sin.dtype}"
    if not q.rank == k.rank == 4 or not cos.rank == sin.rank == 3 or cos.shape != sin.shape:
        return f"q {q}, cos {cos}, sin {sin}"
    if not (same(q.shape[0], k.shape[0]) and same(q.shape[2], k.shape[2])):
        return "keys at other tokens than the queries"
    if not isinstance(cos.shape[2], int) or not isinstance(q.shape[3], int) or cos.shape[2] % 2:
        return "a depth that is open or odd"
    if (cos.shape[0] != 1 and not same(cos.shape[0], q.shape[0])) or not same(
        cos.shape[1], q.shape[2]
    ):
        return f"tables {cos}"
    return None


@rotary.kernel(
    "cpu",
    legal=rotary_legal,
    layouts={"q": dense_last, "k": dense_last, "cos": contiguous, "sin": contiguous},
)
def _rotary(
    cfg: Config,
    target: Target,
    q: TensorType,
    k: TensorType,
    cos: TensorType,
    sin: TensorType,
    *,
    interleaved: bool,
) -> Call:
    heads = [(n, t, o, f"out{i}") for i, (n, t, o) in enumerate(zip("qk", (q, k), cfg.outs)) if o]
    b, _, t, d = q.shape
    rotated = cos.shape[2]
    batch = 0 if cos.shape[0] == 1 else t * rotated
    numbers: list[Size | float] = [b, t, d, rotated, int(interleaved), 0, batch, rotated]
    numbers += [ELEMENT[q.dtype], ELEMENT[cos.dtype], _TOKENS]
    for _, x, out, _ in heads:
        numbers += [x.shape[1], *x.strides[:3], *out.strides[:3]]
    numbers += [0] * (25 - len(numbers))
    inputs: list[str | None] = [name for name, *_ in heads]
    outputs: list[str | None] = [name for *_, name in heads]
    missing: list[str | None] = [None] * (2 - len(heads))  # nobody reads that result
    pointers = (*inputs, *missing, "cos", "sin", *outputs, *missing)
    return Call(
        "infopt_rotary",
        pointers,
        tuple(numbers),
        ceil_div(b * t, _TOKENS),
        scratch=8 * round_up(rotated, 16),
    )
