"""Which tokens go on, on a GPU: partners by one product, ranks and places by counting.

A rank is how many values come before it, and a place how many tokens stay before it: programs count
them side by side, so that nothing is sorted and no sum runs along the tokens.
"""

from __future__ import annotations

import torch

from infopt.codegen.gpu.text import HEADER, launch
from infopt.codegen.gpu.tiles import power_of_two
from infopt.codegen.kernel import Config
from infopt.codegen.kernels.rows import ceil_div, contiguous
from infopt.codegen.kernels.token_maps import match_tokens, rank_tokens, tokens_legal
from infopt.codegen.launch import Launch, Pointer, Scratch
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

TOKENS, OTHERS = 16, 64  # of a program; that it compares them with at a time

SOURCE = (
    HEADER
    + '''

@triton.jit
def unit_rows(x, rows, inside, width, BLOCK: tl.constexpr):
    """Where rows begin, and what brings each to length 1."""
    at = x + rows.to(tl.int64) * width
    square = tl.zeros((rows.shape[0],), dtype=tl.float32)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        in_row = inside[:, None] & (columns < width)[None, :]
        v = tl.load(at[:, None] + columns[None, :], mask=in_row, other=0.0).to(tl.float32)
        square += tl.sum(v * v, axis=1)
    return at, tl.maximum(tl.sqrt_rn(square), 1e-12)


@triton.jit
def first_padding(size, tokens, OTHERS: tl.constexpr):
    """The first token of size 0."""
    first = tokens
    for start in range(0, tokens, OTHERS):
        token = start + tl.arange(0, OTHERS)
        none = tl.load(size + token, mask=token < tokens, other=1.0) == 0
        first = tl.minimum(first, tl.min(tl.where(none, token, tokens), axis=0))
    return first


@triton.jit
def token_partners(x, size, value, into, tokens, width, first, TOKENS: tl.constexpr,
                   OTHERS: tl.constexpr, BLOCK: tl.constexpr):
    """For TOKENS tokens how much each should go, and into which; those at odd positions stay."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    in_tokens = token < tokens
    x += row * tokens * width
    at, length = unit_rows(x, token, in_tokens, width, BLOCK)
    best = tl.full((TOKENS,), float("-inf"), dtype=tl.float32)
    partner = tl.zeros((TOKENS,), dtype=tl.int32)
    padding = token < 0
    if size is not None:
        size += row * tokens
        padding = tl.load(size + token, mask=in_tokens, other=1.0) == 0
    for start in range(0, tokens // 2, OTHERS):
        other = (start + tl.arange(0, OTHERS)) * 2 + 1
        in_others = other < tokens
        other_at, other_length = unit_rows(x, other, in_others, width, BLOCK)
        z = tl.zeros((TOKENS, OTHERS), dtype=tl.float32)
        for step in range(0, width, BLOCK):
            columns = step + tl.arange(0, BLOCK)
            in_columns = columns < width
            a = tl.load(at[:, None] + columns[None, :],
                        mask=in_tokens[:, None] & in_columns[None, :], other=0.0)
            b = tl.load(other_at[None, :] + columns[:, None],
                        mask=in_others[None, :] & in_columns[:, None], other=0.0)
            a = a.to(tl.float32) / length[:, None]
            b = b.to(tl.float32) / other_length[None, :]
            z = tl.dot(a, b, z, input_precision="ieee")
        open = in_others
        if size is not None:
            open = open & (tl.load(size + other, mask=in_others, other=0.0) != 0)
        z = tl.where(open[None, :] & (z == z), z, float("-inf"))
        highest = tl.max(z, axis=1)
        # of equal ones the first
        place = tl.min(tl.where(z == highest[:, None], other[None, :], tokens), axis=1)
        partner = tl.where(highest > best, place, partner)
        best = tl.maximum(best, highest)
    best = tl.where(token % 2 == 1, float("-inf"), best)
    if size is not None:
        anchor = first_padding(size, tokens, OTHERS)
        best = tl.where(padding, float("inf"), best)
        best = tl.where(token == anchor, float("-inf"), best)
        partner = tl.where(padding, anchor, partner)
    best = tl.where(token < first, float("-inf"), best)
    tl.store(value + row * tokens + token, best, mask=in_tokens)
    tl.store(into + row * tokens + token, partner, mask=in_tokens)


@triton.jit
def worth(score, size, token, inside, first):
    """A token's value: the first stay, padding and NaN are the first to go."""
    v = tl.load(score + token, mask=inside, other=0.0).to(tl.float32)
    v = tl.where(v == v, v, float("-inf"))
    if size is not None:
        v = tl.where(tl.load(size + token, mask=inside, other=0.0) == 0, float("-inf"), v)
    return tl.where(token < first, float("inf"), v)


@triton.jit
def tokens_chosen(score, size, chosen, tokens, first, most, TOKENS: tl.constexpr,
                  OTHERS: tl.constexpr):
    """Whether each of TOKENS tokens is among the `most` of the highest value; of equal ones the
    earlier come first."""
    row = tl.program_id(0).to(tl.int64) * tokens
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    score += row
    if size is not None:
        size += row
    v = worth(score, size, token, token < tokens, first)
    rank = tl.zeros((TOKENS,), dtype=tl.int32)
    for start in range(0, tokens, OTHERS):
        other = start + tl.arange(0, OTHERS)
        w = worth(score, size, other, other < tokens, first)
        before = (w[None, :] == v[:, None]) & (other[None, :] < token[:, None])
        before = (w[None, :] > v[:, None]) | before
        rank += tl.sum((before & (other < tokens)[None, :]).to(tl.int32), axis=1)
    tl.store(chosen + row + token, (rank < most).to(tl.int32), mask=token < tokens)


@triton.jit
def token_places(chosen, into, out, tokens, TOKENS: tl.constexpr, OTHERS: tl.constexpr):
    """The place of each of TOKENS tokens: how many stay before it. With `into` the chosen go there,
    without it they are those that stay, and others have no place, -1."""
    row = tl.program_id(0).to(tl.int64) * tokens
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    in_tokens = token < tokens
    own = tl.load(chosen + row + token, mask=in_tokens, other=0)
    goal = token
    if into is not None:
        goal = tl.where(own != 0, tl.load(into + row + token, mask=in_tokens, other=0), token)
    place = tl.zeros((TOKENS,), dtype=tl.int32)
    for start in range(0, tokens, OTHERS):
        other = start + tl.arange(0, OTHERS)
        stays = tl.load(chosen + row + other, mask=other < tokens, other=0)
        if into is not None:
            stays = 1 - stays
        place += tl.sum(tl.where(other[None, :] <= goal[:, None], stays[None, :], 0), axis=1)
    place -= 1
    if into is not None:
        place = tl.maximum(place, 0)
    else:
        place = tl.where(own != 0, place, -1)
    tl.store(out + row + token, place.to(tl.int64), mask=in_tokens)
'''
)


