"""Policies of the cache against the same thing in plain torch, head by head."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import infopt
import infopt.codegen.traced_ops
from infopt.codegen.kernels.kv_parts import attention_part, merge_parts
from infopt.models.decoder import SMALL, Decoder, rotate
from tests.compiler.decoding.sharp_decoder import sharp_decoder

HEADS, GROUPS = SMALL.kv_heads, SMALL.heads // SMALL.kv_heads


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return sharp_decoder(2)


class EagerCache:
    """All of one sequence; `weights(layer, q, k, at)` [H, T, S] says how it is attended to."""

    def __init__(self, weights: Callable[..., Tensor]) -> None:
        self.weights = weights
        self.k: dict[int, Tensor] = {}
        self.v: dict[int, Tensor] = {}

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        for kept, x in ((self.k, k), (self.v, v)):
            kept[layer] = torch.cat((kept[layer], x[0]), 1) if layer in kept else x[0]
        self.layer = layer
        return k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
        keys, values = (x[self.layer].repeat_interleave(GROUPS, 0) for x in (self.k, self.v))
        at = torch.arange(keys.shape[1] - q.shape[2], keys.shape[1])
        return (self.weights(self.layer, q[0], keys, at) @ values)[None]


def hidden(scores: Tensor, seen: Tensor) -> Tensor:
    return scores.masked_fill(~seen, float("-inf"))


@torch.no_grad()
def check(
    decoder: Decoder,
    lm: infopt.CausalLM,
    weights: Callable[[], Callable[..., Tensor]],
    chunk: int | None = None,
) -> None:
    """Logits of a prompt and steps of two sequences against the decoder with an EagerCache."""
    generator = torch.Generator().manual_seed(2)
    texts = [torch.randint(SMALL.vocabulary, (n,), generator=generator) for n in (50, 27)]
    caches = [EagerCache(weights()) for _ in texts]
    state = lm.prefill([t[:-20] for t in texts])
    for row, text in enumerate(texts):
        parts = list(text[:-20].split(chunk or 99)) + list(text[-20:].split(1))
        place = 0
        for part in parts[: len(parts) - 20]:
            decoder(part[None], torch.arange(place, place + len(part))[None], caches[row])
            place += len(part)
    for step in range(20):
        state = lm.step(state, [int(t[len(t) - 20 + step]) for t in texts])
        for row, text in enumerate(texts):
            place = len(text) - 20 + step
            wanted = decoder(text[place][None, None], torch.tensor([[place]]), caches[row])[0, -1]
            torch.testing.assert_close(state.logits[row], wanted, rtol=2e-3, atol=2e-3)


@dataclass(frozen=True)
class Always(infopt.kv.Quest):
    """Also where it does not pay."""

    def declined(self, *_: Any) -> None:
        return None


def quest_weights(layer: int, q: Tensor, keys: Tensor, at: Tensor) -> Tensor:
    seen = torch.arange(keys.shape[1]) <= at[:, None]
    scores = q @ keys.transpose(1, 2) * q.shape[-1] ** -0.5
    if layer == 0 or len(at) > 1:
        return hidden(scores, seen).softmax(-1)
    pages = [slice(n, n + 4) for n in range(0, keys.shape[1], 4)]
    read = torch.zeros(keys.shape[0], keys.shape[1], dtype=torch.bool)
    for group in range(HEADS):
        heads = range(group * GROUPS, (group + 1) * GROUPS)
        bound = []
        for page in pages:
            low, high = keys[heads[0], page].amin(0), keys[heads[0], page].amax(0)
            bound.append(
                max(float(torch.maximum(q[h, 0] * low, q[h, 0] * high).sum()) for h in heads)
            )
        bound[0] = bound[-1] = float("inf")
        for n in sorted(range(len(pages)), key=lambda n: -bound[n])[:4]:
            read[heads[0] : heads[-1] + 1, pages[n]] = True
    return hidden(scores, seen & read[:, None]).softmax(-1)


def test_quest_reads_the_pages_that_the_query_asks_for(decoder: Decoder) -> None:
    policy = Always(pages=4, page=4, dense=1)
    lm = infopt.compile_causal_lm(decoder, max_length=64, batch=2, kv=policy, strict=True)
    program = lm.program._built.program
    assert program._quick and len(program._segments) == 1  # a step is one native call
    check(decoder, lm, lambda: quest_weights)
    assert list(lm.generate([5, 6, 7] * 9, 9, speculate=4)) == list(lm.generate([5, 6, 7] * 9, 9))


def test_pages_are_declined_where_they_do_not_pay(decoder: Decoder) -> None:
    lm = infopt.compile_causal_lm(decoder, max_length=48, kv=infopt.kv.Quest())
    (note,) = [n for n in lm.report.notes if n.startswith("kv:")]
    assert "a full cache of 48 tokens is read in 0 us per layer, 64 pages and" in note
    assert len(lm.spec.stores) == 2 * SMALL.layers and lm.spec.group == 0


def ring_weights(layer: int, q: Tensor, keys: Tensor, at: Tensor) -> Tensor:
    key, place = torch.arange(keys.shape[1]), at[:, None]
    back = (at - (2 + 12 - 1)).clamp(min=0)[:, None]
    half = torch.arange(0, SMALL.head_width, 2) / SMALL.head_width
    angles = (back / SMALL.rope_base**half).repeat(1, 2)
    near = rotate(q[None], angles.cos(), -angles.sin())[0]
    far, first = ((x @ keys.transpose(1, 2)) * q.shape[-1] ** -0.5 for x in (q, near))
    scores = torch.where(key < 2, first, far)
    return hidden(scores, (key <= place) & ((key < 2) | (key > place - 12))).softmax(-1)


@pytest.mark.slow
def test_a_ring_keeps_the_first_tokens_and_the_newest(decoder: Decoder) -> None:
    policy = infopt.kv.Ring(sinks=2, window=12, chunk=5)
    lm = infopt.compile_causal_lm(decoder, max_length=10_000, batch=2, kv=policy, strict=True)
    assert {shape[1] for shape, _, _ in lm.spec.stores} == {
        2 + 12 + 5
    }  # whatever the text's length
    check(decoder, lm, lambda: ring_weights)
    text = [n % 500 for n in range(64)]
    torch.testing.assert_close(lm.logits(text), lm.logits(text, 1), rtol=1e-3, atol=1e-3)


def evicting_weights(score: Callable[[list, list], list]) -> Callable[..., Tensor]:
    """Of Evict(tokens=20, recent=4, chunk=5), one sequence: what each head has, and what it got."""
    kept: dict[tuple[int, int], list[int]] = {}
    got: dict[tuple[int, int, int], list[float]] = {}

    def weights(layer: int, q: Tensor, keys: Tensor, at: Tensor) -> Tensor:
        start, tokens = int(at[0]), keys.shape[1]
        rows = []
        for group in range(HEADS):
            own = kept.setdefault((layer, group), [])
            free = 20 - len(own)
            out = [n for n in own if n <= start - 4]
            lists = [got[layer, group, n] for n in out]
            worth = score([sum(x) for x in lists], lists)
            order = sorted(range(len(out)), key=lambda i: worth[i])
            for i in order[: max(0, len(at) - free)]:
                own.remove(out[i])
            own.extend(at.tolist())
            for n in at.tolist():
                got[layer, group, n] = []
            has = torch.zeros(tokens, dtype=torch.bool)
            has[own] = True
            seen = has & (torch.arange(tokens) <= at[:, None])
            heads = slice(group * GROUPS, (group + 1) * GROUPS)
            scores = q[heads] @ keys[heads].transpose(1, 2) * q.shape[-1] ** -0.5
            made = hidden(scores, seen).softmax(-1)
            for n in own:
                for t in range(len(at)):
                    if seen[t, n]:
                        got[layer, group, n] += made[:, t, n].tolist()
            rows.append(made)
        return torch.cat(rows)

    return weights


def mean_of(sums: list[float], lists: list[list[float]]) -> list[float]:
    return [s / max(1, len(x)) for s, x in zip(sums, lists, strict=True)]


@dataclass(frozen=True)
class Mean(infopt.kv.Evict):
    """A policy of one's own: by the mean of the attention."""

    def score(self, cache: infopt.kv.LayerCache) -> Tensor:
        return cache["mass"][..., 0] / cache["steps"][..., 0].clamp(min=1)


