"""Pages with summaries: all tokens are kept, and a step reads the pages that its query asks for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from infopt.compiler.decoding.contiguous import Contiguous
from infopt.compiler.decoding.policy import LayerCache, LayerShape, Store
from infopt.compiler.errors import BadOption
from infopt.compiler.target import Target

# seconds per layer to sum up, score and choose, on two cores: python -m benchmarks kv_cache
_CHOICE = 0.45e-3


@dataclass(frozen=True)
class PagePolicy(Contiguous):
    """What is summed up of each page's keys, and how a query scores it, are the subclass's.

    pages   read by a step of one token: the first, the newest, and those of the best scores
    page    tokens of a page
    dense   so many of the first layers read everything

    A call of several tokens (a prompt) reads everything. Nothing is forgotten, so that another
    question finds other pages. Raises BadOption for sizes that make no sense.
    """

    pages: int = 64
    page: int = 16
    dense: int = 2

    def __post_init__(self) -> None:
        if self.pages < 2 or self.page < 1 or self.dense < 0:
            raise BadOption(f"expected 2 pages or more of 1 token or more, found {self}")
        if self.kv.format != "same":
            raise BadOption(f"pages are kept as the model computes them, found {self.kv}")

    @property
    def group(self) -> int:  # type: ignore[override]
        return 1  # a step of several tokens reads what one of a single token does not

    def features(self, shape: LayerShape) -> int:
        """How many features a page's summary has."""
        raise NotImplementedError

    def summary(self, keys: Tensor, present: Tensor) -> Tensor:
        """[B, H, n, features] of keys [B, H, n, page, D]; present: bool [B, 1, n, page, 1]."""
        raise NotImplementedError

    def score(self, q: Tensor, summaries: Tensor) -> Tensor:
        """How much a page matters, [B, H, P]: from a group's queries q [B, H, groups, D] and the
        summaries [B, H, P, features]."""
        raise NotImplementedError

    def stores(self, shape: LayerShape, max_length: int) -> dict[str, Store]:
        made = super().stores(shape, max_length)
        if shape.layer >= self.dense:
            pages = -(-max_length // self.page)
            sizes = (shape.heads, pages, self.features(shape))
            made["summaries"] = Store(sizes, shape.dtype)
        return made

    def append(self, cache: LayerCache, k: Tensor, v: Tensor) -> None:
        super().append(cache, k, v)
        if cache.shape.layer < self.dense:
            return
        ops, heads, page = torch.ops.infopt, cache.shape.heads, self.page
        touched = (k.shape[2] + page - 2) // page + 1  # at most, wherever the first token stands
        numbers = (cache.starts // page)[:, None] + torch.arange(touched, device=k.device)
        tokens = (numbers * page)[:, :, None] + torch.arange(page, device=k.device)
        ends = (cache.starts + cache.counts)[:, None, None]
        rows = ops.kv_read(cache["keys"], tokens[:, None].expand(-1, heads, -1, -1))
        present = (tokens < ends)[:, None, :, :, None]
        made = self.summary(rows, present)
        written = torch.where(numbers * page < ends[:, 0], numbers, -1)
        cache["summaries"] = ops.kv_write(
            cache["summaries"], made.to(k.dtype), written[:, None].expand(-1, heads, -1)
        )

    def attend(
        self, cache: LayerCache, q: Tensor, *, scale: float, window: int, softcap: float
    ) -> Tensor:
        if cache.shape.layer < self.dense:
            return super().attend(cache, q, scale=scale, window=window, softcap=softcap)
        ops, summaries = torch.ops.infopt, cache["summaries"]
        score = self.score(q[:, :, -1].unflatten(1, (cache.shape.heads, -1)), summaries).float()
        number = torch.arange(summaries.shape[2], device=q.device)
        newest = (cache.starts // self.page)[:, None, None]
        score = torch.where((number == 0) | (number == newest), float("inf"), score)
        score = torch.where(number > newest, float("-inf"), score)
        most = min(self.pages, summaries.shape[2])
        pages = ops.top_places(score, count=most, by_place=True)
        given = q, cache["keys"], cache["values"], cache.starts, pages
        options = {"scale": scale, "window": window, "softcap": softcap}
        return ops.kv_attention_pages(*given, page=self.page, **options)

    def declined(self, shape: LayerShape, max_length: int, machine: Target) -> str | None:
        size, heads = shape.dtype.itemsize, shape.heads
        row = heads * (shape.key_width + shape.value_width) * size
        pages = -(-max_length // self.page)
        read = self.pages * self.page * row + pages * heads * self.features(shape) * size
        second = machine.bandwidth * 1e9
        plain = max_length * row / second * 1e6
        chosen = (read / second + _CHOICE) * 1e6
        if chosen < plain:
            return None
        return (
            f"{type(self).__name__}: a full cache of {max_length} tokens is read in {plain:.0f} us "
            f"per layer, {self.pages} pages and the choice of them take {chosen:.0f} us"
        )


@dataclass(frozen=True)
class Quest(PagePolicy):
    """Pages by the least and largest of each feature of their keys: the score is the largest
    product that a key within these could have (Quest, Tang et al., 2024)."""

    def features(self, shape: LayerShape) -> int:
        return 2 * shape.key_width

    def summary(self, keys: Tensor, present: Tensor) -> Tensor:
        low = torch.where(present, keys, float("inf")).amin(3)
        high = torch.where(present, keys, float("-inf")).amax(3)
        return torch.cat((low, high), -1)

    def score(self, q: Tensor, summaries: Tensor) -> Tensor:
        bounds = torch.cat((-torch.relu(-q), torch.relu(q)), -1)
        return (bounds @ summaries.transpose(2, 3)).amax(2)
