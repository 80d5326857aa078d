"""compact=infopt.Compaction: what is kept of prompts, where it stands, and what is refused."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import infopt
from infopt.compiler.graph import Node
from infopt.runtime.decoding.compaction import Compaction
from tests.compiler.decoding.causal_families import build, prompts

CUT = infopt.Compaction(keep=0.25, layer=1, asking=4, least=16)
TEXTS = [t.tolist() for t in prompts(60, 9, 33)]
SLOW = ("opt", "gpt2", "gpt_neox", "phi")  # learned positions among them


@pytest.fixture(
    scope="module", params=["llama", *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)]
)
def model(request: Any) -> Any:
    return build(request.param)


@pytest.fixture(scope="module")
def lm(model: Any) -> infopt.CausalLM:
    return infopt.compile_causal_lm(model, max_length=80, batch=3, compact=CUT, strict=True)


@pytest.fixture(scope="module")
def plain(model: Any) -> infopt.CausalLM:
    return infopt.compile_causal_lm(model, max_length=80, batch=3, strict=True)


@pytest.fixture(scope="module")
def saved(lm: infopt.CausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lm.save(tmp_path_factory.mktemp("saved") / "lm.infopt")


@torch.no_grad()
def logits(model: Any, text: list[int], at: torch.Tensor, *more: int) -> torch.Tensor:
    """Of the last token: transformers reads these of a text's tokens, each at its position, and
    what follows the text."""
    ids = torch.cat((torch.tensor(text)[at], torch.tensor(more, dtype=torch.int64)))
    where = torch.cat((at, len(text) + torch.arange(len(more))))
    # with a mask, else it takes gaps between positions for several texts
    out = model(
        input_ids=ids[None], position_ids=where[None], attention_mask=torch.ones_like(ids)[None]
    )
    return out.logits[0, -1]


def test_kept_tokens_stand_where_they_stood(model: Any, lm: infopt.CausalLM) -> None:
    kept = lm.places(TEXTS)
    assert [len(at) for at in kept] == [15, 9, 9]
    state = lm.prefill(TEXTS)
    assert state.lengths == (15, 9, 9) and state.positions.tolist() == [60, 9, 33]
    after = lm.step(state, [7, 8, 9])
    for row, (text, at) in enumerate(zip(TEXTS, kept, strict=True)):
        torch.testing.assert_close(state.logits[row], logits(model, text, at), rtol=1e-4, atol=1e-4)
        wanted = logits(model, text, at, 7 + row)
        torch.testing.assert_close(after.logits[row], wanted, rtol=1e-4, atol=1e-4)
        if row == 0:  # positions matter, or this proved nothing
            closed = logits(model, torch.tensor(text)[at].tolist(), torch.arange(len(at)))
            assert (state.logits[row] - closed).abs().max() > 1e-2


def test_what_is_kept_got_most_attention_of_the_last_tokens(
    model: Any, lm: infopt.CausalLM
) -> None:
    text, asking = TEXTS[0], CUT.asking
    with torch.no_grad():
        model.set_attn_implementation("eager")
        try:
            out = model(torch.tensor([text]), output_attentions=True)
        finally:
            model.set_attn_implementation("sdpa")
    weights = out.attentions[CUT.layer][0, :, -asking:, :-asking]
    worth = (weights / weights.sum(-1, keepdim=True)).mean((0, 1))
    (found,) = lm.filter.run([torch.tensor([text]), torch.tensor([60])])
    torch.testing.assert_close(found[0, :-asking], worth, rtol=1e-3, atol=1e-6)
    near = torch.stack([worth[max(0, n - 2) : n + 3].amax() for n in range(len(worth))])
    near[0] = math.inf
    order = sorted(range(len(worth)), key=lambda n: (-near[n], -worth[n], n))
    best = sorted(order[: 15 - asking])
    assert lm.places(text)[0].tolist() == [*best, 56, 57, 58, 59]


def test_layers_behind_the_one_that_is_asked_are_not_in_the_filter(lm: infopt.CausalLM) -> None:
    def linears(program: Any) -> int:
        return sum("linear" in n.op.name for n in program.graph.nodes() if isinstance(n, Node))

    assert 0 < linears(lm.filter) < linears(lm.program)
    assert len(lm.filter._built.program._segments) == 1  # one native call


def test_all_tokens_are_plain_prefill(lm: infopt.CausalLM, plain: infopt.CausalLM) -> None:
    every = lm.places(TEXTS, keep=1.0)
    assert [at.tolist() for at in every] == [list(range(len(t))) for t in TEXTS]
    found, wanted = lm.prefill(TEXTS, places=every), plain.prefill(TEXTS)
    assert torch.equal(found.logits, wanted.logits)
    for one, other in zip(found.stores, wanted.stores, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(lm.decode(found, 9)[0], plain.decode(wanted, 9)[0])
    assert torch.equal(lm.logits(TEXTS[0]), plain.logits(TEXTS[0]))


def test_steps_guesses_and_batches_agree(lm: infopt.CausalLM) -> None:
    alone = [list(lm.generate(text, 12)) for text in TEXTS]
    assert [list(row) for row in zip(*lm.generate(TEXTS, 12), strict=True)] == alone
    repeated = [5, 6, 7, 8] * 12
    wanted = list(lm.generate(repeated, 20))
    assert list(lm.generate(repeated, 20, speculate=4)) == wanted
    state = lm.prefill(TEXTS)
    kept = lm.keep(state.copy(), [2])
    joined = lm.join([lm.prefill(TEXTS[1]), kept])
    assert joined.positions.tolist() == [9, 33]
    tokens, _ = lm.decode(joined, 12)
    assert tokens.tolist() == [alone[1], alone[2]]
    more = lm.prefill([[1, 2], [3], [4]], state=state)  # what follows is read whole
    assert more.lengths == (17, 10, 10) and more.positions.tolist() == [62, 10, 34]


@pytest.mark.slow
def test_pages(model: Any, lm: infopt.CausalLM) -> None:
    kv = infopt.KV(page=4)
    paged = infopt.compile_causal_lm(model, max_length=80, batch=3, kv=kv, compact=CUT, strict=True)
    wanted, state = lm.prefill(TEXTS), paged.prefill(TEXTS)
    assert state.lengths == wanted.lengths
    torch.testing.assert_close(state.logits, wanted.logits, rtol=1e-4, atol=1e-4)
    both = [TEXTS[0] + [3], TEXTS[0] + [4]]
    same = [range(0, 61, 2)] * 2  # in common: tokens that stand at the same positions
    one = paged.prefill(both[0], places=same[:1])
    assert paged.prefill(both, places=same).bytes < 2 * one.bytes
    other = [range(0, 61, 2), range(0, 61, 3)]
    found, wanted = (m.prefill(both, places=other) for m in (paged, lm))
    torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_int4(model: Any, lm: infopt.CausalLM) -> None:
    kv = infopt.KV("int4")
    rounded = infopt.compile_causal_lm(
        model, max_length=80, batch=3, kv=kv, compact=CUT, strict=True
    )
    wanted, state = lm.prefill(TEXTS), rounded.prefill(TEXTS)
    assert state.lengths == wanted.lengths
    assert (state.logits - wanted.logits).norm() / wanted.logits.norm() < 0.2


def test_prompts_may_be_longer_than_the_room_of_the_cache(lm: infopt.CausalLM) -> None:
    text = [n * 7 % 90 for n in range(120)]
    assert lm.prefill(text).lengths == (30,)
    with pytest.raises(infopt.ContextFull, match="sequence 0: 30 tokens and 51 more"):
        lm.generate(text, 51)
    with pytest.raises(infopt.ContextFull, match="sequence 0: 0 tokens and 100 more"):
        lm.prefill([1] * 400)


def test_no_text_goes_beyond_the_models_positions(lm: infopt.CausalLM) -> None:
    assert lm.spec.positions == 128
    assert len(list(lm.generate([5] * 120))) == 8
    for call in (lm.prefill, lm.places, lambda ids: lm.generate(ids, 1)):
        with pytest.raises(infopt.ContextFull, match="tokens, but the model has 128 positions"):
            call([5] * 129)
    state = lm.prefill([5] * 128)
    with pytest.raises(infopt.ContextFull, match="a text of 129 tokens, but the model has 128"):
        lm.step(state, 1)
    assert state.stores


def test_saved_and_loaded(saved: Path, lm: infopt.CausalLM) -> None:
    wanted = list(lm.generate(TEXTS, 6))
    loaded = infopt.load(saved)
    assert isinstance(loaded, infopt.CausalLM) and loaded.spec == lm.spec
    assert loaded.filter.is_native
    assert torch.equal(loaded.prefill(TEXTS).logits, lm.prefill(TEXTS).logits)
    assert list(loaded.generate(TEXTS, 6)) == wanted
    plain = infopt.load(saved, native="never")
    assert isinstance(plain, infopt.CausalLM) and not plain.filter.is_native
    assert list(plain.generate(TEXTS, 6)) == wanted


@pytest.mark.slow
def test_saved_as_a_folder(tmp_path: Path, lm: infopt.CausalLM) -> None:
    loaded = infopt.load(lm.save(tmp_path / "lm"))
    assert isinstance(loaded, infopt.CausalLM)
    assert torch.equal(loaded.prefill(TEXTS).logits, lm.prefill(TEXTS).logits)


def test_the_filter_of_another_artifact_is_not_run(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a sound artifact, put in its place after what was saved was checked
    monkeypatch.setattr("infopt.runtime.loaded.LoadedProgram.attached", lambda *_: saved)
    with pytest.raises(infopt.ArtifactCorrupt, match="expected sha256 "):
        infopt.load(saved)


def test_what_cannot_be_cut_is_refused(model: Any, plain: infopt.CausalLM) -> None:
    def compiled(given: Any = model, **options: Any) -> infopt.CausalLM:
        return infopt.compile_causal_lm(given, **{"max_length": 96, "compact": CUT} | options)

    for kv in (infopt.kv.Ring(), infopt.kv.Evict(64, 16, 8)):
        with pytest.raises(infopt.BadOption, match=f"{type(kv).__name__} forgets tokens by their"):
            compiled(kv=kv)
    with pytest.raises(infopt.BadOption, match="see only the last 16 tokens"):
        compiled(build("mistral"))
    with pytest.raises(infopt.BadOption, match=r"compact\.layer: expected 0 to 1, found 2"):
        compiled(compact=Compaction(layer=2))
    with pytest.raises(infopt.BadOption, match=r"expected an infopt\.Compaction, found 0\.5"):
        compiled(compact=0.5)
    with pytest.raises(infopt.BadOption, match="max_activations: what cuts a prompt reads it at"):
        compiled(max_activations=1 << 20)
    with pytest.raises(infopt.BadTokens, match="was compiled without compact="):
        plain.prefill([1, 2, 3], places=[[0, 2]])


@pytest.mark.parametrize(
    "numbers", [{"keep": 0.0}, {"keep": 1.1}, {"layer": -1}, {"asking": 0}, {"least": 2.5}]
)
def test_numbers_that_there_cannot_be(numbers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected 0 < keep <= 1, and ints"):
        Compaction(**numbers)


@pytest.mark.parametrize(
    "places", [[], [0, 1], [2, 1, 3], [1, 1, 3], [-1, 3], [0, 4], [0.5, 3.0], [[0, 3]]]
)
def test_bad_places(lm: infopt.CausalLM, places: Any) -> None:
    with pytest.raises(infopt.BadTokens, match="places of sequence 0: expected ascending"):
        lm.prefill([1, 2, 3, 4], places=[places])
    with pytest.raises(infopt.BadTokens, match="places: expected 1 sequences, found 2"):
        lm.prefill([1, 2, 3, 4], places=[[3], [3]])


@pytest.mark.slow
def test_what_does_not_pay_is_declined_with_both_numbers(model: Any) -> None:
    cut = Compaction(keep=0.6, layer=1)
    lm = infopt.compile_causal_lm(model, max_length=24, compact=cut)
    assert lm.spec.compact is None and lm.filter is None
    (note,) = [n for n in lm.report.notes if n.startswith("compact:")]
    assert "1 of 2 layers for all tokens and 2 for 60% of them are 110% of reading them all" in note


@pytest.mark.parametrize(
    "given",
    [
        {"objective": "size", "max_error": 0.3},
        {"budget": infopt.Budget(0.3, "size"), "calibration": [(torch.arange(32)[None],)]},
    ],
    ids=["objective", "calibrated budget"],
)
def test_a_budget_is_for_the_model_alone(model: Any, given: dict[str, Any]) -> None:
    lm = infopt.compile_causal_lm(model, max_length=80, compact=CUT, **given)
    assert lm.spec.compact is not None
    assert "too small to pay" in infopt.explain(lm.program, "quantize-to-budget")
    assert len(list(lm.generate(list(range(60)), 3))) == 3