@pytest.mark.parametrize(
    ("policy", "score"),
    [
        (infopt.kv.Evict, lambda sums, lists: sums),
        pytest.param(Mean, mean_of, marks=pytest.mark.slow),
    ],
    ids=("sum", "mean"),
)
def test_the_least_attended_slot_is_given_away(decoder: Decoder, policy: Any, score: Any) -> None:
    kv = policy(tokens=20, recent=4, chunk=5)
    lm = infopt.compile_causal_lm(decoder, max_length=64, batch=2, kv=kv, strict=True)
    check(decoder, lm, lambda: evicting_weights(score), chunk=5)


@pytest.mark.slow
@torch.no_grad()
def test_nothing_is_given_away_while_slots_are_empty(decoder: Decoder) -> None:
    kv = infopt.kv.Evict(tokens=20, recent=10, chunk=5)  # more are recent than there are tokens
    lm = infopt.compile_causal_lm(decoder, max_length=32, kv=kv)
    ids = torch.randint(SMALL.vocabulary, (19,), generator=torch.manual_seed(1))
    torch.testing.assert_close(lm.logits(ids, 1), decoder(ids[None])[0], rtol=2e-3, atol=2e-3)


def test_what_varies_most_is_safe() -> None:
    cache = {"steps": torch.full((1, 1, 8, 1), 4.0)}
    cache["mass"] = torch.tensor([4.0, 4, 4, 4, 4, 4, 1, 2])[None, None, :, None] / 8
    cache["squares"] = cache["mass"] ** 2 / 4
    cache["squares"][0, 0, 7] *= 4  # all of it in one step
    worth = infopt.kv.RoCo().score(cache)[0, 0]  # type: ignore[arg-type]
    assert worth.argmin() == 6 and worth.argmax() == 7