def _grid(batch: Size, tokens: Size) -> tuple[Size, Size]:
    return (batch, ceil_div(tokens, TOKENS))


_BLOCKS = {"TOKENS": TOKENS, "OTHERS": OTHERS}


def _places(
    score: Pointer,
    size: Pointer | None,
    into: Pointer | None,
    shape: tuple[Size, Size],
    first: int,
    most: Size,
) -> list[Launch]:
    """The `most` of the highest score are chosen, and the places that follow."""
    chosen = Pointer(Scratch("chosen", 4 * shape[0] * shape[1]), torch.int32)
    return [
        launch(
            SOURCE,
            "tokens_chosen",
            grid=_grid(*shape),
            **{"score": score, "size": size, "chosen": chosen},
            **{"tokens": shape[1], "first": first, "most": most},
            **_BLOCKS,
        ),
        launch(
            SOURCE,
            "token_places",
            grid=_grid(*shape),
            **{"chosen": chosen, "into": into, "out": Pointer("out", torch.int64)},
            tokens=shape[1],
            **_BLOCKS,
        ),
    ]


@match_tokens.kernel("gpu", legal=tokens_legal, layouts={"metric": contiguous, "size": contiguous})
def _match(
    cfg: Config,
    target: Target,
    metric: TensorType,
    size: TensorType | None,
    *,
    keep: Size,
    first: int,
) -> list[Launch]:
    batch, tokens, width = metric.shape
    value = Pointer(Scratch("value", 4 * batch * tokens), torch.float32)
    into = Pointer(Scratch("into", 4 * batch * tokens), torch.int32)
    partners = launch(
        SOURCE,
        "token_partners",
        grid=_grid(batch, tokens),
        x=Pointer("metric", metric.dtype),
        size=size and Pointer("size", size.dtype),
        **{"value": value, "into": into, "tokens": tokens, "width": width, "first": first},
        **_BLOCKS,
        BLOCK=min(64, power_of_two(width)) if isinstance(width, int) else 64,
    )
    return [partners, *_places(value, None, into, (batch, tokens), 0, tokens - keep)]


@rank_tokens.kernel("gpu", legal=tokens_legal, layouts={"score": contiguous, "size": contiguous})
def _rank(
    cfg: Config,
    target: Target,
    score: TensorType,
    size: TensorType | None,
    *,
    keep: Size,
    first: int,
) -> list[Launch]:
    sizes = size and Pointer("size", size.dtype)
    return _places(Pointer("score", score.dtype), sizes, None, score.shape, first, keep)
