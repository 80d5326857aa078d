"""A budget chooses the format of a decoder's cache: which one for what it is to make least, why the
others are not, and what generating from such a cache loses. Times are given, never measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import infopt
from infopt.compiler.decoding import kv_budget, step_program
from infopt.compiler.errors import BadOption, UnreachableBudget
from infopt.models.decoder import SMALL, Decoder
from infopt.passes.techniques import LADDERS
from infopt.runtime.decoding.layout import GROUP
from infopt.runtime.measure import Timing
from tests.compiler.decoding.sharp_decoder import sharp_decoder

TOKENS, ROOM = 96, 1024
CONFIG = replace(SMALL, heads=2)  # heads of 32 features, which int4 rounds together
NOTHING: dict[str, Any] = {"formats": (), "ranks": ()}  # to choose from, of weights
INT8: dict[str, Any] = {"formats": ("int8",), "activations": ("none",), "ranks": ()}


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def texts(seed: int = 0, tokens: int = TOKENS) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(SMALL.vocabulary, (2, tokens), generator=draw)


@pytest.fixture(scope="module", autouse=True)
def traced_once() -> Iterator[None]:
    """Tracing takes most of the time, and is the same for one model, cache and size."""
    known: dict[Any, Any] = {}
    trace = step_program._trace

    def once(step: Any, spec: Any) -> Any:
        key = step.model, step.policy, spec
        if key not in known:
            known[key] = trace(step, spec)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_program, "_trace", once)
        yield


@pytest.fixture(scope="module")
def model() -> Decoder:
    return sharp_decoder(1.5, CONFIG)


def budget_of(error: float, objective: str = "memory", **given: Any) -> infopt.Budget:
    given = {"techniques": ("kv",), "samples": ((texts(),),), **NOTHING} | given
    return infopt.Budget(error, objective, **given)


def compiled(model: Any, budget: infopt.Budget, **options: Any) -> infopt.CausalLM:
    return infopt.compile_causal_lm(
        model, **{"max_length": ROOM, "batch": 2} | options, budget=budget, threads=1
    )


def reasons(lm: infopt.CausalLM) -> dict[str, str]:
    return {site.where: site.reason for site in lm.report.find("cache-to-budget").sites}


def taken(lm: infopt.CausalLM) -> list[str]:
    return [site.where for site in lm.report.find("cache-to-budget").applied]


def kept_in(lm: infopt.CausalLM) -> str:
    return {"torch.float32": "same", "torch.int8": "int8", "torch.uint8": "int4"}[
        lm.spec.stores[0][1]
    ]


@torch.no_grad()
def stepped(lm: infopt.CausalLM, ids: torch.Tensor, prompt: int) -> torch.Tensor:
    """Logits of the tokens behind a prompt, each by a step that reads the cache."""
    state, found = lm.prefill(ids[:, :prompt]), []
    for place in range(prompt, ids.shape[1]):
        state = lm.step(state, ids[:, place].contiguous())
        found.append(state.logits)
    return torch.stack(found, 1)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(("error", "kept"), [slow(1e-4, "same"), (0.02, "int8"), slow(0.2, "int4")])
@torch.no_grad()
def test_the_narrowest_that_keeps_the_limit(model: Decoder, error: float, kept: str) -> None:
    """And what steps compute from it keeps the limit as well, on these texts."""
    lm = compiled(model, budget_of(error))
    assert kept_in(lm) == kept and taken(lm) == ([] if kept == "same" else [f"kv={kept}"])
    for prompt in (1, 40):
        assert relative(stepped(lm, texts(), prompt), model(texts())[:, prompt:]) <= error
    told = reasons(lm)
    assert list(told) == ["kv=same", "kv=int8", "kv=int4"]
    size = lm.report.memory["weights"] + lm.spec.cache_bytes
    assert f"takes {size} bytes with its cache" in told[f"kv={kept}"]
    if kept == "same":
        assert told["kv=int8"].endswith(f" alone, the budget is {error:.1e}")
    else:
        assert told["kv=same"].endswith(f"; chosen: kv={kept}")
        assert ", where kv=same takes " in told[f"kv={kept}"]


@pytest.mark.slow
@torch.no_grad()
def test_weights_get_what_the_cache_leaves(model: Decoder) -> None:
    """One limit for both, in what generating computes."""
    limit = 0.05
    lm = compiled(model, budget_of(limit, **INT8))
    assert taken(lm) == ["kv=int8"]
    assert lm.report.find("quantize-to-budget").applied
    found = relative(stepped(lm, texts(), 8), model(texts())[:, 8:])
    assert 1e-4 < found <= limit
    [point] = [p for p in lm.report.frontier if p.measured_error is not None]
    both = relative(lm.prefill(texts()).logits, model(texts())[:, -1])
    assert both <= 2 * point.measured_error <= 2 * limit
    alone, joint = reasons(lm)["kv=int8"].split(" with what")[0].removeprefix("error ").split(", ")
    assert float(alone.split()[0]) < float(joint) <= limit


@pytest.mark.slow
@torch.no_grad()
def test_errors_of_a_decoder_are_those_of_its_logits(model: Decoder) -> None:
    """What lies in the cache is no result: bytes of a rounded one could not be compared."""
    for kv in ("int8", "int4"):
        lm = compiled(model, budget_of(0.1, techniques=(), **INT8), kv=infopt.KV(kv))
        assert lm.report.find("quantize-to-budget").applied
        lm = infopt.compile_causal_lm(model, max_length=64, kv=infopt.KV(kv), weights="int8")
        assert lm.report.find("quantize-weights").error


def test_a_cache_by_hand_stays(model: Decoder) -> None:
    for kv, kept in ((infopt.KV("int8"), "int8"), (infopt.KV(), "same")):
        lm = compiled(model, budget_of(0.2), kv=kv)
        assert kept_in(lm) == kept and taken(lm) == []
        (told,) = reasons(lm).values()
        assert told.endswith("; a cache was given, no other is tried")


@pytest.mark.slow
def test_a_policy_by_hand_stays(model: Decoder) -> None:
    given = {"max_length": 128, "kv": infopt.kv.Evict(32, 8, 8)}
    lm = compiled(model, budget_of(0.2, "size", samples=()), **given)
    assert list(reasons(lm)) == ["kv=Evict"]


def test_an_artifact_holds_no_cache(model: Decoder) -> None:
    lm = compiled(model, budget_of(0.2, "size"))
    assert kept_in(lm) == "same"
    for name in ("kv=int8", "kv=int4"):
        assert reasons(lm)[name] == "does not pay: an artifact holds no cache"


@pytest.mark.slow
def test_a_cache_that_is_no_smaller_does_not_pay(model: Decoder) -> None:
    """int4 keeps the last 64 tokens in full precision beside the others."""
    lm = compiled(model, budget_of(0.5, samples=((texts(tokens=64),),)), max_length=64)
    told = reasons(lm)["kv=int4"]
    assert kept_in(lm) == "int8" and ", where kv=same takes " not in told
    whole = 2 * 2 * 2 * 2 * 64 * 32 * 4  # layers, keys and values, texts, heads
    assert told.startswith("does not pay: ") and told.endswith(f" bytes of cache, {whole} as is")


def test_samples_without_a_group_say_nothing_of_int4(model: Decoder) -> None:
    short = ((texts(tokens=GROUP - 1),),)
    lm = compiled(model, budget_of(0.5, samples=short))
    told = reasons(lm)["kv=int4"]
    assert kept_in(lm) == "int8"
    assert told == "rounds 32 tokens together, and no sample has so many"


def test_without_samples_a_random_text_judges(model: Decoder) -> None:
    lm = compiled(model, budget_of(0.2, samples=()))
    assert kept_in(lm) == "int4" and "error " in reasons(lm)["kv=int4"]


def given_times(monkeypatch: pytest.MonkeyPatch, *rounds: tuple[float, ...]) -> list[list[str]]:
    """Milliseconds of what is measured in turns, round by round; the names that were."""
    asked: list[list[str]] = []

    def measure(runs: Any, **_: Any) -> dict[str, Timing]:
        for run in runs.values():
            run()  # a step that there can be
        times = rounds[len(asked)]
        asked.append([*runs])
        return {n: Timing(t / 1e3, t / 1e3, 0.0, 1) for n, t in zip(runs, times, strict=True)}

    monkeypatch.setattr(kv_budget, "measure", measure)
    return asked


@pytest.mark.slow
def test_a_step_that_takes_longer_does_not_pay(
    model: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = given_times(monkeypatch, (1.1, 1.2, 1.0), (0.6, 0.5))
    lm = compiled(model, budget_of(0.2, "latency"))
    assert asked == [["kv=same", "kv=int8", "kv=int4"], ["kv=same", "kv=int4"]]
    assert reasons(lm)["kv=int8"].startswith("does not pay: 1.2 ms a step, 1.1 ms as is")
    assert taken(lm) == ["kv=int4"] and kept_in(lm) == "int4"
    (site,) = lm.report.find("cache-to-budget").applied
    assert site.gain == pytest.approx(1e-4)
    told = f"takes 0.5 ms a step behind {TOKENS} tokens, where kv=same takes 0.6 ms a step behind "
    assert told + f"{TOKENS} tokens and 5% less is asked for" in site.reason


@pytest.mark.parametrize(("time", "kept"), [(0.96, "same"), (0.94, "int8")])
def test_a_twentieth_of_a_step_is_asked_for(
    model: Decoder, monkeypatch: pytest.MonkeyPatch, time: float, kept: str
) -> None:
    given_times(monkeypatch, (1.0, 0.9), (1.0, time))
    lm = compiled(model, budget_of(0.02, "latency"))
    assert kept_in(lm) == kept
    if kept == "same":
        assert reasons(lm)["kv=int8"].endswith("; chosen: kv=same")


def test_a_memory_that_only_a_rounded_cache_reaches(model: Decoder) -> None:
    """The cache counts along with the weights, and its error against the whole one."""
    plain = compiled(model, budget_of(0.2), kv=infopt.KV())
    weights, cache = plain.report.memory["weights"], plain.spec.cache_bytes
    lm = compiled(model, budget_of(0.02, max_memory=weights + cache // 2))
    assert taken(lm) == ["kv=int8"]
    assert weights + lm.spec.cache_bytes <= weights + cache // 2
    with pytest.raises(UnreachableBudget) as error:
        compiled(model, budget_of(0.02, max_memory=1000))
    for told in (
        f"kv=same: its cache alone has {cache} bytes, 1000 are allowed; kv=int8: its cache alone",
        "; kv=int4: error ",
    ):
        assert told in str(error.value)


@pytest.mark.slow
@torch.no_grad()
def test_the_first_reference_is_the_whole_cache_also_where_that_is_too_large(
    model: Decoder,
) -> None:
    limit = compiled(model, budget_of(0.2), kv=infopt.KV()).spec.cache_bytes
    lm = compiled(model, budget_of(0.02, max_memory=limit, **INT8))
    assert taken(lm) == ["kv=int8"]
    alone, joint = reasons(lm)["kv=int8"].split(" with what")[0].removeprefix("error ").split(", ")
    assert 0 < float(alone.split()[0]) <= float(joint) <= 0.02


@pytest.mark.slow
def test_what_torch_would_run_is_left(model: Decoder) -> None:
    wide = Decoder(SMALL).double().eval()
    lm = compiled(wide, budget_of(0.2))
    assert lm.spec.stores[0][1] == "torch.float64"
    assert reasons(lm)["kv=int8"].startswith("torch would run ")


@pytest.mark.slow
@torch.no_grad()
def test_an_artifact_keeps_the_format(model: Decoder, tmp_path: Path) -> None:
    lm = compiled(model, budget_of(0.02, **INT8))
    again = infopt.load(lm.save(tmp_path / "lm"))
    assert again.spec == lm.spec and kept_in(again) == "int8"
    assert torch.equal(stepped(again, texts(), 8), stepped(lm, texts(), 8))


@pytest.mark.slow
@torch.no_grad()
def test_beside_other_techniques(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "all" has them all; each search says what it did, and the cache's format is said once."""
    for name, shares in LADDERS.items():
        monkeypatch.setitem(LADDERS, name, shares[:1])
    budget = budget_of(0.05, techniques="all", **INT8)
    lm = compiled(model, budget, calibration=[(texts(n),) for n in (1, 2)])
    assert taken(lm) == ["kv=int8"]
    told = infopt.explain(lm.program, "compress-to-budget")
    assert "formats and ranks: applied" in told and "kv" not in told
    assert relative(stepped(lm, texts(), 8), model(texts())[:, 8:]) <= 0.05


