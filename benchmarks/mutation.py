"""`python -m benchmarks mutation`: faults put into compiler/ and passes/; do the tests notice?

A sample of all mutants (benchmarks/mutants.py), drawn by seed. Each is tried by the tests that run
its line (measured once, benchmarks/mutation_reach.py), in a process forked from one that has
imported torch and all else but infopt: mutmut's and cosmic-ray's way, a fresh interpreter or
rewritten files for each, would cost ten seconds of imports per mutant. A mutant is killed by a
failing test or by a run that takes far more processor time than before; one whose line no test
runs survives.

--work holds what a later run goes on from: delete it to begin anew. After an edit of tests, name
their files to --measure: what the others reach is kept, by lines that are found again. Mutants
that change nothing a program can observe are listed with the reason in equivalent_mutants.json and
not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import math
import os
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import mutation_reach
from benchmarks.mutants import Mutant, mutants_of, mutated
from benchmarks.mutation_reach import FOLDERS, ROOT, TESTS, Reach

EQUIVALENT = Path(__file__).parent / "equivalent_mutants.json"
KILLED, SURVIVED, SLOW, UNREACHED = "killed", "survived", "too slow", "not run by any test"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks mutation", description=__doc__)
    parser.add_argument("--sample", type=int, default=300, help="how many mutants; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="files whose path contains this")
    parser.add_argument("--work", default="mutation", help="a folder for what is measured")
    parser.add_argument("--budget", type=float, default=15.0, help="seconds of tests per mutant")
    parser.add_argument("--survivors", action="store_true", help="try those that survived again")
    parser.add_argument("--measure", nargs="+", metavar="FILE", help="tests that changed")
    parser.add_argument("--json", help="write the result to this file")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a forked child has no threads of its parent's
    work = Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    os.environ["INFOPT_CACHE"] = str((work / "cache").absolute())
    reach = _reach(work / "reach.json", options.measure)
    equivalent = {e["name"]: e["reason"] for e in json.loads(EQUIVALENT.read_text())}
    mutants = sample(options.sample, options.seed, options.only)
    counted = [m for m in mutants if m.name not in equivalent]
    log = work / "log.jsonl"
    known = _logged(log)
    if options.survivors:
        known = {n: f for n, f in known.items() if f["fate"] in (KILLED, SLOW)}
    _warm(reach)
    for number, mutant in enumerate(counted):
        if mutant.name in known:
            continue
        start = time.perf_counter()
        fate = try_mutant(mutant, reach, options.budget)
        line = {"name": mutant.name, "fate": fate, "line": mutant.line, "change": mutant.change}
        known[mutant.name] = line | {"seconds": round(time.perf_counter() - start, 2)}
        with log.open("a") as file:
            file.write(json.dumps(known[mutant.name]) + "\n")
        print(f"{number + 1}/{len(counted)} {mutant.name} {fate}", file=sys.stderr, flush=True)
    result = summary(counted, known, len(mutants) - len(counted))
    _print(result)
    if options.json:
        from benchmarks.report import write_json

        asked = {"sample": options.sample, "seed": options.seed, "only": options.only}
        write_json(options.json, asked | result)
    return 0


def sample(count: int, seed: int, only: str = "") -> list[Mutant]:
    """Mutants in an order drawn by seed, in which other mutants do not matter: the sample of a
    changed program keeps those of its unchanged lines."""
    files = [f for folder in FOLDERS for f in sorted((ROOT / folder).rglob("*.py"))]
    names = {f: str(f.relative_to(ROOT)) for f in files}
    chosen = [f for f in files if only in names[f]]
    found = [m for f in chosen for m in mutants_of(names[f], f.read_text())]
    # the same change of equal lines is one, at the last of them
    unique = {m.name: m for m in found}.values()
    ordered = sorted(unique, key=lambda m: hashlib.sha256(f"{seed} {m.name}".encode()).digest())
    return ordered[:count] if count else ordered


def try_mutant(mutant: Mutant, reach: Reach, budget: float) -> str:
    """What the tests say of one mutant."""
    tests = reach.tests(mutant.file, *mutant.reached, budget)
    if not tests:
        return UNREACHED
    limit = 20 + 4 * math.ceil(sum(reach.seconds[t] for t in tests))
    child = os.fork()
    if child == 0:
        _in_child(mutant, tests, limit)
    deadline = time.monotonic() + 20 * limit  # it may wait for something that never comes
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return SLOW if code == -signal.SIGXCPU else KILLED if code else SURVIVED
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return SLOW


def _in_child(mutant: Mutant, tests: Sequence[str], limit: int) -> None:
    """Never returns: the exit status is that of pytest. limit: seconds of this process's own, as
    those of the clock depend on what else the machine does."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    status = 1
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nothing, stream)
        _install(mutant)
        import pytest

        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *tests])
    finally:
        os._exit(int(status))


