"""The sha256 of many pieces at once: on several threads, on each of them sixteen at a time where
the installation has the library for it and the processor AVX-512; else one by one by hashlib."""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

from infopt.runtime.cpu import FEATURES, detect
from infopt.runtime.errors import LibraryError
from infopt.runtime.native import FOLDER, open_library

LEVEL = "avx512"  # that the library is built for
_BUSY = 8
_SMALL = 1 << 20  # bytes that are hashed sooner than a thread takes them over


def sha256_of(pieces: Sequence[memoryview]) -> list[str]:
    """The digests, as hexadecimal text. Hashing releases the interpreter lock."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 8
    total = sum(map(len, pieces))
    threads = max(1, min(8, cores, total // _SMALL, len(pieces)))
    if threads == 1:
        return _digests(pieces)
    shares = [pieces[i * len(pieces) // threads : (i + 1) * len(pieces) // threads]
              for i in range(threads)]  # fmt: skip
    with ThreadPoolExecutor(threads) as pool:
        return [digest for share in pool.map(_digests, shares) for digest in share]


def _digests(pieces: Sequence[memoryview]) -> list[str]:
    library = hashing_library()
    # the lanes pay where half of them are busy: a piece alone in its lane is slow
    if library is None or sum(map(len, pieces)) < _BUSY * max(map(len, pieces), default=0):
        return [hashlib.sha256(piece).hexdigest() for piece in pieces]
    count = len(pieces)
    held = [np.frombuffer(piece, np.uint8) for piece in pieces]  # what is read lives until then
    data = (ctypes.c_void_p * count)(*[array.ctypes.data for array in held])
    sizes = (ctypes.c_int64 * count)(*map(len, pieces))
    digests = ctypes.create_string_buffer(32 * count)
    library.infopt_sha256(count, data, sizes, digests)
    return [digests.raw[32 * i : 32 * i + 32].hex() for i in range(count)]


@cache
def hashing_library(path: Path = FOLDER / "hashing.so") -> ctypes.CDLL | None:
    """The library, None where it is not installed or not for this processor."""
    if not set(FEATURES[LEVEL]) <= detect().features or not path.is_file():
        return None
    try:
        library = open_library(path)
    except LibraryError:
        return None
    library.infopt_sha256.restype = None
    library.infopt_sha256.argtypes = [
        ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p,
    ]  # fmt: skip
    return library
