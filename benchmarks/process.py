"""Child processes: one that answers a question at a time over pipes and sleeps in between, and one
that never sleeps."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn


class ChildFailed(RuntimeError):
    """The child raised, died, or gave no answer in time."""

    @property
    def reason(self) -> str:
        """The last line, without the traceback above it: what is kept in results."""
        return str(self).strip().splitlines()[-1]


class Child:
    """`python -m MODULE` in a process of its own; `ask` sends one question and waits for its
    answer.
    """

    def __init__(self, module: str, environment: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | (environment or {}),
        )

    def ask(self, timeout: float = 600.0, **question: Any) -> dict[str, Any]:
        """The child's answer; raises ChildFailed with the child's traceback."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ChildFailed(f"the child died before {question}") from None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            self.close()
            why = (
                f"exit status {self._process.returncode}"
                if ready
                else f"no answer in {timeout:.0f} s"
            )
            raise ChildFailed(f"{why} after {question}")
        answer = json.loads(line)
        if "failure" in answer:
            raise ChildFailed(answer["failure"])
        return answer

    def close(self) -> None:
        """End the child at once."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def busy_process() -> Iterator[None]:
    """A process that never sleeps, at work before this begins and gone when it ends."""
    hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.3)
        yield
    finally:
        hog.kill()
        hog.wait()


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> NoReturn:
    """The child's side: answer questions until the parent closes the pipe."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except Exception:
            reply = {"failure": traceback.format_exc(limit=-6)}
        print(json.dumps(reply), file=replies, flush=True)
    sys.exit(0)
