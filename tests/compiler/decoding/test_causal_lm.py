"""compile_causal_lm: transformers' families token by token, the steps, and what is refused."""

import gc
import itertools
import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import infopt
from infopt.compiler.decoding import causal_lm, step_program
from infopt.compiler.decoding.contiguous import Contiguous
from infopt.compiler.decoding.policy import LayerShape
from infopt.compiler.errors import TraceDeclined
from infopt.models.decoder import SMALL, Decoder
from infopt.runtime.decoding.prompt_lookup import PromptLookup
from infopt.runtime.decoding.sampling import Sampler
from infopt.runtime.decoding.speculation import Speculation
from tests.compiler.decoding.causal_families import FAMILIES, VOCABULARY, build, expected, prompts

FAST = ("mistral", "opt")  # rotary and a window; learned positions; the others are slow


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in FAMILIES],
)
def test_greedy_tokens_are_those_of_transformers(name: str) -> None:
    model = build(name)
    before = model.config._attn_implementation
    lm = infopt.compile_causal_lm(model, max_length=96, batch=3, strict=True)
    texts = prompts(3, 9, 20)
    wanted = [expected(model, text, 64) for text in texts]
    assert len({token for row in wanted for token in row}) > 4
    assert [list(row) for row in zip(*lm.generate(texts, 64), strict=True)] == wanted
    assert list(lm.generate(texts[1], 64)) == wanted[1]
    assert model.config._attn_implementation == before


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(0)
    with torch.no_grad():
        made = Decoder(SMALL).eval()
        for name, parameter in made.named_parameters():
            if parameter.dim() > 1:  # the layers count for more than the last token's embedding
                parameter.mul_(0.05 if "token" in name else 3)
    return made


@pytest.fixture(scope="module")
def lm(decoder: Decoder) -> infopt.CausalLM:
    return infopt.compile_causal_lm(decoder, max_length=40, batch=3, strict=True)


