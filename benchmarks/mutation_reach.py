"""Which test runs which line of compiler/ and passes/, and how long each test takes.

Measured once for all tests, then anew for the test files that changed. The text that was measured
is kept: lines are found again in a text that was edited since, and a line that was written since
counts as run by what runs the lines around it.
"""

from __future__ import annotations

import ast
import difflib
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("tests",)
FOLDERS = ("compiler", "passes")
# Reads what modules hold and runs no line of them: tried for lines that run on import.
OF_TABLES = "tests/passes/test_operator_tables.py::"


@dataclass(frozen=True)
class Reach:
    """seconds: of every test that passed; lines: file -> line -> tests; modules: what the tests
    imported from other packages."""

    seconds: dict[str, float]
    lines: dict[str, dict[int, list[str]]]
    modules: list[str]

    def tests(self, file: str, first: int, last: int, budget: float) -> list[str]:
        """The tests that run one of these lines: those of the module's own test file, then the
        shortest, of `budget` seconds together at least."""
        of_file = self.lines.get(file, {})
        found = {t for n in range(first, last + 1) for t in of_file.get(n, [])}
        own = (OF_TABLES, f"tests/{Path(file).parent}/test_{Path(file).stem}.py::")
        ordered = sorted(found, key=lambda t: (not t.startswith(own), self.seconds[t]))
        chosen, spent = [], 0.0
        for test in ordered:
            if spent > budget:
                break
            chosen.append(test)
            spent += self.seconds[test]
        return chosen

    def of_tests_that_exist(self) -> Reach:
        """Without those that were renamed or became slow: pytest fails where it is given them."""
        files = sorted({t.partition("::")[0] for t in self.seconds})
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
        there = [f for f in files if (ROOT / f).exists()]
        told = subprocess.run([*command, *there], cwd=ROOT, capture_output=True, text=True)
        if told.returncode:
            raise RuntimeError(f"the tests cannot be collected:\n{told.stdout[-2000:]}")
        found = set(told.stdout.splitlines())
        lines = {
            file: {n: [t for t in tests if t in found] for n, tests in by.items()}
            for file, by in self.lines.items()
        }
        return Reach({t: s for t, s in self.seconds.items() if t in found}, lines, self.modules)


def load(path: Path) -> Reach:
    """What was measured, by the lines of the sources as they are now."""
    held = _moved(_read(path))
    tables = [t for t in held["seconds"] if t.startswith(OF_TABLES)]
    lines = {}
    for file, by in held["lines"].items():
        measured = {int(n): t for n, t in by.items()}
        lines[file] = _imported_for_all(measured, (ROOT / file).read_text(), tables)
    return Reach(held["seconds"], lines, held["modules"])


def _imported_for_all(
    lines: dict[int, list[str]], source: str, tables: Sequence[str]
) -> dict[int, list[str]]:
    """With every test that runs a function of the module, and those of tables, at the lines that
    run when it is imported: which test came first to import it says nothing."""
    inside = _in_functions(ast.parse(source))
    users = {t for n, tests in lines.items() if n in inside for t in tests}
    users = users or {t for tests in lines.values() for t in tests}
    everyone = sorted(users.union(tables))
    return {n: tests if n in inside else everyone for n, tests in lines.items()}


def _in_functions(tree: ast.Module) -> set[int]:
    """The lines of the bodies of functions; of their heads only those that a body begins on."""
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return {line for f in functions for line in range(f.body[0].lineno, (f.end_lineno or 0) + 1)}


