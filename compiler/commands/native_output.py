"""Standard output is a command's result: what native libraries print goes to standard error.

The solver behind a budget (HiGHS) prints a line now and then from C++, whatever it is told, and a
program that reads `infopt compile --json` cannot have it between the JSON.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

STDOUT, STDERR = 1, 2


@contextmanager
def native_output_to_stderr() -> Iterator[None]:
    """While inside, descriptor 1 is standard error, and sys.stdout what descriptor 1 was.

    A command owns its process; a library must not do this under the threads of others. Nothing
    happens where sys.stdout is not descriptor 1 (a test that captures it).
    """
    if _descriptor(sys.stdout) != STDOUT:
        yield
        return
    before = sys.stdout
    _flush()
    kept = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)
    try:
        with open(kept, "w", encoding=before.encoding, errors=before.errors, closefd=False) as own:
            sys.stdout = own
            yield
    finally:
        sys.stdout = before
        _flush()  # C keeps text for a pipe until the process ends
        os.dup2(kept, STDOUT)
        os.close(kept)


def _flush() -> None:
    sys.stdout.flush()
    ctypes.CDLL(None).fflush(None)


def _descriptor(stream: object) -> int | None:
    try:
        return stream.fileno()  # type: ignore[attr-defined,no-any-return]
    except (OSError, AttributeError, ValueError):
        return None