def merged(
    kept: tuple[Tensor, Tensor], out: list[tuple[Tensor, Tensor]], best: list[tuple[float, int]]
) -> tuple[Tensor, Tensor]:
    """Keys and values [S, D] with what left in the rows that it was most similar to."""
    made = tuple(x.clone() for x in kept)
    for row in {row for _, row in best}:
        of_row = [(math.exp(c), pair) for (c, r), pair in zip(best, out, strict=True) if r == row]
        whole = math.e + sum(share for share, _ in of_row)
        for x, kind in zip(made, (0, 1), strict=True):
            parts = sum((share * pair[kind] for share, pair in of_row), torch.zeros(x.shape[1]))
            x[row] = (math.e * x[row] + parts) / whole
    return made[0], made[1]


def test_what_is_evicted_is_merged_into_what_is_most_like_it() -> None:
    policy = infopt.kv.D2O(tokens=6, recent=1, chunk=2)
    shape = infopt.kv.LayerShape(2, 4, 3, torch.float32)
    generator = torch.Generator().manual_seed(3)
    stores = {
        name: torch.full((1, *store.shape), store.fill, dtype=store.dtype)
        for name, store in policy.stores(shape, 99).items()
    }
    average: list[float | None] = [None, None]
    merges = 0
    for start in range(0, 30, 2):
        counts = torch.tensor([2])
        cache = infopt.kv.LayerCache(shape, stores, torch.tensor([start]), counts, None)
        k, v = (
            torch.randn(1, 2, 2, 4, generator=generator),
            torch.randn(1, 2, 2, 3, generator=generator),
        )
        policy.append(cache, k, v)
        for head in range(2):
            before, after = (
                {name: store[0, head] for name, store in s.items()} for s in (stores, cache.stores)
            )
            new = (before["places"] != after["places"])[:, 0]
            leaves = [int(n) for n in torch.nonzero(new & (before["places"][:, 0] >= 0))]
            stays = [int(n) for n in torch.nonzero(~new & (before["places"][:, 0] >= 0))]
            best = []
            for slot in leaves:
                like = torch.cosine_similarity(before["keys"][slot], before["keys"][stays], -1)
                best.append((float(like.max()), stays[int(like.argmax())]))
            if best:
                mean, old = sum(c for c, _ in best) / len(best), average[head]
                average[head] = mean if old is None else 0.7 * mean + 0.3 * old
            going = [
                (x, slot) for x, slot in zip(best, leaves, strict=True) if x[0] >= average[head]
            ]  # type: ignore[operator]
            merges += len(going)
            out = [(before["keys"][slot], before["values"][slot]) for _, slot in going]
            wanted = merged((before["keys"], before["values"]), out, [x for x, _ in going])
            for name, rows in zip(("keys", "values"), wanted, strict=True):
                torch.testing.assert_close(after[name][stays], rows[stays])
        stores = cache.stores
        stores["mass"] += torch.rand(1, 2, 6, 1, generator=generator)
    assert 10 < merges < 40


POLICIES = (
    Always(pages=4, page=4, dense=1),
    infopt.kv.Ring(sinks=2, window=12, chunk=5),
    infopt.kv.RoCo(tokens=20, recent=4, chunk=5),
    infopt.kv.D2O(tokens=20, recent=4, chunk=5),
)


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_an_artifact_has_a_form_without_native_code(
    decoder: Decoder, tmp_path: Path, policy: infopt.kv.Policy
) -> None:
    lm = infopt.compile_causal_lm(decoder, max_length=48, kv=policy)
    plain = infopt.load(lm.save(tmp_path / "lm"), native="never")
    ids = torch.randint(SMALL.vocabulary, (40,), generator=torch.manual_seed(1))
    torch.testing.assert_close(plain.logits(ids, 1), lm.logits(ids, 1), rtol=1e-3, atol=1e-3)


def test_parts_make_the_whole() -> None:
    q, k, v = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 30, 8), torch.randn(2, 2, 30, 8)
    nobody = torch.zeros(2, 1, 3, 10, dtype=torch.bool)
    parts = [attention_part(q, k[:, :, a:b], v[:, :, a:b], scale=0.3) for a, b in ((0, 7), (7, 30))]
    parts.append(attention_part(q, k[:, :, :10], v[:, :, :10], nobody, scale=0.3))
    whole = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(merge_parts(parts), whole)
    assert merge_parts(parts[2:]).count_nonzero() == 0


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: infopt.kv.Quest(pages=1), "expected 2 pages or more"),
        (lambda: infopt.kv.Ring(window=0), "a window of 1 or more"),
        (lambda: infopt.kv.Evict(tokens=64), r"expected tokens >= recent \+ 2 \* chunk"),
    ],
)
def test_sizes_that_make_no_sense(made: Callable[[], Any], message: str) -> None:
    with pytest.raises(infopt.BadOption, match=message):
        made()
