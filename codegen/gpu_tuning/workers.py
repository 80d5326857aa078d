"""Processes that compile kernels side by side; one that dies or hangs is one failed kernel.

They are started as modules of their own, so that a caller's script is not run again in them, and
stay for the next request. Each has a process group, which ends when it takes too long.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

from infopt.codegen.gpu_tuning.compile_worker import read, write
from infopt.codegen.launches import KernelText
from infopt.codegen.parallel import CORES, check_cancelled, in_parallel
from infopt.codegen.triton_compile import Compiled, compile_launch, is_compiled, remember

MOST = 16
SECONDS = 120.0  # that one kernel may take
_POLL = 0.2


class Workers:
    """Up to `count` processes, started when they are first needed; a kernel may take `seconds`."""

    def __init__(self, count: int = min(MOST, CORES), seconds: float = SECONDS) -> None:
        self.count, self.seconds = count, seconds
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()

    def compiled(self, texts: Sequence[KernelText], arch: str) -> list[Compiled | str]:
        """Machine code of every kernel in its place, or why it has none. `compile_launch` knows it
        from then on."""
        return in_parallel(lambda text: self._one(text, arch), texts, self.count)

    def _one(self, text: KernelText, arch: str) -> Compiled | str:
        if is_compiled(text.launch, arch, text.unaligned):
            return compile_launch(text.launch, arch, text.unaligned)
        try:
            worker = self._idle.get_nowait()
        except queue.Empty:
            worker = _Worker()
        try:
            answer = worker.ask((text.launch, arch, text.unaligned), self.seconds)
        except _Ended as ended:
            worker.end()
            return f"{text.launch.entry} for {arch}: {ended}"
        except BaseException:
            worker.end()
            raise
        self._idle.put(worker)
        if isinstance(answer, Compiled):
            remember(text.launch, arch, text.unaligned, answer)
        return answer

    def close(self) -> None:
        """End the processes that wait."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().end()


@cache
def workers() -> Workers:
    """Those of this process; they end with it."""
    made = Workers()
    atexit.register(made.close)
    return made


class _Ended(Exception):
    """A worker has ended or was ended; the message says how."""


class _Worker:
    def __init__(self) -> None:
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "infopt.codegen.gpu_tuning.compile_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )

    def ask(self, request: object, seconds: float) -> Any:
        """The answer. Raises _Ended, Cancelled."""
        found: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def exchange() -> None:
            assert self.process.stdin is not None and self.process.stdout is not None
            try:
                write(self.process.stdin, request)  # type: ignore[arg-type]
                found.put(read(self.process.stdout))  # type: ignore[arg-type]
            except (OSError, EOFError, ValueError) as error:
                found.put(error)

        threading.Thread(target=exchange, daemon=True).start()
        waited = 0.0
        while True:
            try:
                answer = found.get(timeout=_POLL)
                break
            except queue.Empty:
                waited += _POLL
            check_cancelled()
            if waited >= seconds:
                raise _Ended(f"its compiler was ended after {seconds:g} s")
        if isinstance(answer, Exception):
            status = self.process.wait()
            how = signal.Signals(-status).name if status < 0 else f"status {status}"
            raise _Ended(f"its compiler ended with {how}")
        return answer

    def end(self) -> None:
        """Kill the process and those it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
