"""Work in threads and compiler processes that all end when the caller is interrupted.

Imports nothing but the standard library: setup.py loads this file by its path, see toolchain.py.
"""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from typing import TypeVar

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_slots = threading.BoundedSemaphore(CORES)  # compiler processes of this process
_T = TypeVar("_T")
_R = TypeVar("_R")


class Cancelled(BaseException):
    """The work of this thread is not wanted any more: who asked for it was interrupted."""


class _Work:
    """What one `in_parallel` started: its processes, and whether it is still wanted."""

    def __init__(self, outer: "_Work | None") -> None:
        self.chain: list[_Work] = [self, *(outer.chain if outer else ())]
        self.cancelled = False
        self.running: set[subprocess.Popen] = set()
        self.lock = threading.Lock()

    def cancel(self) -> None:
        with self.lock:
            self.cancelled = True
            for process in self.running:
                _end(process)


_work: ContextVar[_Work | None] = ContextVar("infopt_work", default=None)


def in_parallel(
    function: Callable[[_T], _R], items: Iterable[_T], workers: int = CORES
) -> list[_R]:
    """`function` of every item, in threads; what one raises is raised here and ends the others.

    Nothing runs in the calling thread, so Ctrl-C never strikes between a step and its clean-up:
    the processes are ended, the threads tidy up, and KeyboardInterrupt goes on from here.
    """
    work = _Work(_work.get())

    def one(item: _T) -> _R:
        _work.set(work)
        check_cancelled()
        return function(item)

    pool = ThreadPoolExecutor(workers)
    try:
        results = [pool.submit(one, item) for item in items]
        return [result.result() for result in results]
    except BaseException:
        work.cancel()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def check_cancelled() -> None:
    """Raises Cancelled in a thread of `in_parallel` whose caller was interrupted."""
    work = _work.get()
    if work is not None and any(w.cancelled for w in work.chain):
        raise Cancelled


def run_process(
    command: Sequence[str], timeout: float, environment: Mapping[str, str]
) -> tuple[int, str]:
    """Run a command, at most CORES at a time: exit status and error text.

    It leads a process group that is killed as a whole. Raises TimeoutExpired, Cancelled.
    """
    slots = _slots
    while not slots.acquire(timeout=0.2):
        check_cancelled()
    try:
        return _communicate(command, timeout, environment)
    finally:
        slots.release()


def _communicate(
    command: Sequence[str], timeout: float, environment: Mapping[str, str]
) -> tuple[int, str]:
    work = _work.get()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
    )
    try:
        for wanted in work.chain if work else ():
            with wanted.lock:
                wanted.running.add(process)
        check_cancelled()  # perhaps meanwhile: then nobody has ended this one
        stderr = process.communicate(timeout=timeout)[1]
        check_cancelled()  # what was killed has not failed
        return process.returncode, stderr
    finally:
        for wanted in work.chain if work else ():
            with wanted.lock:
                wanted.running.discard(process)
        if process.returncode is None:
            _end(process)
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def _end(process: subprocess.Popen) -> None:
    """Kill a process that leads a group, and those it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _after_fork() -> None:
    """Slots that other threads of the parent held would never be given back in the child."""
    global _slots
    _slots = threading.BoundedSemaphore(CORES)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
