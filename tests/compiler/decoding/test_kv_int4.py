"""The cache in 4 bits: what it keeps of numbers, steps against prefill, guesses."""

from pathlib import Path

import pytest
import torch

import infopt
from infopt.codegen.kernels.kv_int4 import _from_pages, _to_pages
from infopt.models.decoder import SMALL, Decoder
from tests.compiler.decoding.sharp_decoder import sharp_decoder


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return sharp_decoder(3)


@pytest.fixture(scope="module")
def lm(decoder: Decoder) -> infopt.CausalLM:
    kv = infopt.KV("int4")
    return infopt.compile_causal_lm(decoder, max_length=150, batch=2, kv=kv, strict=True)


@pytest.mark.parametrize("per_token", [False, True])
def test_a_number_moves_by_half_a_step_at_most(per_token: bool) -> None:
    rows = torch.randn(2, 32, 64) * torch.tensor([1.0, 100.0]).repeat(32) + 3
    again = _from_pages(_to_pages(rows, per_token), 64, per_token)
    axis = rows.unflatten(-1, (2, 32)) if per_token else rows
    span = axis.amax(-1 if per_token else 1, True) - axis.amin(-1 if per_token else 1, True)
    error = ((again - rows).abs().view(axis.shape) / (span / 15)).max()
    assert 0.4 < error < 0.75  # factors are bf16: the ends of a range may be cut a little


def test_keys_keep_a_large_channel_apart() -> None:
    rows = torch.randn(1, 32, 32)
    rows[..., 5] *= 1000
    others = torch.arange(32) != 5
    by_channel = (_from_pages(_to_pages(rows, False), 32, False) - rows)[..., others]
    by_token = (_from_pages(_to_pages(rows, True), 32, True) - rows)[..., others]
    assert by_channel.abs().max() < 0.3 < by_token.abs().max()


def test_numbers_are_those_of_torch(tmp_path: Path, decoder: Decoder, lm: infopt.CausalLM) -> None:
    ids = torch.randint(SMALL.vocabulary, (1, 120), generator=torch.manual_seed(1))
    with torch.no_grad():
        exact = decoder(ids)[0]
    found = lm.logits(ids)
    torch.testing.assert_close(lm.logits(ids[:, :31]), exact[:31], rtol=1e-4, atol=1e-4)
    plain = infopt.load(lm.save(tmp_path / "lm"), native="never")
    torch.testing.assert_close(found, plain.logits(ids), rtol=1e-3, atol=1e-3)
    error = (found[-1] - exact[-1]).norm() / exact[-1].norm()
    assert 1e-3 < error < 0.5  # this model's attention is sharp: on purpose, to see differences


def test_steps_write_what_prefill_writes(lm: infopt.CausalLM) -> None:
    ids = torch.randint(SMALL.vocabulary, (2, 100), generator=torch.manual_seed(1))
    whole = lm.prefill([ids[0].tolist(), ids[1, :70].tolist()])
    state = lm.prefill([ids[0, :30].tolist(), ids[1, :1].tolist()])
    state = lm.prefill([ids[0, 30:99].tolist(), ids[1, 1:69].tolist()], state=state)
    state = lm.step(state, torch.stack((ids[0, 99], ids[1, 69])))
    for first, second in zip(whole.stores[:2], state.stores[:2], strict=True):
        # layer 0 depends on nothing that was read; few rows are summed in another order
        assert (first[:, :, : 5 * 640] != second[:, :, : 5 * 640]).float().mean() < 1e-3


def test_guesses_end_before_a_group_does(lm: infopt.CausalLM) -> None:
    sizes = []
    original, lm._run = (
        lm._run,
        lambda *a: sizes.append((a[2].item(), a[0].shape[1])) or original(*a),
    )
    try:
        for prompt in ([7, 8, 9, 10] * 7, [3, 4, 5] * 10):
            plain = list(lm.generate(prompt, 70))
            assert list(lm.generate(prompt, 70, speculate=20)) == plain
    finally:
        del lm._run
    several = [(start, size) for start, size in sizes if start and size > 1]
    assert several and all(start % 32 + size < 32 for start, size in several)


def test_a_nan_is_seen() -> None:
    rows = torch.ones(1, 32, 32)
    rows[0, 3, 4] = float("nan")
    assert _from_pages(_to_pages(rows, False), 32, False)[0, :, 4].isnan().all()
