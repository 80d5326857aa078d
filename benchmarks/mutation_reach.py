"""Which test runs which line of compiler/ and passes/, and how long each test takes."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TESTS = (
    "tests/compiler",
    "tests/passes",
    "tests/codegen",
    "tests/models",
    "tests/conformance",
    "tests/test_user_pass.py",
    "tests/test_cli.py",
    "tests/test_demo.py",
)
FOLDERS = ("compiler", "passes")


@dataclass(frozen=True)
class Reach:
    """seconds: of every test that passed; lines: file -> line -> tests; modules: what the tests
    imported from other packages."""

    seconds: dict[str, float]
    lines: dict[str, dict[int, list[str]]]
    modules: list[str]

    def tests(self, file: str, first: int, last: int, budget: float) -> list[str]:
        """The tests that run one of these lines: those of the module's own test file, then the
        shortest, of `budget` seconds together at least. Where the lines only run when the module
        is imported: those that run anything of it."""
        of_file = self.lines.get(file, {})
        found = {t for n in range(first, last + 1) for t in of_file.get(n, [])}
        if not found and any(n in of_file for n in range(first, last + 1)):
            found = {t for tests in of_file.values() for t in tests}
        own = f"tests/{Path(file).parent}/test_{Path(file).stem}.py::"
        ordered = sorted(found, key=lambda t: (not t.startswith(own), self.seconds[t]))
        chosen, spent = [], 0.0
        for test in ordered:
            if spent > budget:
                break
            chosen.append(test)
            spent += self.seconds[test]
        return chosen


def load(path: Path) -> Reach:
    held = json.loads(path.read_text())
    names = held["tests"]
    lines = {
        file: {int(n): [names[i] for i in tests] for n, tests in by_line.items()}
        for file, by_line in held["lines"].items()
    }
    return Reach(held["seconds"], lines, held["modules"])


def measure(path: Path) -> None:
    """Run the tests under coverage, one context per test, and write what they reach."""
    import coverage
    import pytest

    cover = coverage.Coverage(
        data_file=None, include=[str(ROOT / f / "*") for f in FOLDERS], config_file=False
    )
    record = _Record(cover)
    cover.start()
    pytest.main(["-q", "-p", "no:cacheprovider", *TESTS], plugins=[record])
    cover.stop()
    data = cover.get_data()
    names = sorted(record.seconds)
    index = {name: i for i, name in enumerate(names)}
    lines: dict[str, dict[int, list[int]]] = defaultdict(dict)
    for measured in data.measured_files():
        file = str(Path(measured).relative_to(ROOT))
        for line, contexts in data.contexts_by_lineno(measured).items():
            lines[file][line] = sorted(index[c] for c in contexts if c in index)
    own = ("infopt", "tests", "benchmarks", "conftest", "coverage", "__main__")
    modules = [m for m in sys.modules if m.partition(".")[0] not in own and "test" not in m]
    path.write_text(
        json.dumps({"tests": names, "seconds": record.seconds, "lines": lines, "modules": modules})
    )


class _Record:
    """A plugin of pytest: switches the context at every test, keeps the time of those passed."""

    def __init__(self, cover: Any) -> None:
        self.cover = cover
        self.seconds: dict[str, float] = {}
        self.start = 0.0

    def pytest_runtest_setup(self, item: Any) -> None:
        self.start = time.perf_counter()
        self.cover.switch_context(item.nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" and report.passed:
            self.seconds[report.nodeid] = round(time.perf_counter() - self.start, 4)

    def pytest_runtest_teardown(self) -> None:
        self.cover.switch_context("")