def _install(mutant: Mutant) -> None:
    """Have the import system compile the mutated tree in place of the module's text."""
    from importlib.machinery import SourceFileLoader

    path = (ROOT / mutant.file).resolve()
    plain = SourceFileLoader.get_code

    def get_code(self: Any, name: str) -> Any:
        if name.startswith("infopt.") and Path(self.path).resolve() == path:
            tree = mutated(path.read_text(), mutant.number)
            return compile(tree, self.path, "exec", dont_inherit=True)
        return plain(self, name)

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign]


def _reach(path: Path, changed: Sequence[str] | None) -> Reach:
    """What the tests reach: measured where it is not there yet, and of test files that changed."""
    if changed or not path.exists():
        child = os.fork()
        if child == 0:
            mutation_reach.measure(path, changed if path.exists() and changed else TESTS)
            os._exit(0)
        os.waitpid(child, 0)
    return mutation_reach.load(path).of_tests_that_exist()


def _warm(reach: Reach) -> None:
    """Import everything the tests import, except infopt and the tests."""
    for module in reach.modules:
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    assert not any(m.partition(".")[0] == "infopt" for m in sys.modules)


def _logged(log: Path) -> dict[str, dict[str, Any]]:
    lines = log.read_text().splitlines() if log.exists() else []
    return {held["name"]: held for held in map(json.loads, lines)}


def summary(
    mutants: Sequence[Mutant], known: dict[str, dict[str, Any]], equivalent: int
) -> dict[str, Any]:
    """Score, counts per module, and the survivors."""
    modules: dict[str, Counter[str]] = {}
    survivors = []
    for m in mutants:
        fate = known[m.name]["fate"]
        modules.setdefault(m.file, Counter())[fate] += 1
        if fate not in (KILLED, SLOW):
            survivors.append(
                {"name": m.name, "line": m.line, "text": m.text, "change": m.change, "fate": fate}
            )
    killed = len(mutants) - len(survivors)
    score = killed / len(mutants) if mutants else 0.0
    return {
        "mutants": len(mutants),
        "killed": killed,
        "score": round(score, 4),
        "equivalent": equivalent,
        "modules": {f: dict(c) for f, c in sorted(modules.items())},
        "survivors": sorted(survivors, key=lambda s: (s["name"].partition(":")[0], s["line"])),
    }


def _print(result: dict[str, Any]) -> None:
    print(f"{'module':36s} {'killed':>7s} {'of':>5s}")
    for file, fates in result["modules"].items():
        print(f"{file:36s} {fates.get(KILLED, 0) + fates.get(SLOW, 0):7d} {sum(fates.values()):5d}")
    for s in result["survivors"]:
        print(f"{s['name']} line {s['line']}: {s['change']}   [{s['fate']}]")
    print(
        f"{result['killed']} of {result['mutants']} killed, {result['score']:.1%}; "
        f"{result['equivalent']} equivalent ones are not counted"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
