"""Which tokens of a sequence go on: maps of tokens to the places of a shorter sequence.

A map is i64 [B, T]: the place of each token among the `keep` places that are left, or -1 where it
goes nowhere. Places keep the order of the tokens. A size, f32 [B, T], says how many tokens each
one stands for; 0 is padding, which goes first. Ties are broken by position, so results repeat.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from infopt.codegen.kernel import Call, Config, kernel_op
from infopt.codegen.kernels.rows import ELEMENT, FLOATS, ceil_div, contiguous, is_positive, round_up
from infopt.compiler.accuracy import Exact
from infopt.compiler.cost import flops_of
from infopt.compiler.graph import Node
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

_ROWS = 16  # tokens of one task that look for partners


def _rank_of(value: torch.Tensor) -> torch.Tensor:
    """How many values of the row come first, where the greatest does and equal ones keep order."""
    order = value.sort(dim=-1, descending=True, stable=True)[1]
    return order.sort(dim=-1)[1]


def sizes_for_tests() -> Any:
    """None, and sizes of [2, 21] tokens of which a part is padding."""
    size = torch.randint(1, 4, (2, 21)).float()
    size[0, 13:], size[1, :5] = 0, 0
    return None, size


def _match_cases() -> Any:
    for size in sizes_for_tests():
        for dtype, keep, first in ((torch.float32, 15, 1), (torch.bfloat16, 11, 0)):
            yield (torch.randn(2, 21, 24, dtype=dtype), size), {"keep": keep, "first": first}
    yield (torch.randn(3, 2, 5), None), {"keep": 2, "first": 1}
    yield (torch.randn(1, 40, 16), None), {"keep": 20, "first": 0}
    yield (torch.randn(2, 75, 37).half(), None), {"keep": 50, "first": 0}  # several tasks of each
    yield (torch.randn(1, 9, 4), torch.zeros(1, 9)), {"keep": 5, "first": 1}
    few = torch.tensor([[1.0, 1, 1, 1, 0]])
    yield (torch.randn(1, 5, 4), few), {"keep": 2, "first": 1}  # more than there are pairs


@kernel_op(cases=_match_cases, tolerance=Exact())
def match_tokens(metric, size=None, *, keep, first):
    """Tokens at even positions whose cosine with one at an odd position is largest, each sent to
    that one's place: i64 [B, T] for metric [B, T, D]. (ToMe, Bolya et al., 2022)

    keep: places left, at least T // 2. The `first` tokens keep their own. Padding goes first, all
    to the place of the first of it, and no real token is sent there.
    """
    tokens = metric.shape[1]
    position = torch.arange(tokens, device=metric.device)
    odd = position % 2 == 1
    unit = F.normalize(metric.float(), dim=-1)
    score = unit @ unit.transpose(1, 2)
    padding = torch.zeros_like(metric[..., 0], dtype=torch.bool) if size is None else size == 0
    apart = score.isnan() | odd[:, None] | ~odd | padding[:, :, None] | padding[:, None]
    value, partner = torch.where(apart, -math.inf, score).max(-1)
    anchored = padding.cumsum(1) == 1  # the first of the padding stays, and takes the rest
    value = torch.where(padding, torch.where(anchored, -math.inf, math.inf), value)
    into = torch.where(padding, padding.int().argmax(1, keepdim=True), partner)
    moved = _rank_of(torch.where(position < first, -math.inf, value)) < tokens - keep
    place = (~moved).cumsum(1) - 1
    # where more had to go than pairs there were, a partner may have gone itself
    return place.gather(1, torch.where(moved, into, position)).clamp(min=0)


def _rank_cases() -> Any:
    for size in sizes_for_tests():
        for dtype, keep, first in ((torch.float32, 15, 1), (torch.bfloat16, 4, 0)):
            yield (torch.randn(2, 21, dtype=dtype), size), {"keep": keep, "first": first}
    yield (torch.tensor([[1.0, 2.0, 2.0, 2.0, math.nan]]), None), {"keep": 2, "first": 0}


@kernel_op(cases=_rank_cases, tolerance=Exact())
def rank_tokens(score, size=None, *, keep, first):
    """The `keep` tokens of the highest score [B, T] in their order, -1 for the others: i64 [B, T].

    The `first` tokens always stay, padding and NaN are the first to go.
    """
    value = torch.where(score.isnan(), -math.inf, score.float())
    if size is not None:
        value = torch.where(size == 0, -math.inf, value)
    position = torch.arange(score.shape[1], device=score.device)
    value = torch.where(position < first, math.inf, value)
    kept = _rank_of(value) < keep
    return torch.where(kept, kept.cumsum(1) - 1, -1)


@flops_of("match_tokens")
def _match_flops(node: Node) -> Size:
    """Half of the tokens with the other half, at a third of the speed of a product: columns of 16
    are folded, and the choice is one task, as measured on 1 x 128 of width 384."""
    metric = node.args[0].tensor_type  # type: ignore[union-attr]
    batch, tokens, depth = metric.shape
    return 3 * batch * tokens * tokens * depth // 2


def tokens_legal(
    target: Target, x: TensorType, size: TensorType | None, **attrs: Any
) -> str | None:
    if x.dtype not in FLOATS or (size is not None and size.dtype is not torch.float32):
        return f"{x}, sizes {size}"
    return None if all(map(is_positive, x.shape)) else f"{x} may be empty"


@match_tokens.kernel("cpu", legal=tokens_legal, layouts={"metric": contiguous, "size": contiguous})
def _match(
    cfg: Config,
    target: Target,
    metric: TensorType,
    size: TensorType | None,
    *,
    keep: Size,
    first: int,
) -> Call:
    batch, tokens, depth = metric.shape
    even = (tokens + 1) // 2
    numbers = (tokens, depth, ELEMENT[metric.dtype], _ROWS, batch)
    tasks = batch * ceil_div(even, _ROWS)
    scratch = 4 * (round_up(tokens // 2, 16) + 4 * depth)
    names = ("metric", size and "size")
    partners = Call(
        "infopt_token_partners", names, numbers, tasks, scratch=scratch, bytes=8 * batch * even
    )
    pointers = (partners, size and "size", "out")
    scratch = 12 * round_up(tokens, 16)  # value, partner and order of each
    return Call("infopt_match_tokens", pointers, (tokens, keep, first, batch), batch, scratch)


@rank_tokens.kernel("cpu", legal=tokens_legal, layouts={"score": contiguous, "size": contiguous})
def _rank(
    cfg: Config,
    target: Target,
    score: TensorType,
    size: TensorType | None,
    *,
    keep: Size,
    first: int,
) -> Call:
    batch, tokens = score.shape
    numbers = (tokens, keep, first, ELEMENT[score.dtype])
    names = ("score", size and "size", "out")
    return Call("infopt_rank_tokens", names, numbers, batch, scratch=8 * round_up(tokens, 16))