def measure(path: Path, tests: Sequence[str] = TESTS) -> None:
    """Run the tests under coverage, one context per test, and write what they reach.

    What `path` holds of other test files is kept.
    """
    import coverage
    import pytest

    cover = coverage.Coverage(
        data_file=None, include=[str(ROOT / f / "*") for f in FOLDERS], config_file=False
    )
    record = _Record(cover)
    cover.start()
    pytest.main(["-q", "-p", "no:cacheprovider", *tests], plugins=[record])
    cover.stop()
    data = cover.get_data()
    lines: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for measured in data.measured_files():
        file = str(Path(measured).relative_to(ROOT))
        for line, contexts in data.contexts_by_lineno(measured).items():
            lines[file][str(line)] = sorted(c for c in contexts if c in record.seconds)
    own = ("infopt", "tests", "benchmarks", "conftest", "coverage", "__main__")
    found = {
        "seconds": record.seconds,
        "lines": lines,
        "modules": [m for m in sys.modules if m.partition(".")[0] not in own and "test" not in m],
        "sources": {file: (ROOT / file).read_text() for file in lines},
    }
    if path.exists():
        found = joined(_moved(_read(path)), found, record.files)
    _write(path, found)


def joined(held: dict[str, Any], new: dict[str, Any], files: Iterable[str]) -> dict[str, Any]:
    """What was held, but of these test files what is new."""
    gone = {t for t in held["seconds"] if t.partition("::")[0] in set(files)}
    lines: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for file, by in held["lines"].items():
        lines[file] = {n: [t for t in tests if t not in gone] for n, tests in by.items()}
    for file, by in new["lines"].items():
        for n, tests in by.items():
            lines[file][n] = sorted({*lines[file].get(n, []), *tests})
    seconds = {t: s for t, s in held["seconds"].items() if t not in gone}
    return {
        "seconds": seconds | new["seconds"],
        "lines": lines,
        "modules": sorted({*held["modules"], *new["modules"]}),
        "sources": held["sources"] | new["sources"],
    }


def _read(path: Path) -> dict[str, Any]:
    held: dict[str, Any] = json.loads(path.read_text())
    names = list(held["seconds"])
    lines = {
        f: {n: [names[i] for i in t] for n, t in by.items()} for f, by in held["lines"].items()
    }
    return held | {"lines": lines}


def _write(path: Path, found: dict[str, Any]) -> None:
    """Tests by their number: a line may have a thousand of them."""
    number = {name: i for i, name in enumerate(found["seconds"])}
    lines = {
        f: {n: [number[t] for t in tests] for n, tests in by.items()}
        for f, by in found["lines"].items()
    }
    path.write_text(json.dumps(found | {"lines": lines}))


def _moved(held: dict[str, Any]) -> dict[str, Any]:
    """What was measured, at the lines where its text is now."""
    lines, sources = {}, {}
    for file, by in held["lines"].items():
        if (ROOT / file).exists():
            sources[file] = (ROOT / file).read_text()
            lines[file] = moved(by, held["sources"][file], sources[file])
    return held | {"lines": lines, "sources": sources}


def moved(by: dict[str, list[str]], before: str, after: str) -> dict[str, list[str]]:
    """Tests by line of an edited text. A new line has those of the lines around the edit."""
    if before == after:
        return by
    found: dict[str, list[str]] = {}
    a, b = before.splitlines(), after.splitlines()
    for kind, i, end, j, stop in difflib.SequenceMatcher(None, a, b, False).get_opcodes():
        if kind == "equal":
            pairs = ((i + n, j + n) for n in range(end - i))
            found |= {str(y + 1): by[str(x + 1)] for x, y in pairs if str(x + 1) in by}
            continue
        near = {t for n in range(max(i - 2, 0), end + 2) for t in by.get(str(n + 1), [])}
        found |= {str(y + 1): sorted(near) for y in range(j, stop)}
    return found


class _Record:
    """A plugin of pytest: switches the context at every test, keeps the processor time of those
    that passed, and the files of all."""

    def __init__(self, cover: Any) -> None:
        self.cover = cover
        self.seconds: dict[str, float] = {}
        self.files: set[str] = set()
        self.start = 0.0

    def pytest_runtest_setup(self, item: Any) -> None:
        self.files.add(item.nodeid.partition("::")[0])
        self.start = time.process_time()
        self.cover.switch_context(item.nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" and report.passed:
            self.seconds[report.nodeid] = round(time.process_time() - self.start, 4)

    def pytest_runtest_teardown(self) -> None:
        self.cover.switch_context("")
