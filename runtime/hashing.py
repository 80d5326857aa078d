"""The sha256 of many pieces, computed while the caller goes on: by native threads, on each of them
sixteen pieces at a time, where the installation has the library for it and the processor AVX-512;
else by hashlib when a digest is asked for."""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import TracebackType

import numpy as np

from infopt.runtime.cpu import FEATURES, detect
from infopt.runtime.errors import LibraryError
from infopt.runtime.native import FOLDER, open_library

LEVEL = "avx512"  # that the library is built for
_BUSY = 8
_SMALL = 1 << 20  # bytes that are hashed sooner than a thread takes them over
_PATIENCE = 50  # milliseconds in native code between two looks for a signal such as Ctrl-C


class Digests:
    """The digests of `pieces`, as hexadecimal text. Pieces are read until `close`, in order."""

    def __init__(self, pieces: Sequence[memoryview]) -> None:
        self._pieces = pieces
        self._job: int | None = None
        library, total = hashing_library(), sum(map(len, pieces))
        # the lanes pay where half of them are busy: a piece alone in its lane is slow
        if library is None or total < _BUSY * max(map(len, pieces), default=0):
            return
        count = len(pieces)
        self._library = library
        self._held = [np.frombuffer(piece, np.uint8) for piece in pieces]
        self._data = (ctypes.c_void_p * count)(*[array.ctypes.data for array in self._held])
        self._sizes = (ctypes.c_int64 * count)(*map(len, pieces))
        threads = _threads(total)
        self._job = library.infopt_sha256_begin(count, self._data, self._sizes, threads)

    def of(self, chosen: Sequence[int]) -> list[str]:
        """Those of the chosen pieces, waiting for them."""
        if self._job is None:
            return _by_hashlib([self._pieces[i] for i in chosen])
        return [self._wait(i) for i in chosen]

    def _wait(self, piece: int) -> str:
        digest = ctypes.create_string_buffer(32)
        while not self._library.infopt_sha256_wait(self._job, piece, _PATIENCE, digest):
            pass
        return digest.raw.hex()

    def close(self) -> None:
        """No piece is read any more, whether all are done or not."""
        if self._job is not None:
            job, self._job = self._job, None
            self._library.infopt_sha256_end(job)

    def __enter__(self) -> Digests:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _threads(total: int) -> int:
    """How many threads hash so many bytes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 8
    return max(1, min(8, cores, total // _SMALL))


def _by_hashlib(pieces: Sequence[memoryview]) -> list[str]:
    """Large pieces on several threads: hashing them releases the interpreter lock."""
    threads = min(_threads(sum(map(len, pieces))), len(pieces))
    if threads <= 1:
        return [_sha256(piece) for piece in pieces]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(_sha256, pieces))


def _sha256(piece: memoryview) -> str:
    return hashlib.sha256(piece).hexdigest()


@cache
def hashing_library(path: Path = FOLDER / "hashing.so") -> ctypes.CDLL | None:
    """The library, None where it is not installed or not for this processor."""
    if not set(FEATURES[LEVEL]) <= detect().features or not path.is_file():
        return None
    try:
        library = open_library(path)
        begin, wait = library.infopt_sha256_begin, library.infopt_sha256_wait
        end = library.infopt_sha256_end
    except (LibraryError, AttributeError):  # damaged, or of another version of infopt
        return None
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    begin.restype, begin.argtypes = pointer, [integer, pointer, pointer, integer]
    wait.restype, wait.argtypes = integer, [pointer, integer, integer, ctypes.c_char_p]
    end.restype, end.argtypes = None, [pointer]
    return library
