"""`python -m benchmarks bitflips`: is every flipped bit of an artifact found before it is used?

Flips one random bit in one random file of a saved artifact, loads it, and puts the bit back, so
often; then cuts files short and fills them with garbage; and times loading with and without the
verification, in turn, again and again in one process and first in a fresh one. A load that maps
code, makes a program, or succeeds counts as a miss.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.table import Table

import infopt
from benchmarks.cold_load import cold_load, unverified
from benchmarks.report import wide_console, write_json
from infopt.models.minilm import load_minilm
from infopt.runtime import hashing, loading


class Used(Exception):
    """Something of a damaged artifact was used."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks bitflips", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="flips, over all artifacts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--loads", type=int, default=7, help="timed loads per arm")
    parser.add_argument("--json", help="also write the result to this file")
    options = parser.parse_args(arguments)
    console = wide_console()
    generator = random.Random(options.seed)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        made = {
            "small": small(Path(folder) / "small"),
            "small, one file": small(Path(folder) / "small.infopt"),
            "minilm": minilm(Path(folder) / "minilm"),
            "minilm, one file": minilm(Path(folder) / "minilm.infopt"),
        }
        shares = {name: options.count // len(made) for name in made}
        shares["small"] += options.count % len(made)
        table = Table(title="damage found before anything was used")
        for heading in ("artifact", "file", "flips found", "cut or garbage found"):
            table.add_column(
                heading, justify="left" if heading in ("artifact", "file") else "right"
            )
        for name, path in made.items():
            with console.status(f"{name}: {shares[name]} flips"):
                flips = flip(path, shares[name], generator)
                damage = cut(path, generator)
            results[name] = {
                "flips": flips,
                "damage": damage,
                "load": load_cost(path, options.loads),
            }
            for file, (found, count) in sorted(flips.items()):
                table.add_row(
                    name, file, f"{found} of {count}", " of ".join(map(str, damage[file]))
                )
        fresh = {
            "files in memory": fresh_cost(made["minilm"], options.loads, drop=False),
            "files on disk": fresh_cost(made["minilm"], options.loads, drop=True),
        }
    console.print(table)
    for name, result in results.items():
        console.print(f"{name}: {text_of(result['load'])}")
    for place, taken in fresh.items():
        console.print(f"minilm, first load of a process, {place}: {fresh_text(taken)}")
    total = [sum(x) for x in zip(*(v for r in results.values() for v in r["flips"].values()))]
    other = [sum(x) for x in zip(*(v for r in results.values() for v in r["damage"].values()))]
    console.print(f"{total[0]} of {total[1]} flips, {other[0]} of {other[1]} cuts found")
    if options.json:
        write_json(options.json, results | {"minilm, first load of a process": fresh})
    return 0 if total[0] == total[1] and other[0] == other[1] else 1


def small(path: Path) -> Path:
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU()).eval()
    return infopt.compile(net, (torch.randn(4, 8),)).save(path, golden=True)


def minilm(path: Path) -> Path:
    ids = torch.ones(2, 16, dtype=torch.int64)
    return infopt.compile(load_minilm(), (ids, ids)).save(path, golden=True)


def files_of(path: Path) -> list[Path]:
    """The files of an artifact, or itself."""
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def name_in(file: Path, path: Path) -> str:
    return file.name if file == path else str(file.relative_to(path))


@contextmanager
def nothing_used() -> Iterator[None]:
    """Mapping code and making programs raise Used."""

    def refuse(*_: Any, **__: Any) -> None:
        raise Used("a damaged artifact was used")

    with (
        mock.patch.object(loading, "map_code", refuse),
        mock.patch.object(loading, "Program", refuse),
        mock.patch.object(loading, "load_executor", refuse),
    ):
        yield


def is_found(path: Path) -> bool:
    try:
        infopt.load(path)
    except infopt.ArtifactError:
        return True
    except Used:
        return False
    return False