def test_without_a_cache() -> None:
    """All techniques are those that there are; the name alone is a mistake that is told."""
    net, x = torch.nn.Linear(8, 8).eval(), torch.ones(4, 8)
    every = infopt.Budget(0.1, "size", techniques="all", **NOTHING)
    with torch.no_grad():
        told = infopt.explain(infopt.compile(net, (x,), budget=every), "compress-to-budget")
    assert "kv: declined: there is no cache whose format could be chosen" in told
    named = replace(every, techniques=("kv",))
    with pytest.raises(BadOption, match="'kv' is the format of a decoder's cache"):
        infopt.compile(net, (x,), budget=named)


@torch.no_grad()
def test_without_a_cache_through_torch_compile() -> None:
    torch._dynamo.reset()
    net, x = torch.nn.Linear(8, 8).eval(), torch.ones(4, 8)
    budget = infopt.Budget(0.1, "size", techniques="all", **NOTHING)
    made = torch.compile(net, backend="infopt", options={"budget": budget})
    torch.testing.assert_close(made(x), net(x))
    assert "kv: declined" in infopt.explain(made, "compress-to-budget")


@pytest.mark.slow
def test_in_parts_with_adapters_and_cut_prompts(model: Decoder) -> None:
    adapted = {"adapters": infopt.Adapters(rank=2, slots=1), "max_activations": 1 << 18}
    assert kept_in(compiled(model, budget_of(0.02), **adapted)) == "int8"
    cut = infopt.Compaction(0.5, layer=0, asking=4, least=32)
    lm = compiled(model, budget_of(0.02), compact=cut)
    assert kept_in(lm) == "int8" and lm.spec.compact is not None
    assert len(list(lm.generate(list(range(80)), 4))) == 4