def greedy(decoder: Decoder, prompt: list[int], tokens: int) -> list[int]:
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(tokens):
            ids.append(int(decoder(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def test_a_step_is_one_native_call(lm: infopt.CausalLM) -> None:
    program = lm.program._built.program
    assert program._quick and len(program._segments) == 1
    assert lm.report.aten_nodes == 0


def test_what_no_wanted_row_needs_is_not_computed(lm: infopt.CausalLM) -> None:
    """Logits of a prompt's last token alone are wanted: the head and the last layer's norms and
    feed-forward part see no other row."""
    nodes = [n for n in lm.program._built.graph.nodes() if n.op.name == "gated_linear"]
    (head,) = (
        n
        for n in lm.program._built.graph.nodes()
        if n.op.name == "aten.linear.default" and n.shape[-1] == SMALL.vocabulary
    )
    assert [str(n.shape[1]) for n in (*nodes, head)] == ["tokens", "rows", "rows"]


def test_logits_of_prefill_and_steps_are_those_of_the_module(
    decoder: Decoder, lm: infopt.CausalLM
) -> None:
    texts = [[5, 6, 7, 8, 9, 10, 11], [40], [1, 2, 3]]
    state = lm.prefill(texts)
    for next_ids in ([12, 41, 4], [13, 42, 5]):
        for row, text in enumerate(texts):
            with torch.no_grad():
                wanted = decoder(torch.tensor([text]))[0, -1]
            torch.testing.assert_close(state.logits[row], wanted, rtol=1e-4, atol=1e-4)
        state = lm.step(state, next_ids)
        texts = [[*text, token] for text, token in zip(texts, next_ids, strict=True)]
    assert state.lengths == (9, 3, 5)


def test_decode_is_greedy_and_goes_on(decoder: Decoder, lm: infopt.CausalLM) -> None:
    state = lm.prefill([[3, 4], [9, 8, 7]])
    first, state = lm.decode(state, 4)
    second, state = lm.decode(state, 3)
    found = torch.cat((first, second), 1).tolist()
    assert found == [greedy(decoder, [3, 4], 7), greedy(decoder, [9, 8, 7], 7)]


def test_prefill_goes_on_from_a_state(decoder: Decoder, lm: infopt.CausalLM) -> None:
    state = lm.prefill([[3, 4], [9, 8, 7]])
    state = lm.prefill([[5, 6, 1, 2], [6]], state=state)
    assert state.lengths == (6, 4)
    tokens, _ = lm.decode(state, 5)
    assert tokens[0].tolist() == greedy(decoder, [3, 4, 5, 6, 1, 2], 5)
    assert tokens[1].tolist() == greedy(decoder, [9, 8, 7, 6], 5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches(lm: infopt.CausalLM, side: str) -> None:
    texts = [[3, 4], [9, 8, 7, 6, 5], [1]]
    ids, mask = torch.full((3, 5), 77), torch.zeros(3, 5)
    for row, text in enumerate(texts):
        at = slice(5 - len(text), 5) if side == "left" else slice(0, len(text))
        ids[row, at], mask[row, at] = torch.tensor(text), 1
    assert list(lm.generate(ids, 6, mask=mask)) == list(lm.generate(texts, 6))


def test_logits_of_every_token(decoder: Decoder, lm: infopt.CausalLM) -> None:
    with torch.no_grad():
        wanted = decoder(torch.tensor([[5, 6, 7, 8, 9]]))[0]
    torch.testing.assert_close(lm.logits([5, 6, 7, 8, 9]), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("most", [1, 5])
def test_guessed_tokens_are_those_of_greedy_steps(lm: infopt.CausalLM, most: int) -> None:
    steps = []
    original, lm._run = lm._run, lambda *a: steps.append(a[0].shape[1]) or original(*a)
    try:
        for prompt in ([7, 8, 9, 10] * 3, [3, 4]):
            plain = list(lm.generate(prompt, 24))
            assert list(lm.generate(prompt, 24, speculate=most)) == plain
            ended = list(lm.generate(prompt, 24, speculate=most, stop=plain[20]))
            assert ended == plain[: plain.index(plain[20]) + 1]
    finally:
        del lm._run
    assert sum(n > 1 for n in steps) > 6  # six are the prompts
    with pytest.raises(ValueError, match="speculate: expected 0 or more, found -1"):
        lm.generate([1, 2], 4, speculate=-1)


def test_what_is_right_of_a_guess_is_taken_and_what_is_wrong_is_not(lm: infopt.CausalLM) -> None:
    plain = list(lm.generate([3, 4], 8))
    wrong = plain[4] + 1
    guesses = Speculation(lm._run, [], 4, Sampler())
    state = lm.prefill([[3, 4], [9]])
    other, ends = state.logits[1].clone(), [[plain[0], *plain[1:4], wrong, 1], []]
    (tokens, none), state = guesses.verify(state, ends)
    assert tokens == plain[1:5] and none == [] and state.lengths == (6, 1)
    assert torch.equal(state.logits[1], other)
    (tokens, _), state = guesses.verify(state, [[plain[4]], [7]])
    assert tokens == plain[5:6] and state.lengths == (7, 2)


@pytest.mark.parametrize("stop", [False, True])
def test_guesses_in_a_batch(lm: infopt.CausalLM, stop: bool) -> None:
    texts = [[7, 8, 9, 10] * 3, [3, 4], [5, 6] * 5]
    rows = list(lm.generate(texts, 24))
    stops = {rows[6][0], rows[15][2]} if stop else set()
    wanted = list(lm.generate(texts, 24, stop=stops))
    sizes = []
    original, lm._run = lm._run, lambda *a: sizes.append(a[0].shape[1]) or original(*a)
    try:
        assert list(lm.generate(texts, 24, stop=stops, speculate=4)) == wanted
    finally:
        del lm._run
    assert any(size > 1 for size in sizes[1:])
    assert list(lm.generate(texts, 0, speculate=4)) == []


class OneWay:
    """A sampler whose choices, each of two likeliest tokens, are given; `chance` of them all."""

    def __init__(self, way: tuple[int, ...]) -> None:
        self.way, self.chance = list(way), 1.0

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        turn, best = self.way.pop(0), logits[0].topk(2)
        self.chance *= float(best.values.softmax(0)[turn])
        return best.indices[turn][None, None]


class Greedy(PromptLookup):
    """Guesses that are right in some of the ways: what greedy steps would write."""

    def __init__(self, lm: infopt.CausalLM, tokens: list[int]) -> None:
        super().__init__(tokens)
        self.lm, self.asked = lm, 0

    def draft(self, most: int) -> list[int]:
        self.asked += 1
        return self.lm.decode(self.lm.prefill(self.tokens), max(0, most))[0][0].tolist()


def test_guesses_change_no_chance(lm: infopt.CausalLM) -> None:
    """Every way that the choices can go: its chance with guesses is the product of what the text's
    own logits say."""
    prompt, tokens, steps = [7, 8, 9], 4, []
    found: dict[tuple[int, ...], float] = {}
    for way in itertools.product((0, 1), repeat=tokens):
        sampler, lookup = OneWay(way), Greedy(lm, prompt)
        guesses = Speculation(lm._run, [lookup], 3, sampler)
        made = tuple(guesses.tokens(lm.prefill(prompt), tokens, set(), single=True))
        assert made not in found and not sampler.way
        found[made] = sampler.chance
        steps.append(lookup.asked)
    assert sum(found.values()) == pytest.approx(1)
    assert {1, 2, 3} <= set(steps)  # all guesses right, some, none
    for made, chance in found.items():
        logits, wanted = lm.logits([*prompt, *made])[len(prompt) - 1 : -1], 1.0
        for row, token in zip(logits, made, strict=True):
            best = row.topk(2)
            wanted *= float(best.values.softmax(0)[best.indices.tolist().index(token)])
        assert chance == pytest.approx(wanted, rel=1e-3)


def test_one_seed_gives_the_same_tokens_with_guesses(lm: infopt.CausalLM) -> None:
    options = {"temperature": 0.3, "seed": 5}
    for prompt in ([7, 8, 9, 10] * 3, [3, 4]):
        plain = list(lm.generate(prompt, 24, **options))
        assert list(lm.generate(prompt, 24, speculate=4, **options)) == plain


def test_lookup_asks_the_longest_that_agrees() -> None:
    lookup = PromptLookup([1, 2, 3, 9, 5, 2, 3, 8, 1, 2, 3])
    assert lookup.draft(3) == [9, 5, 2]  # 1 2 3, not the later 2 3
    lookup.add(7)
    assert lookup.draft(3) == []
    assert PromptLookup([4]).draft(2) == []


def test_stop_ends_a_sequence_and_the_last_one_all(lm: infopt.CausalLM) -> None:
    texts, chance = [[3, 4], [9, 8, 7]], {"temperature": 2.0, "seed": 3}
    free = list(zip(*lm.generate(texts, 12, **chance), strict=True))
    stop = free[0][2]
    assert stop not in free[0][:2]
    stopped = list(zip(*lm.generate(texts, 12, stop=stop, **chance), strict=True))
    for row, ended in zip(free, stopped, strict=True):
        end = row.index(stop) + 1 if stop in row else len(row)
        assert ended[:end] == row[:end]
        assert all(token is None for token in ended[end:])
    alone = list(lm.generate(texts[0], 12, **chance))
    assert (
        list(lm.generate(texts[0], 12, stop=[alone[4]], **chance))
        == alone[: alone.index(alone[4]) + 1]
    )


def test_sampling_repeats_with_a_seed(lm: infopt.CausalLM) -> None:
    def sample(seed: int, **options: Any) -> list[int]:
        return list(lm.generate([1, 2, 3], 24, temperature=1.5, seed=seed, **options))

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert sample(1, top_k=1) == sample(2, top_p=1e-6) == list(lm.generate([1, 2, 3], 24))
    with pytest.raises(ValueError, match="give a temperature too"):
        lm.generate([1, 2, 3], 4, seed=1)


def test_the_context_fills_to_its_end_and_no_further(decoder: Decoder, lm: infopt.CausalLM) -> None:
    assert list(lm.generate([5] * 30)) == greedy(decoder, [5] * 30, 10)
    with pytest.raises(infopt.ContextFull, match="sequence 0: 30 tokens and 11 more"):
        lm.generate([5] * 30, 11)
    state = lm.prefill([[5] * 40, [6]])
    with pytest.raises(infopt.ContextFull, match="sequence 0: 40 tokens and 1 more"):
        lm.step(state, [1, 1])
    with pytest.raises(infopt.ContextFull, match="sequence 1: 1 tokens and 40 more"):
        lm.prefill([[1], [1] * 40], state=lm.prefill([[6], [6]]))
    assert state.lengths == (40, 1) and state.stores  # the refused step took nothing


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "sequence 0 is empty"),
        ([[1, 2], []], "sequence 1 is empty"),
        ([1, 512], "token 512 is outside the vocabulary of 512"),
        ([[1], [-3, 1]], "token -3 is outside the vocabulary"),
        (torch.ones(1, 2, 2, dtype=torch.int64), r"expected \[T\] or \[B, T\]"),
        (torch.rand(1, 2), "expected integers, found torch.float32"),
        (["a", "b"], "expected integers"),
    ],
)
def test_bad_prompts(lm: infopt.CausalLM, ids: Any, message: str) -> None:
    with pytest.raises(infopt.BadTokens, match=message):
        lm.generate(ids, 2)


def test_bad_next_tokens_leave_the_state_as_it_was(lm: infopt.CausalLM) -> None:
    state = lm.prefill([[1, 2], [3]])
    with pytest.raises(infopt.BadTokens, match=r"expected int64 \[2\]"):
        lm.step(state, [1])
    with pytest.raises(infopt.BadTokens, match="token 9999"):
        lm.step(state, [1, 9999])
    assert lm.step(state, [1, 2]).lengths == (3, 2)


def test_too_many_sequences(lm: infopt.CausalLM) -> None:
    with pytest.raises(infopt.TooManySequences, match="4 sequences, but the model"):
        lm.prefill([[1], [2], [3], [4]])


def test_a_stepped_state_is_stale_and_a_copy_is_not(lm: infopt.CausalLM) -> None:
    state = lm.prefill([1, 2, 3])
    kept = state.copy()
    after = lm.step(state, [4])
    with pytest.raises(infopt.StaleState, match="use the state that the step gave"):
        lm.step(state, [4])
    assert torch.equal(lm.step(kept, [4]).logits, after.logits)


def test_a_fork_goes_on_as_texts_with_the_same_beginning(lm: infopt.CausalLM) -> None:
    beginning, ends = [1, 2, 3, 4, 5, 6], ([7, 8], [9], [10, 11, 12])
    shared = lm.prefill(beginning)
    forked = lm.fork(shared, 3)
    assert torch.equal(forked.logits, shared.logits.expand(3, -1)) and forked.lengths == (6, 6, 6)
    after = lm.prefill(ends, state=forked)
    whole = lm.prefill([beginning + end for end in ends])
    assert after.lengths == whole.lengths
    torch.testing.assert_close(after.logits, whole.logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(lm.decode(after, 9)[0], lm.decode(whole, 9)[0])
    assert lm.step(shared, [7]).lengths == (7,)  # it is still its own
    with pytest.raises(infopt.StaleState, match="this state was stepped"):
        lm.fork(shared, 2)
    with pytest.raises(infopt.TooManySequences, match="4 sequences, but the model"):
        lm.fork(lm.prefill([1]), 4)
    with pytest.raises(ValueError, match="a state of one sequence and 1 or more of them, found a"):
        lm.fork(whole := lm.prefill([[1], [2]]), 2)
    assert lm.step(whole, [3, 4]).lengths == (2, 2)


def test_texts_may_be_written_side_by_side(lm: infopt.CausalLM) -> None:
    prompts = ([1, 2, 3], [[4], [5, 6]])
    alone = [list(lm.generate(p, 10)) for p in prompts]
    first, second = (lm.generate(p, 10) for p in prompts)
    assert [list(pair) for pair in zip(*zip(first, second, strict=True), strict=True)] == alone


def test_nothing_is_made_again_while_texts_grow(lm: infopt.CausalLM) -> None:
    program = lm.program._built.program
    state = lm.prefill([1] * 7)
    state = lm.step(state, 3)
    made, memory = program._made, [t.data_ptr() for t in state.stores]
    _, state = lm.decode(state, 30)
    assert program._made == made
    assert [t.data_ptr() for t in state.stores] == memory


def test_an_abandoned_iterator_leaves_nothing(lm: infopt.CausalLM) -> None:
    tokens = lm.generate([1, 2, 3], 20)
    next(tokens)
    store = weakref.ref(tokens.gi_frame.f_locals["state"].stores[0])  # type: ignore[attr-defined]
    del tokens
    gc.collect()
    assert store() is None


def test_saved_and_loaded(tmp_path: Path, lm: infopt.CausalLM) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")
    wanted = list(lm.generate([[1, 2], [3]], 8))
    path = lm.save(tmp_path / "lm", attach=[tokenizer])
    loaded = infopt.load(path)
    assert isinstance(loaded, infopt.CausalLM) and loaded.spec == lm.spec
    assert list(loaded.generate([[1, 2], [3]], 8)) == wanted
    assert loaded.program.attached("tokenizer.json").read_text() == "{}"
    plain = infopt.load(path, native="never")
    assert list(plain.generate([[1, 2], [3]], 8)) == wanted


@pytest.mark.parametrize(
    "options",
    [{"weights": "int8"}, {"compute": "bf16"}, {"kv": infopt.KV("int8")}],
    ids=("weights", "compute", "kv"),
)
def test_options_reach_the_compiler(decoder: Decoder, options: dict[str, Any]) -> None:
    lm = infopt.compile_causal_lm(decoder, max_length=24, **options)
    with torch.no_grad():
        wanted = decoder(torch.tensor([[5, 6, 7, 8]]))[0, -1]
    found = lm.step(lm.prefill([5, 6, 7]), 8).logits[0]
    error = (found - wanted).norm() / wanted.norm()
    assert 1e-6 < error < 0.03


def test_a_format_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="format: expected one of"):
        infopt.KV("int7")


def test_what_cannot_be_compiled_says_why(decoder: Decoder) -> None:
    with pytest.raises(infopt.TraceDeclined, match="no arguments positions and cache"):
        infopt.compile_causal_lm(torch.nn.Linear(2, 2).eval(), max_length=8)
    with pytest.raises(infopt.BadOption, match="kv: expected an infopt"):
        infopt.compile_causal_lm(decoder, max_length=8, kv="int8")  # type: ignore[arg-type]
    with pytest.raises(infopt.BadOption, match="max_length: expected a positive int"):
        infopt.compile_causal_lm(decoder, max_length=0)
    with pytest.raises(infopt.BadOption, match="the model has 128 positions, found 129"):
        infopt.compile_causal_lm(build("gpt2"), max_length=129)
    assert build("gpt2").config.vocab_size == VOCABULARY


class Stub(torch.nn.Module):
    """A model of layers that may be missing, and of frequencies."""

    def __init__(self, layers: tuple[int, ...] = (0, 1), frequencies: tuple = ()) -> None:
        super().__init__()
        self.layers = layers
        for i, value in enumerate(frequencies):
            part = torch.nn.Module()
            part.inv_freq = torch.tensor(value)
            self.add_module(f"part{i}", part)

    @staticmethod
    def run(model: Any, ids: Any, positions: Any, cache: Any, pick: Any) -> torch.Tensor:
        rows = torch.zeros(1, 2, ids.shape[1], 4)
        for layer in model.layers:
            k, v = cache.append(layer, rows, rows)
            cache.attend(rows, k, v, window=3)
        return torch.zeros(1, 1, 50)


def shapes_of(model: Stub) -> Any:
    return causal_lm._shapes(partial(Stub.run, model), model)


def test_shapes_of_layers_that_a_run_shows() -> None:
    layers, vocabulary, windows = shapes_of(Stub((1, 0)))
    assert [(s.layer, s.layers, s.heads, s.rotary) for s in layers] == [
        (0, 2, 2, False),
        (1, 2, 2, False),
    ]
    assert (vocabulary, windows) == (50, {3})
    layers, _, _ = shapes_of(Stub(frequencies=([1.0, 0.5], [1.0, 0.5])))
    assert all(s.rotary for s in layers)


@pytest.mark.parametrize("layers", [(), (1,), (0, 2)])
def test_layers_are_counted_from_0(layers: tuple[int, ...]) -> None:
    with pytest.raises(TraceDeclined, match=r"expected a cache for layers 0, 1, \.\.\., found"):
        shapes_of(Stub(layers))


def test_a_run_that_fails_says_why() -> None:
    with pytest.raises(TraceDeclined, match="a run with a cache failed: TypeError: "):
        shapes_of(Stub(layers=None))


def test_frequencies_are_one_for_all_layers() -> None:
    one = step_program.inverse_frequencies(Stub(frequencies=([1.0, 0.5], [1.0, 0.5])))
    assert one.tolist() == [1.0, 0.5]
    assert step_program.inverse_frequencies(Stub(frequencies=([1.0], [0.5]))) is None
    assert step_program.inverse_frequencies(Stub(frequencies=([[1.0]],))) is None
    assert step_program.inverse_frequencies(Stub()) is None
    named = Stub()
    named.config = SimpleNamespace(rope_base=100.0, head_width=4)
    torch.testing.assert_close(step_program.inverse_frequencies(named), torch.tensor([1.0, 0.1]))


def test_every_layer_reads_its_cache() -> None:
    def run(ids: Any, positions: Any, cache: Any, pick: Any) -> Any:
        for layer in range(3):
            rows = torch.zeros(1, 2, 3, 4)
            k, v = cache.append(layer, rows, rows)
            if layer == 1:
                cache.attend(rows, k, v)
        return torch.zeros(1, 1, 50)

    layers = [LayerShape(2, 4, 4, torch.float32, i, 3) for i in range(3)]
    spec = SimpleNamespace(max_length=8)
    step = step_program.Step(run, Stub(), Contiguous(), layers, spec)
    stores = [torch.zeros(1, 2, 8, 4) for _ in range(6)]
    ints = (torch.zeros(1, dtype=torch.int64), torch.tensor([3]), torch.zeros(1, 1).long())
    with pytest.raises(TraceDeclined, match=r"attention of layers \[0, 2\] does not read"):
        step(torch.zeros(1, 3, dtype=torch.int64), *ints, {}, stores)