def flip(path: Path, count: int, generator: random.Random) -> dict[str, tuple[int, int]]:
    """Per file: how many flips were found, of how many. Each file gets its turn."""
    files = files_of(path)
    found: Counter[Path] = Counter()
    tried: Counter[Path] = Counter()
    with nothing_used():
        for number in range(count):
            file = files[number % len(files)]
            place, bit = generator.randrange(file.stat().st_size), 1 << generator.randrange(8)
            with open(file, "r+b", buffering=0) as stream:
                stream.seek(place)
                original = stream.read(1)[0]
                stream.seek(place)
                stream.write(bytes([original ^ bit]))
                found[file] += is_found(path)
                tried[file] += 1
                stream.seek(place)
                stream.write(bytes([original]))
    return {name_in(f, path): (found[f], tried[f]) for f in files}


def cut(path: Path, generator: random.Random) -> dict[str, tuple[int, int]]:
    """Per file: truncations, appended bytes, zeros and noise found, of how many."""
    results = {}
    for file in files_of(path):
        content = file.read_bytes()
        damaged = damages(content, generator)
        found = 0
        with nothing_used():
            for changed in damaged:
                file.write_bytes(changed)
                found += is_found(path)
        file.write_bytes(content)
        results[name_in(file, path)] = (found, len(damaged))
    return results


def damages(content: bytes, generator: random.Random) -> list[bytes]:
    size = len(content)
    return [
        b"",
        content[: size // 2],
        content[:-1],
        content[: generator.randrange(size)],
        content + b"\0",
        bytes(size),
        generator.randbytes(size),
        generator.randbytes(64),
    ]


def load_cost(path: Path, loads: int) -> dict[str, float]:
    """Median seconds of a load with the files in memory, and of a load with its first call; as it
    is, with hashlib alone, and not verified, in turn."""
    arms: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "verified": nullcontext,
        "hashlib": lambda: mock.patch.object(hashing, "hashing_library", lambda: None),
        "unverified": unverified,
    }
    times: dict[str, list[float]] = {f"{arm}{end}": [] for arm in arms for end in ("", " + call")}
    for _ in range(loads + 1):
        for arm, changed in arms.items():
            with changed():
                begin = time.perf_counter()
                program = infopt.load(path)
                loaded = time.perf_counter()
                program.check_golden()
                called = time.perf_counter()
            times[arm].append(loaded - begin)
            times[f"{arm} + call"].append(called - begin)
    size = sum(p.stat().st_size for p in files_of(path))
    return {arm: statistics.median(t[1:]) for arm, t in times.items()} | {"bytes": float(size)}


def fresh_cost(path: Path, loads: int, *, drop: bool) -> dict[str, float]:
    """Median seconds of a load and of the load with its first call, each the first one of a
    process; as it is and not verified, in turn. drop: the files come from the disk."""
    times: dict[str, list[float]] = {}
    for _ in range(loads):
        for arm in ("verified", "unverified"):
            taken = cold_load(path, arm, drop=drop)
            times.setdefault(arm, []).append(taken["load"])
            times.setdefault(f"{arm} + call", []).append(taken["load"] + taken["answer"])
    return {arm: statistics.median(t) for arm, t in times.items()}


def fresh_text(load: dict[str, float]) -> str:
    ends = {"load": "", "load and first call": " + call"}
    return "; ".join(
        f"{what} {load[f'verified{end}'] * 1e3:.0f} ms, without verification "
        f"{load[f'unverified{end}'] * 1e3:.0f} ms: "
        f"{1 - load[f'unverified{end}'] / load[f'verified{end}']:.0%}"
        for what, end in ends.items()
    )


def text_of(load: dict[str, float]) -> str:
    def ms(arm: str) -> str:
        return f"{load[arm] * 1e3:.1f}"

    def share(end: str) -> float:
        return 1 - load[f"unverified{end}"] / load[f"verified{end}"]

    per_gigabyte = (load["verified"] - load["unverified"]) / load["bytes"] * 1e9
    return (
        f"{load['bytes'] / 1e6:.1f} MB: load {ms('verified')} ms, with hashlib alone "
        f"{ms('hashlib')} ms, without verification {ms('unverified')} ms: {share(''):.0%} of the "
        f"load, "
        f"{per_gigabyte:.2f} s per GB; with the first call {ms('verified + call')}, "
        f"{ms('hashlib + call')} and {ms('unverified + call')} ms: {share(' + call'):.0%}"
    )
