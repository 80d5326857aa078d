"""Mutants: each is one change, found again by number, named by what it changes."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from benchmarks import mutation_reach
from benchmarks.mutants import mutants_of, mutated
from benchmarks.mutation import sample
from benchmarks.mutation_reach import ROOT, Reach, joined, moved

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
    ten, twenty = sample(10, 3, "passes/fold"), sample(20, 3, "passes/fold")
    assert ten == twenty[:10] and len({m.name for m in twenty}) == 20
    assert ten != sample(10, 4, "passes/fold")
    assert all(m.file.startswith("passes/fold") for m in twenty)


def test_which_tests_try_a_mutant() -> None:
    own = "tests/compiler/test_f.py::test_own"
    seconds = {own: 3.0, "tests/a.py::quick": 0.1, "tests/a.py::slow": 9.0, "tests/a.py::import": 1}
    lines = {"compiler/f.py": {9: ["tests/a.py::slow", "tests/a.py::quick", own], 20: [own]}}
    reach = Reach(seconds, lines, [])
    ordered = [own, "tests/a.py::quick", "tests/a.py::slow"]
    assert reach.tests("compiler/f.py", 9, 9, budget=30) == ordered
    assert reach.tests("compiler/f.py", 8, 10, budget=2) == ordered[:1]
    assert reach.tests("compiler/f.py", 40, 41, budget=30) == []
    assert reach.tests("compiler/g.py", 1, 1, budget=30) == []


def test_what_runs_on_import_is_tried_by_all_who_use_the_module() -> None:
    lines = {3: ["importer"], 6: ["importer"], 9: ["user", "other"], 11: [], 12: ["user"]}
    found = mutation_reach._imported_for_all(lines, SOURCE, ["tables"])
    everyone = ["other", "tables", "user"]
    assert found == lines | {3: everyone, 6: everyone}  # the constant, and the default of f
    assert mutation_reach._imported_for_all({3: ["importer"]}, SOURCE, []) == {3: ["importer"]}


def test_tests_that_are_gone_are_not_asked() -> None:
    here = f"tests/benchmarks/test_mutants.py::{test_tests_that_are_gone_are_not_asked.__name__}"
    gone, file = f"{here}_any_more", "tests/test_that_is_gone.py::test_x"
    lines = {"compiler/f.py": {1: [gone, here, file]}}
    reach = Reach({here: 1.0, gone: 1.0, file: 1.0}, lines, ["torch"]).of_tests_that_exist()
    assert reach == Reach({here: 1.0}, {"compiler/f.py": {1: [here]}}, ["torch"])


def test_lines_are_found_again_after_an_edit() -> None:
    before = "a\nb\nc\nd\ne\nf\n"
    by = {"1": ["t1"], "2": ["t2"], "3": [], "5": ["t5"], "6": ["t6"]}
    assert moved(by, before, before) == by
    assert moved(by, before, "new\n" + before)["7"] == ["t6"]
    found = moved(by, before, "a\nb\nC\nC2\nd\ne\nf\n")
    assert found["2"] == ["t2"] and found["6"] == ["t5"] and found["7"] == ["t6"]
    assert found["3"] == found["4"] == ["t1", "t2", "t5"]  # new: run by what runs those around


def test_what_was_measured_is_read_as_it_was_written(tmp_path: Path) -> None:
    tests = ["tests/a.py::x", "tests/b.py::y"]
    file = "passes/named.py"
    a, b, *_ = sorted(mutation_reach._in_functions(ast.parse((ROOT / file).read_text())))
    held = {
        "seconds": dict.fromkeys(tests, 1.0),
        "lines": {file: {str(a): tests, str(b): []}, "passes/gone.py": {"1": tests}},
        "modules": ["torch"],
        "sources": {file: (ROOT / file).read_text(), "passes/gone.py": ""},
    }
    mutation_reach._write(tmp_path / "reach.json", held)
    expected = {file: {a: tests, b: []}}
    assert mutation_reach.load(tmp_path / "reach.json") == Reach(
        held["seconds"], expected, ["torch"]
    )


def test_test_files_measured_again_replace_what_was_held() -> None:
    held = {
        "seconds": {"tests/a.py::x": 1.0, "tests/b.py::y": 2.0, "tests/a.py::gone": 3.0},
        "lines": {"f.py": {"1": ["tests/a.py::gone", "tests/a.py::x", "tests/b.py::y"]}},
        "modules": ["torch"],
        "sources": {"f.py": "old"},
    }
    new = {
        "seconds": {"tests/a.py::x": 1.5},
        "lines": {"f.py": {"2": ["tests/a.py::x"]}, "g.py": {"1": []}},
        "modules": ["numpy"],
        "sources": {"f.py": "new", "g.py": "x"},
    }
    assert joined(held, new, ["tests/a.py"]) == {
        "seconds": {"tests/a.py::x": 1.5, "tests/b.py::y": 2.0},
        "lines": {"f.py": {"1": ["tests/b.py::y"], "2": ["tests/a.py::x"]}, "g.py": {"1": []}},
        "modules": ["numpy", "torch"],
        "sources": {"f.py": "new", "g.py": "x"},
    }


def test_equivalent_mutants_have_a_reason() -> None:
    listed = json.loads((ROOT / "benchmarks" / "equivalent_mutants.json").read_text())
    assert listed and len({e["name"] for e in listed}) == len(listed)
    for entry in listed:
        assert len(entry["reason"].split()) > 3 and " -> " in entry["change"]


def test_what_only_asserts_is_left_alone() -> None:
    lines = "for a, b in zip(x, y, strict=True):\n    f(a, strict=True)\nassert a > 1\n"
    assert [(m.line, m.change) for m in mutants_of("compiler/f.py", lines)] == [
        (2, "f(a, strict=True) -> pass"),
        (2, "True -> False"),
    ]
