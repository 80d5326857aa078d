"""Pages of a common store: the contiguous layout's tokens, shared beginnings, pages given back."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import infopt
from infopt.models.decoder import SMALL, Decoder
from infopt.runtime.decoding.pages import PagePool
from tests.compiler.decoding.sharp_decoder import sharp_decoder

BEGINNING = [n * 7 % 500 for n in range(19)]
ENDS = ([3, 4], [9], [3, 8, 7])


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return sharp_decoder(2)


@pytest.fixture(scope="module")
def plain(decoder: Decoder) -> infopt.CausalLM:
    return infopt.compile_causal_lm(decoder, max_length=60, batch=3, strict=True)


@pytest.fixture(scope="module")
def compiled(decoder: Decoder) -> infopt.CausalLM:
    kv = infopt.KV(page=4)
    return infopt.compile_causal_lm(decoder, max_length=60, batch=3, kv=kv, strict=True)


@pytest.fixture
def lm(compiled: infopt.CausalLM) -> Iterator[infopt.CausalLM]:
    yield compiled
    gc.collect()
    assert pages(compiled) == 0


def pages(lm: infopt.CausalLM) -> int:
    assert lm._pool is not None
    return lm._pool.used


def test_tokens_are_those_of_the_contiguous_layout(
    lm: infopt.CausalLM, plain: infopt.CausalLM
) -> None:
    program = lm.program._built.program
    assert program._quick and len(program._segments) == 1  # a step is one native call
    texts = [BEGINNING[:11], [40], BEGINNING]
    assert list(lm.generate(texts, 30)) == list(plain.generate(texts, 30))
    by_chance = [list(m.generate(texts, 30, temperature=0.9, seed=4)) for m in (lm, plain)]
    assert by_chance[0] == by_chance[1]
    prompt = [7, 8, 9, 10] * 3
    wanted = list(plain.generate(prompt, 30))
    assert list(lm.generate(prompt, 30, speculate=5)) == wanted


def test_a_common_beginning_is_kept_once(lm: infopt.CausalLM, plain: infopt.CausalLM) -> None:
    texts = [BEGINNING + end for end in ENDS]
    state, whole = lm.prefill(texts), plain.prefill(texts)
    assert state.lengths == whole.lengths == (21, 20, 22)
    assert pages(lm) == 4 + 2 + 1 + 2  # 16 tokens are shared; three more, and the ends, are not
    assert state.bytes == pages(lm) * 4 * 2 * SMALL.layers * SMALL.kv_heads * SMALL.head_width * 4
    assert state.bytes < whole.bytes / 4
    torch.testing.assert_close(state.logits, whole.logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(lm.decode(state, 25)[0], plain.decode(whole, 25)[0])


def test_a_fork_copies_a_page_when_it_is_written_to(
    lm: infopt.CausalLM, plain: infopt.CausalLM
) -> None:
    shared = lm.prefill(BEGINNING)
    forked = lm.fork(shared, 3)
    assert pages(lm) == 5 and forked.bytes == shared.bytes
    forked = lm.step(forked, [3, 9, 3])
    assert pages(lm) == 5 + 3
    shared = lm.step(shared, [11])
    assert pages(lm) == 5 + 3  # it alone has the old one now
    for state, ids in ((forked, (3, 9, 3)), (shared, (11,))):
        wanted = plain.prefill([[*BEGINNING, n] for n in ids])
        torch.testing.assert_close(state.logits, wanted.logits, rtol=1e-4, atol=1e-4)
        assert torch.equal(lm.decode(state, 9)[0], plain.decode(wanted, 9)[0])


@pytest.mark.parametrize("paged", [True, False], ids=("paged", "contiguous"))
def test_sequences_join_and_leave(lm: infopt.CausalLM, plain: infopt.CausalLM, paged: bool) -> None:
    model = lm if paged else plain
    first = model.step(model.prefill([BEGINNING, [5, 6]]), [1, 2])
    second = model.prefill([8, 9, 10])
    state = model.step(model.join([first, second]), [3, 4, 5])
    for stale in (first, second):
        with pytest.raises(infopt.StaleState):
            model.step(stale, [1] * len(stale.lengths))
    state = model.keep(state, [2, 0])
    assert state.lengths == (4, 21)
    wanted = plain.prefill([[8, 9, 10, 5], [*BEGINNING, 1, 3]])
    torch.testing.assert_close(state.logits, wanted.logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.decode(state, 9)[0], plain.decode(wanted, 9)[0])


@pytest.mark.parametrize("paged", [True, False], ids=("paged", "contiguous"))
def test_what_cannot_be_joined_or_kept(
    lm: infopt.CausalLM, plain: infopt.CausalLM, paged: bool
) -> None:
    model = lm if paged else plain
    state, other = model.prefill([[1], [2]]), model.prefill([[1], [2]])
    with pytest.raises(ValueError, match=r"expected different states, 1 or more, found \[\]"):
        model.join([])
    with pytest.raises(ValueError, match="expected different states"):
        model.join([state, state])
    for rows in ([], [0, 0], [2]):
        with pytest.raises(ValueError, match=r"expected different numbers.*, found \[.*\] of 2"):
            model.keep(state, rows)
    with pytest.raises(infopt.TooManySequences):
        model.join([state, other])
    third = model.prefill([3])
    model.step(third, [4])
    with pytest.raises(infopt.StaleState):
        model.join([state, third])
    assert model.step(state, [1, 1]).lengths == (2, 2)  # nothing was taken


def test_pages_are_given_back(lm: infopt.CausalLM, plain: infopt.CausalLM) -> None:
    texts = [BEGINNING, [40, 41], [7]]
    written = [list(row) for row in zip(*plain.generate(texts, 24), strict=True)]
    stop = {written[0][9], written[1][14]}
    wanted = list(plain.generate(texts, 24, stop=stop))
    tokens, sizes = lm.generate(texts, 24, stop=stop), []
    for row in wanted:
        assert next(tokens) == row
        sizes.append(pages(lm))
    assert None in wanted[-1] and sizes[-1] < max(sizes)
    del tokens
    state = lm.prefill(BEGINNING)
    assert pages(lm) == 5
    kept = state.copy()
    del state
    assert pages(lm) == 5
    del kept
    tokens = lm.generate(BEGINNING, 9)
    next(tokens)
    assert pages(lm) == 5
    del tokens
    assert pages(lm) == 0


def test_more_texts_than_the_pool_began_with(lm: infopt.CausalLM, plain: infopt.CausalLM) -> None:
    batches = [[BEGINNING[n:] * 2, [n] * 30, [1, n] * 15] for n in range(1, 6)]
    states = [lm.prefill(texts) for texts in batches]
    assert lm._pool is not None and lm._pool.stores[0].shape[2] > 3 * 60
    for state, texts in zip(states, batches, strict=True):
        assert torch.equal(lm.decode(state, 9)[0], plain.decode(plain.prefill(texts), 9)[0])


def test_an_artifact_has_a_form_without_native_code(lm: infopt.CausalLM, tmp_path: Path) -> None:
    texts = [BEGINNING, BEGINNING[:12]]
    loaded = infopt.load(lm.save(tmp_path / "lm"), native="never")
    assert loaded.spec == lm.spec and loaded.spec.page == 4
    found, wanted = loaded.prefill(texts).logits, lm.prefill(texts).logits
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.slow  # the kernels are tested with the others; this is that all of it meets
def test_pages_in_bytes(decoder: Decoder, plain: infopt.CausalLM) -> None:
    kv = infopt.KV("int8", page=8)
    lm = infopt.compile_causal_lm(decoder, max_length=40, kv=kv, strict=True)
    state = lm.prefill(BEGINNING)
    width = SMALL.head_width + 4
    assert state.bytes == 3 * 8 * 2 * SMALL.layers * SMALL.kv_heads * width
    found = lm.step(lm.step(state, [4]), [5]).logits
    wanted = plain.prefill([*BEGINNING, 4, 5]).logits
    assert 1e-5 < (found - wanted).norm() / wanted.norm() < 0.1


@pytest.mark.parametrize("given", [("same", -1), ("int4", 32)])
def test_pages_that_there_cannot_be(given: tuple[str, int]) -> None:
    with pytest.raises(ValueError, match="page: expected 0 or more tokens of a page, and 0 with"):
        infopt.KV(*given)


def test_a_page_is_free_when_nobody_has_it() -> None:
    pool = PagePool([(2, 3, torch.float32)], 4, 2)
    one, two = pool.take(), pool.take()
    pool.stores[0][:, :, one * 4 : one * 4 + 4] = 7.0
    pool.share([one])
    made = pool.alone(one)  # grows
    assert len({one, two, made}) == 3 and pool.used == 3 and pool.alone(one) == one
    assert (pool.stores[0][:, :, made * 4 : made * 4 + 4] == 7).all()
    pool.give_back([one, two])
    assert pool.used == 1 and pool.take() == min(one, two)
    assert pool.page_bytes == 2 * 3 * 4 * 4
