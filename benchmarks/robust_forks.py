"""fork, spawn and data loaders after compiles and calls: every child must give the same bytes."""

from __future__ import annotations

import multiprocessing
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy
import torch

import infopt
from benchmarks.forking import outcome, start
from benchmarks.robust_subject import subject

Work = Callable[[], bool]


def forks(count: int) -> dict[str, Counter[str]]:
    """`count` children of each kind; the outcomes by kind."""
    torch.set_num_threads(max(2, torch.get_num_threads()))
    x = torch.randn(2000, 32)
    model = subject(0, aten=True)
    untouched = torch.compile(subject(1, 1.5), backend="infopt", options={"strict": True})
    compiled = torch.compile(model, backend="infopt")
    offline = infopt.compile(model, (x,))
    model(x)  # torch's own threads run: a child cannot use them any more
    answers = [f(x).numpy().tobytes() for f in (compiled, offline)]

    def calls() -> bool:
        return [f(x).numpy().tobytes() for f in (compiled, offline)] == answers

    def compiles() -> bool:
        return bool(numpy.isfinite(untouched(x).numpy()).all())

    def grandchild() -> bool:
        return calls() and outcome(start(calls)) == "right" and calls()

    found = {
        "calls in a child": _each(count, calls),
        "first compile in a child": _each(count, compiles),
        "calls in a child's child": _each(count, grandchild),
        "fork inside a thread": _each(count, calls, _in_thread),
        "fork while 3 threads call": _while_busy(count, offline, x, answers[1]),
    }
    untouched(x)
    loaders = max(1, count // 20)
    found["data loader, 2 workers"] = _loaders(loaders, compiled, x)
    found["multiprocessing, fork"] = _processes(loaders, "fork", x, answers[1], offline)
    found["multiprocessing, spawn"] = _processes(
        max(1, loaders // 2), "spawn", x, answers[1], offline
    )
    return found


def _each(count: int, work: Work, how: Callable[[Work], str] | None = None) -> Counter[str]:
    run = how or (lambda work: outcome(start(work)))
    return Counter(run(work) for _ in range(count))


def _in_thread(work: Work) -> str:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(outcome(start(work))))
    thread.start()
    thread.join()
    return found[0]


def _while_busy(count: int, program: Any, x: torch.Tensor, answer: bytes) -> Counter[str]:
    """Programs of infopt.compile only: torch.compile evaluates its guards under a lock that a
    child may find taken for ever, whatever the backend is."""
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            program(x)

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        return _each(count, lambda: program(x).numpy().tobytes() == answer)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


class _Rows(torch.utils.data.Dataset):
    """Every item is computed by the compiled model in the worker."""

    def __init__(self, compiled: Any, x: torch.Tensor) -> None:
        self.compiled, self.x = compiled, x

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.compiled(self.x + index)


def _loaders(count: int, compiled: Any, x: torch.Tensor) -> Counter[str]:
    expected = [compiled(x + i) for i in range(8)]
    found: Counter[str] = Counter()
    for _ in range(count):
        loader = torch.utils.data.DataLoader(
            _Rows(compiled, x), batch_size=None, num_workers=2, timeout=120
        )
        try:
            same = all(torch.equal(a, b) for a, b in zip(loader, expected, strict=True))
            found["right" if same else "wrong"] += 1
        except RuntimeError as error:
            found[f"failed: {str(error)[:60]}"] += 1
    return found


def _processes(count: int, how: str, x: torch.Tensor, answer: bytes, offline: Any) -> Counter[str]:
    context = multiprocessing.get_context(how)
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="robustness-") as folder:
        artifact = offline.save(f"{folder}/artifact")
        for _ in range(count):
            process = context.Process(target=_check, args=(str(artifact), x.numpy(), answer))
            process.start()
            process.join(120)
            if process.is_alive():
                process.kill()
                process.join()
            found["right" if process.exitcode == 0 else f"exit {process.exitcode}"] += 1
    return found


def _check(artifact: str, x: Any, answer: bytes) -> None:
    result = infopt.load(artifact)(torch.from_numpy(x))
    raise SystemExit(0 if result.numpy().tobytes() == answer else 2)
