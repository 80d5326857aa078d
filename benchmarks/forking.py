"""Work in forked children of a process that has everything imported: a child costs milliseconds."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress

HUNG = "hung"


def start(work: Callable[[], bool]) -> int:
    """The process id of a child that runs `work`; it ends with status 0 if that is true."""
    pid = os.fork()
    if pid == 0:
        status = 3
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            status = 0 if work() else 2
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    return pid


def outcome(pid: int, timeout: float = 60.0) -> str:
    """ "right", "wrong", "failed", "killed" or "hung" (then it is killed)."""
    end = time.monotonic() + timeout
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            break
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return HUNG
        time.sleep(0.002)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return "killed" if number == signal.SIGKILL else f"signal {number}"
    return {0: "right", 2: "wrong"}.get(os.WEXITSTATUS(status), "failed")


def kill_after(pid: int, seconds: float) -> str:
    """Let the child run so long, kill it if it still does; its outcome."""
    time.sleep(seconds)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return outcome(pid)
