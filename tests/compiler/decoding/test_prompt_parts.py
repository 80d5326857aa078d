"""max_activations of a decoder: prompts read in parts that keep the limit, to the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import infopt
from infopt.compiler.decoding.prompt_parts import bytes_of_part
from infopt.models.decoder import SMALL, Decoder

ROOM, BATCH = 96, 2


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(SMALL).eval()


def compiled(decoder: Decoder, **options: Any) -> infopt.CausalLM:
    return infopt.compile_causal_lm(decoder, max_length=ROOM, batch=BATCH, **options)


def needed(lm: infopt.CausalLM, tokens: int) -> int:
    return bytes_of_part(tokens, lm.program._built.lowered.plan, lm.spec)


@pytest.fixture(scope="module")
def whole(decoder: Decoder) -> infopt.CausalLM:
    return compiled(decoder)


@pytest.fixture(scope="module")
def lean(decoder: Decoder, whole: infopt.CausalLM) -> infopt.CausalLM:
    return compiled(decoder, max_activations=needed(whole, 32) + 64)


def test_prompts_are_read_in_the_largest_parts_that_keep_the_limit(
    whole: infopt.CausalLM, lean: infopt.CausalLM
) -> None:
    assert whole.spec.chunk is None and lean.spec.chunk == 32
    assert needed(whole, 48) > needed(whole, 32) + 64
    (note,) = (n for n in lean.report.notes if n.startswith("max_activations"))
    used = needed(whole, 32)
    assert f"are read 32 tokens at a time, with {used} of {used + 64} bytes" in note


def test_results_are_the_same_bits(whole: infopt.CausalLM, lean: infopt.CausalLM) -> None:
    texts = torch.randint(0, SMALL.vocabulary, (BATCH, 80))
    texts = [texts[0].tolist(), texts[1, :50].tolist()]
    one, other = whole.prefill(texts), lean.prefill(texts)
    assert torch.equal(one.logits, other.logits)
    for _ in range(3):
        token = one.logits.argmax(-1)
        one, other = whole.step(one, token), lean.step(other, token)
        assert torch.equal(one.logits, other.logits)
    text = torch.tensor(texts[0])
    assert torch.equal(whole.logits(text), lean.logits(text))


def test_a_limit_that_all_prompts_keep_changes_nothing(decoder: Decoder) -> None:
    lm = compiled(decoder, max_activations=1 << 30)
    assert lm.spec.chunk is None
    assert any(f"read {ROOM} tokens at a time" in note for note in lm.report.notes)


def test_a_loaded_model_keeps_the_limit(tmp_path: Path, lean: infopt.CausalLM) -> None:
    loaded = infopt.load(lean.save(tmp_path / "lm"))
    assert loaded.spec.chunk == 32


@pytest.mark.slow
def test_groups_of_the_cache_are_not_cut(decoder: Decoder, whole: infopt.CausalLM) -> None:
    """A prompt's complete groups are read rounded: parts end where groups do."""
    lm = infopt.compile_causal_lm(
        decoder,
        max_length=ROOM,
        batch=BATCH,
        kv=infopt.KV("int4"),
        max_activations=needed(whole, 48) + (1 << 14),
    )
    assert lm.spec.chunk is not None and lm.spec.chunk % lm.spec.group == 0


@pytest.mark.slow
def test_what_cannot_be_kept(decoder: Decoder) -> None:
    told = r"max_activations=64: a call of 16 tokens in each of 2 sequences, .* needs \d+ bytes"
    with pytest.raises(infopt.UnreachableBudget, match=told):
        compiled(decoder, max_activations=64)
    policy = infopt.kv.Ring(sinks=2, window=16, chunk=8)
    with pytest.raises(infopt.UnreachableBudget, match="a call of 8 tokens"):
        compiled(decoder, kv=policy, max_activations=64)
    with pytest.raises(infopt.BadOption, match="max_activations: expected a number above 0"):
        compiled(decoder, max_activations=0)
