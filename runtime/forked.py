"""What a forked child has to know: the threads of its parent are gone, and locks stay as they were.

infopt's own pool starts anew in a child (csrc/pool.h). torch's does not: its first parallel
operator in a child of a process that already ran one never returns. So in a forked child infopt
lets torch compute on the calling thread alone.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_children = 0  # forks between the first process and this one


class ForkSafeLock:
    """A lock that is free in a forked child, whoever of the parent's threads held it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _locks.add(self)

    def renew(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


_locks: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()
_threads_lock = ForkSafeLock()


def in_child() -> bool:
    """Whether this process was forked after infopt was imported."""
    return _children > 0


def thread_count() -> int:
    """How many threads torch was told to use; also where `torch_threads` has taken them away."""
    return _asked or torch.get_num_threads()


@contextmanager
def torch_threads() -> Iterator[None]:
    """While it lasts, torch uses no threads that a fork has lost."""
    if not _children:
        yield
        return
    _enter()
    try:
        yield
    finally:
        _leave()


_inside, _asked = 0, 0  # calls in torch_threads, and the setting the first one found


def _enter() -> None:
    global _inside, _asked
    with _threads_lock:
        _inside += 1
        if _inside == 1:
            _asked = torch.get_num_threads()
            torch.set_num_threads(1)


def _leave() -> None:
    global _inside, _asked
    with _threads_lock:
        _inside -= 1
        if _inside == 0:
            torch.set_num_threads(_asked)  # dynamo guards on it
            _asked = 0


def _after_fork() -> None:
    global _children, _inside
    _children += 1
    if _inside:  # in a child's child, while a thread that is gone was inside
        _inside = 0
        torch.set_num_threads(_asked)
    for lock in list(_locks):
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
