"""Policies of a cache on a cache of their own, without a model: which slots, what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import infopt
import infopt.codegen.traced_ops
from infopt.compiler.decoding.contiguous import Contiguous
from infopt.compiler.decoding.page_summaries import PagePolicy
from infopt.compiler.decoding.policy import LayerCache, LayerShape, Policy
from infopt.compiler.decoding.slots import SlotPolicy
from infopt.compiler.decoding.tracing_cache import ShapeCache, TracingCache
from infopt.compiler.errors import TraceDeclined

SHAPE = LayerShape(2, 4, 4, torch.float32, 0, 1)
ROOM = 32
RING = infopt.kv.Ring(sinks=2, window=4, chunk=2)
EVICT = infopt.kv.Evict(tokens=8, recent=2, chunk=2)


def cache_of(policy: Policy, start: int = 0, count: int = 1, **given: Any) -> LayerCache:
    """A layer's cache as it is in the beginning, but for where the call's tokens start."""
    stores = {
        name: torch.full((1, *store.shape), store.fill, dtype=store.dtype)
        for name, store in policy.stores(SHAPE, ROOM).items()
    }
    starts, counts = torch.tensor([start]), torch.tensor([count])
    frequencies = given.get("inverse_frequencies")
    return LayerCache(given.get("shape", SHAPE), stores, starts, counts, frequencies)


def appended(policy: Policy, tokens: int, at_once: int = 1) -> LayerCache:
    """Tokens 0, 1, ... whose keys and values are their numbers."""
    cache = cache_of(policy)
    for start in range(0, tokens, at_once):
        count = min(at_once, tokens - start)
        cache.starts, cache.counts = torch.tensor([start]), torch.tensor([count])
        rows = torch.arange(start, start + at_once, dtype=torch.float32)
        k = rows[None, None, :, None].expand(1, 2, -1, 4)
        policy.append(cache, k, k)
    return cache


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_ring_turns_behind_its_first_tokens(at_once: int) -> None:
    cache = appended(RING, 11, at_once)
    # 2 first ones, then 6 places: 10 stands where 4 stood
    assert cache["places"][0, :, :, 0].tolist() == [[0, 1, 8, 9, 10, 5, 6, 7]] * 2
    assert cache["keys"][0, 1, :, 3].tolist() == [0, 1, 8, 9, 10, 5, 6, 7]


def test_padding_takes_no_slot() -> None:
    cache = cache_of(RING, 0, 1)
    RING.append(cache, torch.ones(1, 2, 2, 4), torch.ones(1, 2, 2, 4))
    assert (cache["places"] >= 0).sum() == 2  # of one token, in two heads
    assert cache["keys"].count_nonzero() == 2 * 4


def test_a_query_sees_what_stands_before_it_in_its_window() -> None:
    cache = appended(RING, 8)
    cache.starts = torch.tensor([6])
    q = torch.zeros(1, 4, 2, 4)
    for window, wanted in ((0, [7, 8]), (3, [3, 3])):
        seen = RING.seen(cache, q, window)
        assert seen.shape == (1, 4, 2, 8) and seen.sum(-1)[0].tolist() == [wanted] * 4
    places = cache["places"][0, 0, :, 0]
    assert places[RING.seen(cache, q, 3)[0, 0, 1]].tolist() == [5, 6, 7]


def test_a_ring_attends_to_first_tokens_and_its_window() -> None:
    cache = appended(RING, 11)
    cache.starts = torch.tensor([10])
    q = torch.zeros(1, 4, 1, 4)
    for window, seen in ((0, [0, 1, 7, 8, 9, 10]), (2, [0, 1, 9, 10]), (9, [0, 1, 7, 8, 9, 10])):
        found = RING.attend(cache, q, scale=0.5, window=window, softcap=0.0)
        torch.testing.assert_close(found, torch.full_like(q, sum(seen) / len(seen)))
    bare = replace(RING, sinks=0)
    cache = appended(bare, 11)
    cache.starts = torch.tensor([10])
    found = bare.attend(cache, q, scale=0.5, window=0, softcap=0.0)
    torch.testing.assert_close(found, torch.full_like(q, (7 + 8 + 9 + 10) / 4))


def test_queries_are_turned_back_to_the_end_of_the_cache() -> None:
    frequencies = torch.tensor([0.5])
    q = torch.randn(1, 2, 1, 4)
    for at, back in ((3, 0), (5, 0), (6, 1), (9, 4)):
        cache = cache_of(RING, at, inverse_frequencies=frequencies)
        turned = RING._turned(cache, q)
        angle = torch.tensor(0.5 * back)
        one, two = q[..., 0], q[..., 1]
        want = [one * angle.cos() + two * angle.sin(), two * angle.cos() - one * angle.sin()]
        torch.testing.assert_close(turned[..., :2], torch.stack(want, -1))
        assert torch.equal(turned[..., 2:], q[..., 2:])  # features without a position
    assert RING._turned(cache_of(RING, 9), q) is q


def test_a_ring_is_endless_with_rotary_positions() -> None:
    assert RING.endless(replace(SHAPE, rotary=True)) and not RING.endless(SHAPE)
    assert not EVICT.endless(replace(SHAPE, rotary=True))


def test_eviction_fills_empty_slots_first() -> None:
    cache = appended(EVICT, 8)
    assert sorted(cache["places"][0, 0, :, 0].tolist()) == list(range(8))


def test_eviction_takes_the_lowest_that_is_not_recent() -> None:
    cache = appended(EVICT, 8)
    mass = torch.tensor([9.0, 2, 3, 1, 5, 6, 7, 0])  # of tokens 0, 1, ...: 7 is recent
    order = cache["places"][0, :, :, 0]
    cache["mass"] = mass[order][None, ..., None]
    cache.starts, cache.counts = torch.tensor([8]), torch.tensor([2])
    EVICT.append(cache, torch.zeros(1, 2, 2, 4), torch.zeros(1, 2, 2, 4))
    left = [set(head) for head in cache["places"][0, :, :, 0].tolist()]
    assert left == [{0, 2, 4, 5, 6, 7, 8, 9}] * 2  # 3 and 1 are gone
    fresh = cache["places"][..., 0] >= 8
    assert cache["mass"][..., 0][fresh].tolist() == [0.0] * 4  # whoever comes begins anew
    assert cache["mass"].sum() == 2 * (mass.sum() - 3)


@pytest.mark.parametrize("policy", [RING, EVICT])
def test_capped_scores_have_no_form(policy: SlotPolicy) -> None:
    q = torch.zeros(1, 2, 1, 4)
    with pytest.raises(TraceDeclined, match="has no form with capped scores"):
        policy.attend(appended(policy, 3), q, scale=1.0, window=0, softcap=30.0)


MISFITS = {
    "expected 0 sinks or more and a window of 1 or more": [
        {"sinks": -1},
        {"window": 0},
        {"chunk": 0},
    ],
    "expected tokens >= recent": [{"recent": -1}, {"chunk": 0}, {"tokens": 5}],
}


def test_least_sizes() -> None:
    """The least that there can be, and one less."""
    assert infopt.kv.Ring(sinks=0, window=1, chunk=1).slots() == 2
    assert infopt.kv.Evict(tokens=6, recent=2, chunk=2).slots() == 6
    assert infopt.kv.Evict(tokens=2, recent=0, chunk=1).slots() == 2
    for policy, (told, cases) in zip((RING, EVICT), MISFITS.items(), strict=True):
        for fields in cases:
            with pytest.raises(infopt.BadOption, match=told):
                replace(policy, **fields)
    assert infopt.kv.Quest(pages=2, page=1, dense=0).pages == 2
    for fields in ({"pages": 1}, {"page": 0}, {"dense": -1}):
        with pytest.raises(infopt.BadOption, match="2 pages or more of 1 token or more"):
            infopt.kv.Quest(**fields)


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_pages_are_kept_as_they_come(format: str) -> None:
    with pytest.raises(infopt.BadOption, match="pages are kept as the model computes them"):
        infopt.kv.Quest(kv=infopt.KV(format))


def test_what_a_policy_must_say() -> None:
    q, cache = torch.zeros(1, 2, 1, 4), cache_of(Contiguous())
    missing = [
        lambda: Policy().stores(SHAPE, ROOM),
        lambda: Policy().append(cache, q, q),
        lambda: Policy().attend(cache, q, scale=1.0, window=0, softcap=0.0),
        lambda: SlotPolicy().slots(),
        lambda: SlotPolicy().choose(cache, torch.zeros(1, 1)),
        lambda: PagePolicy().features(SHAPE),
        lambda: PagePolicy().summary(q, q),
        lambda: PagePolicy().score(q, q),
    ]
    for asked in missing:
        with pytest.raises(NotImplementedError):
            asked()
    assert Policy().declined(SHAPE, ROOM, None) is None and not Policy().endless(SHAPE)
    assert SlotPolicy().forgets and SlotPolicy().group == 1 and not Policy().forgets


def test_a_note_names_the_policy_and_its_choices() -> None:
    noted = {"policy": "Ring", "sinks": 2, "window": 4, "chunk": 2}
    assert RING.note() == noted
    assert Policy().note() == {"policy": "Policy"}


def test_a_store_must_be_declared() -> None:
    cache = cache_of(Contiguous())
    with pytest.raises(KeyError, match=r"no store 'sums', only \['keys', 'values'\]"):
        cache["sums"] = torch.zeros(1)


def test_new_places_leave_padding_out() -> None:
    cache = cache_of(Contiguous(), 5, 2)
    assert cache.new_places(4).tolist() == [[5, 6, -1, -1]]


@pytest.mark.parametrize("tokens", [31, 32, 33])
def test_summaries_have_room_for_every_page_that_is_begun(tokens: int) -> None:
    policy = infopt.kv.Quest(page=16, dense=1)
    made = policy.stores(replace(SHAPE, layer=1), tokens)
    assert made["summaries"].shape == (2, 2 if tokens < 33 else 3, 8)
    assert "summaries" not in policy.stores(SHAPE, tokens)


def tracing() -> TracingCache:
    stores = [torch.zeros(1, 2, ROOM, 4) for _ in range(4)]
    starts, counts = torch.tensor([0]), torch.tensor([3])
    return TracingCache([SHAPE, SHAPE], stores, starts, counts, Contiguous(), ROOM)


def test_attention_is_to_the_layer_whose_keys_it_names() -> None:
    cache, q = tracing(), torch.randn(1, 4, 3, 4)
    rows = [torch.randn(1, 2, 3, 4) for _ in range(2)]
    named = [cache.append(layer, k, k * 2) for layer, k in enumerate(rows)]
    assert cache.read == set()
    attend = torch.nn.functional.scaled_dot_product_attention
    for layer in (1, 0):
        k, v = named[layer]
        want = attend(q, k, v, is_causal=True, enable_gqa=True)
        torch.testing.assert_close(cache.attend(q, k, v), want)
    assert cache.read == {0, 1}
    assert [bool(s.any()) for s in cache.stores] == [True] * 4
    with pytest.raises(TraceDeclined, match="keys that are not those its cache returned"):
        cache.attend(q, rows[0].clone(), rows[0])


def heads(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(*shape, dtype=dtype)


@pytest.mark.parametrize(
    ("k", "v"),
    [
        (heads(1, 3, 4), heads(1, 3, 4)),
        (heads(1, 2, 3, 4), heads(1, 2, 3)),
        (heads(1, 2, 3, 4), heads(1, 2, 4, 4)),
        (heads(1, 2, 3, 4), heads(1, 1, 3, 4)),
        (heads(1, 2, 3, 4), heads(1, 2, 3, 4, dtype=torch.float64)),
    ],
)
def test_layers_cache_heads_of_tokens(k: Tensor, v: Tensor) -> None:
    with pytest.raises(TraceDeclined, match=r"layer 3 caches keys .* expected \[batch, heads, tok"):
        ShapeCache().append(3, k, v)


def test_shapes_and_windows_are_found_in_a_run() -> None:
    cache, q = ShapeCache(), torch.randn(1, 4, 3, 4)
    k, v = cache.append(1, heads(1, 2, 3, 4), torch.randn(1, 2, 3, 5))
    cache.append(0, heads(1, 2, 3, 4), heads(1, 2, 3, 4))
    assert cache.layers[1] == LayerShape(2, 4, 5, torch.float32) and cache.windows == set()
    found = cache.attend(q, k, v, window=7)
    assert cache.windows == {7}
    # keys of 0: every token before weighs the same
    steps = torch.arange(1, 4)[:, None]
    torch.testing.assert_close(found, (v.cumsum(2) / steps).repeat_interleave(2, 1))
    cache.attend(q, k, v, window=0)
    assert cache.windows == {7}
