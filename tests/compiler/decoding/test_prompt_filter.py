"""Which layer is asked about a prompt, when that pays, and what its attention says of tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import infopt
import infopt.codegen.traced_ops
from infopt.compiler.decoding import prompt_filter
from infopt.compiler.decoding.contiguous import Contiguous
from infopt.compiler.decoding.policy import LayerShape, Policy
from infopt.compiler.decoding.prompt_filter import does_not_pay, with_layer
from infopt.compiler.errors import TraceDeclined
from infopt.runtime.decoding.compaction import Compaction

WIDTH, HEADS, ASKING = 4, 4, 2


def asked(
    layers: int,
    layer: int | None = None,
    policy: Policy | None = None,
    windows: set[int] | None = None,
    room: int = 100,
) -> int | None:
    """The layer that is asked in a model of so many."""
    shapes = [LayerShape(2, 8, 8, torch.float32, i, layers) for i in range(layers)]
    given = shapes, policy or Contiguous(), windows or set(), room
    return with_layer(Compaction(layer=layer), *given).layer


@pytest.mark.parametrize(("layers", "layer"), [(32, 13), (5, 2), (2, 1), (1, 0)])
def test_two_fifths_of_the_way_where_nothing_is_said(layers: int, layer: int) -> None:
    assert asked(layers) == layer


def test_any_layer_that_there_is() -> None:
    assert [asked(4, layer) for layer in (0, 3)] == [0, 3]
    with pytest.raises(infopt.BadOption, match=r"compact\.layer: expected 0 to 3, found 4"):
        asked(4, 4)


def test_windows_hold_all_of_a_prompt() -> None:
    assert asked(4, 1, windows={100, 200}) == 1
    told = "see only the last 99 tokens.*expected a window of max_length=100 or none"
    with pytest.raises(infopt.BadOption, match=told):
        asked(4, 1, windows={200, 99})


def test_a_cache_that_forgets_holds_no_cut_prompt() -> None:
    with pytest.raises(infopt.BadOption, match="Ring forgets tokens by their places"):
        asked(4, 1, infopt.kv.Ring())


@pytest.mark.parametrize(
    ("layers", "keep", "told"),
    [
        (8, 0.5, None),
        (8, 0.74, None),
        (8, 0.75, "2 of 8 layers for all tokens and 8 for 75% of them are 100% of"),
        (4, 0.75, "2 of 4 layers for all tokens and 4 for 75% of them are 125% of"),
    ],
)
def test_what_is_read_twice_pays_with_what_is_left_out(
    layers: int, keep: float, told: str | None
) -> None:
    reason = does_not_pay(Compaction(keep, 2), layers)
    assert reason is None if told is None else told in str(reason)


class Asked(torch.nn.Module):
    """Two layers whose keys are the tokens' rows of a table; queries come from another."""

    def __init__(self, reads: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.tables = torch.randn(2, 2, 9, HEADS * WIDTH, generator=generator)
        self.reads, self.seen = reads, []

    def run(self, ids: torch.Tensor, positions: torch.Tensor, cache: Any, pick: Any) -> Any:
        self.positions = positions
        for layer in range(2):
            q = self.split(self.tables[layer, 0][ids])
            k = self.split(self.tables[layer, 1][ids])[:, ::2]  # two queries for each key
            kept, v = cache.append(layer, k, k + 1)
            if layer < self.reads:
                self.seen.append(cache.attend(q, kept, v, scale=0.7 if layer else None))
        return pick(self.tables[0, 0][ids])

    def split(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)


def worth(model: Asked, ids: torch.Tensor, counts: torch.Tensor, layer: int) -> torch.Tensor:
    compact = Compaction(layer=layer, asking=ASKING)
    step = prompt_filter._Filter(Asked.run.__get__(model), model, compact)
    return step(ids, counts)


@pytest.mark.parametrize(("layer", "scale"), [(0, WIDTH**-0.5), (1, 0.7)])
def test_worth_is_the_attention_of_the_last_tokens(layer: int, scale: float) -> None:
    """Of texts of 7 and of 4 tokens; tokens that ask, and padding, are worth nothing."""
    model, ids = Asked(2), torch.randint(0, 9, (2, 7))
    counts = torch.tensor([7, 4])
    found = worth(model, ids, counts, layer)
    assert found.shape == (2, 7) and found.dtype == torch.float32
    for text, count in enumerate(counts.tolist()):
        q = model.split(model.tables[layer, 0][ids[text : text + 1]])
        k = model.split(model.tables[layer, 1][ids[text : text + 1]])[:, ::2].repeat_interleave(
            2, 1
        )
        first = count - ASKING
        scores = scale * q[:, :, first:count] @ k[:, :, :first].transpose(2, 3)
        want = scores.softmax(-1).mean((0, 1, 2))
        torch.testing.assert_close(found[text, :first], want)
        assert found[text, first:].count_nonzero() == 0


def test_padding_stands_where_the_last_token_does() -> None:
    model = Asked(2)
    worth(model, torch.randint(0, 9, (2, 5)), torch.tensor([5, 3]), 0)
    assert model.positions.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 2, 2]]


def test_attention_on_the_way_is_causal() -> None:
    model, ids = Asked(2), torch.randint(0, 9, (1, 6))
    worth(model, ids, torch.tensor([6]), 1)
    q = model.split(model.tables[1, 0][ids])
    k = model.split(model.tables[1, 1][ids])[:, ::2].repeat_interleave(2, 1)
    attend = torch.nn.functional.scaled_dot_product_attention
    want = attend(q, k, k + 1, is_causal=True, scale=0.7)
    torch.testing.assert_close(model.seen[1], want)


def test_a_window_and_a_cap_are_kept_on_the_way() -> None:
    q, k = torch.randn(1, 2, 6, 4), torch.randn(1, 2, 6, 4)
    cache = prompt_filter._FilterCache(Compaction(layer=0), torch.tensor([6]))
    capped = cache.attend(q, k, k, scale=1.0, window=2, softcap=0.5)
    scores = 0.5 * torch.tanh(q @ k.transpose(2, 3) / 0.5)
    back = torch.arange(6)[:, None] - torch.arange(6)
    scores = scores.masked_fill((back < 0) | (back >= 2), -torch.inf)
    torch.testing.assert_close(capped, scores.softmax(-1) @ k)


def test_a_layer_without_attention_cannot_be_asked() -> None:
    with pytest.raises(TraceDeclined, match="layer 1 has no attention with its cache"):
        worth(Asked(1), torch.randint(0, 9, (1, 6)), torch.tensor([6]), 1)
