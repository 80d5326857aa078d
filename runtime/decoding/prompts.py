"""Prompts in the forms that people have them, as one tensor of tokens each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from infopt.runtime.errors import BadTokens

Prompts = Tensor | Sequence[int] | Sequence[Sequence[int]] | Sequence[Tensor]


def read_prompts(ids: Prompts, mask: Tensor | None) -> list[Tensor]:
    """Each sequence's tokens, int64, one or more sequences of one or more. Raises BadTokens."""
    if isinstance(ids, Tensor) or is_flat(ids):
        rows = _tensor(ids)
        if rows.dim() not in (1, 2):
            raise BadTokens(f"ids: expected [T] or [B, T], found {list(rows.shape)}")
        found = list(rows[None] if rows.dim() == 1 else rows)
    else:
        found = [_tensor(row) for row in ids]
    if mask is not None:
        if not isinstance(ids, Tensor) or tuple(mask.shape) != tuple(ids.shape):
            raise BadTokens("mask: expected the shape of ids, which must be a tensor [B, T]")
        found = [row[kept != 0] for row, kept in zip(found, mask.reshape(len(found), -1))]
    if not found:
        raise BadTokens("ids: expected at least one sequence, found none")
    for index, row in enumerate(found):
        if row.dim() != 1 or not len(row):
            raise BadTokens(f"sequence {index} is empty: expected at least one token")
    return found


def check_tokens(ids: Tensor, vocabulary: int) -> None:
    """Raises BadTokens for one that is outside of the vocabulary."""
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocabulary:
        wrong = low if low < 0 else high
        raise BadTokens(f"token {wrong} is outside the vocabulary of {vocabulary}")


def common_beginning(prompts: Sequence[Tensor]) -> int:
    """How many tokens all begin with, so that each has one more."""
    least = min(len(p) for p in prompts) - 1
    first = prompts[0][:least]
    same = torch.stack([p[:least] == first for p in prompts]).all(0)
    return int(same.long().cumprod(0).sum())


def padded_rows(rows: Sequence[Tensor]) -> Tensor:
    """int64 [B, T], shorter rows with their last number behind them."""
    most = max(len(row) for row in rows)
    return torch.stack([torch.cat((row, row[-1:].expand(most - len(row)))) for row in rows])


def is_flat(ids: Any) -> bool:
    """One prompt: a tensor [T], or a list of ints (or an empty one)."""
    if isinstance(ids, Tensor):
        return ids.dim() == 1
    return not len(ids) or isinstance(ids[0], int)


def _tensor(ids: Any) -> Tensor:
    try:
        made = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadTokens(f"ids: expected integers, found {ids!r:.60}: {error}") from None
    if made.numel() == 0:
        return made.long()
    if made.is_floating_point() or made.is_complex() or made.dtype is torch.bool:
        raise BadTokens(f"ids: expected integers, found {made.dtype}")
    return made.long()
