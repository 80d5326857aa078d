"""Decoders whose sequences have adapters: steps, joined states, guesses, pages, artifacts."""

from __future__ import annotations

import pytest
import torch

import infopt
from infopt.runtime.errors import InputMismatch
from tests.adapters import merged, random_adapter
from tests.compiler.decoding.sharp_decoder import sharp_decoder

MODEL = sharp_decoder(2.0)
CHOSEN = ("attention.query", "attention.value", "gate")
LAYERS = [f"layers.{i}.{name}" for i in range(2) for name in CHOSEN]
ADAPTERS = {name: random_adapter(MODEL, LAYERS, 4, seed) for name, seed in (("a", 1), ("b", 2))}
ROOM = infopt.Adapters(rank=4, slots=2, layers="*query,*value,*gate")
PROMPTS = [[5, 6, 7, 8, 9, 5, 6], [5, 6, 7, 8, 9, 5, 6, 7], [5, 6, 7]]
NAMES = ["a", None, "b"]


def compiled(**options):
    given = {"max_length": 48, "batch": 3, "adapters": ROOM, **options}
    lm = infopt.compile_causal_lm(MODEL, **given)
    for name, adapter in ADAPTERS.items():
        lm.adapters.load(name, adapter)
    return lm


@pytest.fixture(scope="module")
def lm():
    return compiled()


@pytest.fixture(scope="module")
def alone():
    """The model by itself and with each adapter in its weights, each compiled by itself."""
    models = {None: MODEL} | {name: merged(MODEL, own) for name, own in ADAPTERS.items()}
    return {k: infopt.compile_causal_lm(m, max_length=48, batch=3) for k, m in models.items()}


@pytest.fixture(scope="module")
def texts(alone):
    return [list(alone[n].generate(p, 10)) for n, p in zip(NAMES, PROMPTS, strict=True)]


def columns(tokens):
    return [list(column) for column in zip(*tokens, strict=True)]


def test_every_sequence_has_its_own(lm, texts) -> None:
    assert columns(lm.generate(PROMPTS, 10, adapters=NAMES)) == texts
    assert len({tuple(text) for text in texts}) == 3  # adapters matter
    assert list(lm.generate(PROMPTS[0], 10, adapters="a")) == texts[0]


def test_no_adapter_is_the_model_to_the_bit(lm, alone) -> None:
    for ids in (PROMPTS, PROMPTS[:1]):
        state, base = lm.prefill(ids), alone[None].prefill(ids)
        for _ in range(3):
            assert torch.equal(state.logits, base.logits)
            token = base.logits.argmax(-1)
            state, base = lm.step(state, token), alone[None].step(base, token)
    mixed, base = lm.prefill(PROMPTS, adapters=NAMES), alone[None].prefill(PROMPTS)
    assert torch.equal(mixed.logits[1], base.logits[1])


def test_states_keep_theirs(lm, texts) -> None:
    first = lm.prefill(PROMPTS[:1], adapters="a")
    others = lm.prefill(PROMPTS[1:], adapters=NAMES[1:])
    assert (first.adapters, others.adapters) == (("a",), (None, "b"))
    state = lm.join([first, others])
    assert state.adapters == ("a", None, "b") and state.copy().adapters == state.adapters
    tokens, state = lm.decode(state, 4)
    assert tokens.tolist() == [text[:4] for text in texts]
    state = lm.keep(state, [2, 0])
    assert state.adapters == ("b", "a")
    tokens, state = lm.decode(state, 3)
    assert tokens.tolist() == [texts[2][4:7], texts[0][4:7]]
    assert lm.fork(lm.keep(state, [0]), 2).adapters == ("b", "b")


def test_a_text_goes_on_with_the_adapter_it_began_with(lm, alone) -> None:
    state = lm.prefill(PROMPTS[0][:4], adapters="a")
    with pytest.raises(InputMismatch, match="adapters: a state keeps those that it began with"):
        lm.prefill([PROMPTS[0][4:]], state=state, adapters="b")
    state = lm.prefill([PROMPTS[0][4:]], state=state)
    torch.testing.assert_close(
        state.logits, alone["a"].prefill([PROMPTS[0]]).logits, rtol=1e-4, atol=1e-4
    )
    found = lm.logits(PROMPTS[0], adapters="a")
    torch.testing.assert_close(found, alone["a"].logits(PROMPTS[0]), rtol=1e-4, atol=1e-4)


def test_guessed_tokens_are_those_of_steps(lm, texts) -> None:
    assert columns(lm.generate(PROMPTS, 10, adapters=NAMES, speculate=3)) == texts


def test_a_state_holds_an_adapter_that_was_unloaded(lm) -> None:
    state = lm.prefill(PROMPTS[0], adapters="a")
    after = lm.decode(state.copy(), 4)[0]
    lm.adapters.unload("a")
    try:
        with pytest.raises(infopt.AdaptersFull):
            lm.adapters.load("c", ADAPTERS["b"])
        assert torch.equal(lm.decode(state, 4)[0], after)
        with pytest.raises(infopt.UnknownAdapter, match=r"no adapter 'a' is loaded, only \['b'\]"):
            lm.generate(PROMPTS[0], 2, adapters="a")
    finally:
        del state
        lm.adapters.load("a", ADAPTERS["a"])


def test_pages_are_shared_by_texts_of_one_adapter(texts) -> None:
    paged = compiled(kv=infopt.KV(page=2))
    assert columns(paged.generate(PROMPTS, 10, adapters=NAMES)) == texts
    same, mixed = (paged.prefill(PROMPTS[:2], adapters=n).bytes for n in ("a", ["a", "b"]))
    assert same < mixed


def test_an_artifact(lm, texts, tmp_path) -> None:
    lm.save(tmp_path / "lm", golden=True)
    loaded = infopt.load(tmp_path / "lm", check=True)
    assert loaded.adapters.names == lm.adapters.names
    assert columns(loaded.generate(PROMPTS, 10, adapters=NAMES)) == texts


def test_a_model_without_room() -> None:
    lm = infopt.compile_causal_lm(MODEL, max_length=16)
    assert lm.adapters is None and lm.prefill([3]).adapters == (None,)
    with pytest.raises(InputMismatch, match=r"compiled without adapters=infopt\.Adapters"):
        lm.prefill([3], adapters="a")
