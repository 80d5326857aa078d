"""Choices under limits on sums, against trying all of them."""

from __future__ import annotations

import itertools
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infopt.compiler.allocation import Choice, allocate
from infopt.compiler.errors import MissingLibrary, UnreachableBudget

choices = st.builds(
    Choice,
    st.integers(0, 50).map(float),
    st.integers(0, 30).map(lambda e: e / 1000),
    st.integers(1, 100),
)
items = st.lists(st.lists(choices, min_size=1, max_size=4), min_size=1, max_size=5)


def fits(chosen, max_error, max_bytes):
    error = sum(c.error**2 for c in chosen) ** 0.5
    small = max_bytes is None or sum(c.bytes for c in chosen) <= max_bytes
    return error <= max_error * (1 + 1e-6) and small


@settings(max_examples=60)
@given(items, st.sampled_from([0.005, 0.02, 0.05]), st.sampled_from([None, 60, 200]))
def test_equals_the_best_of_all(given_items, max_error, max_bytes):
    every = [c for c in itertools.product(*given_items) if fits(c, max_error, max_bytes)]
    if not every:
        with pytest.raises(UnreachableBudget):
            allocate(given_items, max_error, max_bytes)
        return
    picked = [
        options[i]
        for options, i in zip(given_items, allocate(given_items, max_error, max_bytes), strict=True)
    ]
    assert fits(picked, max_error, max_bytes)
    best = min(sum(c.cost for c in chosen) for chosen in every)
    assert sum(c.cost for c in picked) <= best + 0.01 * max(c.cost for o in given_items for c in o)


def test_equal_costs_choose_the_smaller_error():
    assert allocate([[Choice(1.0, 0.01, 5), Choice(1.0, 0.001, 5)]], 0.1) == [1]


def test_nothing_to_choose():
    assert allocate([], 0.1) == []


def test_says_what_is_possible():
    items = [[Choice(1.0, 0.03, 50), Choice(2.0, 0.04, 10)]] * 2
    least = "the least error there is is 0.0424, the least size 20"
    with pytest.raises(UnreachableBudget) as refused:
        allocate(items, 0.01, 15)
    assert str(refused.value) == (
        f"no choice of formats has an error of at most 0.01 and 15 bytes of weights; {least}"
    )
    with pytest.raises(UnreachableBudget) as refused:
        allocate(items, 0.01, None)
    assert str(refused.value) == f"no choice of formats has an error of at most 0.01; {least}"


def test_without_the_solver(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingLibrary, match=r"pip install \"infopt\[budget\]\""):
        allocate([[Choice(1.0, 0.0, 1)]], 0.1)
