"""Mutants: each is one change, found again by number, named by what it changes."""

from __future__ import annotations

import ast
import json

import pytest

pytest.importorskip("benchmarks", reason="the benchmarks are part of the source checkout")

from benchmarks.mutants import mutants_of, mutated
from benchmarks.mutation import sample
from benchmarks.mutation_reach import ROOT, Reach

pytestmark = pytest.mark.checkout

SOURCE = '''
"""A docstring."""
LIMIT = 3


def f(x: int, flag: bool = True) -> int:
    """Prose."""
    assert x != 7
    if x < LIMIT and not flag:
        raise ValueError(f"{x} is too small")
    y = x + 1
    y += 2
    return y if flag else -y
'''


def test_changes() -> None:
    found = mutants_of("compiler/f.py", SOURCE)
    assert [m.change for m in found] == [
        "3 -> 4",
        "True -> False",
        "if x < LIMIT and (not flag) -> if not",
        "x < LIMIT and (not flag) -> x < LIMIT or not flag",
        "x < LIMIT -> x <= LIMIT",
        "not flag -> flag",
        "raise ValueError(f'{x} is too small') -> pass",
        "x + 1 -> x - 1",
        "1 -> 2",
        "y += 2 -> pass",
        "2 -> 3",
        "return y if flag else -y -> return None",
        "if flag -> if not",
        "-y -> y",
    ]
    assert [m.line for m in found][:4] == [3, 6, 9, 9] and found[6].reached == (10, 10)


def test_every_mutant_is_another_program() -> None:
    plain = ast.dump(ast.parse(SOURCE))
    found = mutants_of("compiler/f.py", SOURCE)
    trees = [ast.dump(mutated(SOURCE, m.number)) for m in found]
    assert len({plain, *trees}) == len(found) + 1
    for m in found:
        compile(mutated(SOURCE, m.number), "f.py", "exec")
    with pytest.raises(ValueError, match="expected a mutant's number, found 14 of 14"):
        mutated(SOURCE, 14)


def test_names_move_with_their_lines() -> None:
    before = {m.name for m in mutants_of("compiler/f.py", SOURCE)}
    assert before == {m.name for m in mutants_of("compiler/f.py", "\n\n" + SOURCE)}
    assert before.isdisjoint(m.name for m in mutants_of("compiler/g.py", SOURCE))


def test_a_sample_is_the_begin_of_a_larger_one() -> None:
    ten, twenty = sample(10, 3, "passes/"), sample(20, 3, "passes/")
    assert ten == twenty[:10] and len({m.name for m in twenty}) == 20
    assert ten != sample(10, 4, "passes/")
    assert all(m.file.startswith("passes/") for m in twenty)


def test_which_tests_try_a_mutant() -> None:
    own = "tests/compiler/test_f.py::test_own"
    seconds = {own: 3.0, "tests/a.py::quick": 0.1, "tests/a.py::slow": 9.0, "tests/a.py::import": 1}
    lines = {"compiler/f.py": {3: [], 9: ["tests/a.py::slow", "tests/a.py::quick", own], 20: [own]}}
    reach = Reach(seconds, lines, [])
    ordered = [own, "tests/a.py::quick", "tests/a.py::slow"]
    assert reach.tests("compiler/f.py", 9, 9, budget=30) == ordered
    assert reach.tests("compiler/f.py", 8, 10, budget=2) == ordered[:1]
    assert reach.tests("compiler/f.py", 3, 3, budget=30) == ordered  # when it is imported
    assert reach.tests("compiler/f.py", 40, 41, budget=30) == []
    assert reach.tests("compiler/g.py", 1, 1, budget=30) == []


def test_equivalent_mutants_have_a_reason() -> None:
    listed = json.loads((ROOT / "benchmarks" / "equivalent_mutants.json").read_text())
    assert listed and len({e["name"] for e in listed}) == len(listed)
    for entry in listed:
        assert len(entry["reason"].split()) > 3 and " -> " in entry["change"]
