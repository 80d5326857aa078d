"""Interleaved timing: order, counts and the summary; nothing is asserted about real speed."""

import pytest

from infopt.runtime import measure
from infopt.runtime.measure import Timing, summarise


def test_candidates_take_turns(monkeypatch):
    calls = []
    now = iter(range(10**9))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: float(next(now)))
    timings = measure.measure(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, seconds=1e9, rounds=4
    )
    assert "".join(calls) == "aabb" + "ab" + "ba" + "ab" + "ba"
    assert timings == {name: Timing(1.0, 1.0, 0.0, 4) for name in "ab"}


def test_time_is_bounded_but_three_rounds_are_made(monkeypatch):
    now = iter(range(10**9))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: float(next(now)))
    assert measure.measure({"a": lambda: None}, seconds=0.0, rounds=50)["a"].samples == 3


def test_fast_calls_are_repeated_within_a_sample(monkeypatch):
    calls = []
    monkeypatch.setattr(measure.time, "perf_counter", lambda: len(calls) * 1e-6)
    timing = measure.measure({"a": lambda: calls.append(1)}, rounds=3)["a"]
    assert len(calls) == 2 + 3 * 200 and timing.samples == 3  # of 0.2 ms each
    assert timing.min == pytest.approx(1e-6) and timing.median == pytest.approx(1e-6)


def test_summary():
    timing = summarise([1.0, 2.0, 3.0, 4.0, 100.0])
    assert timing.median == 3.0 and timing.min == 1.0
    assert timing.spread == pytest.approx((52.0 - 1.5) / 3.0)
    assert timing.to_json()["samples"] == 5
    assert summarise([2.0]) == Timing(2.0, 2.0, 0.0, 1)
