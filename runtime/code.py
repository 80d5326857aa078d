"""Native code of an artifact: mapped from memory that holds the verified bytes, never by path."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import tempfile

from infopt.runtime.native import open_library

# The loader knows a library by its path, so a descriptor's number must not be used again.
_kept: list[int] = []
_mapped: dict[bytes, ctypes.CDLL] = {}  # by the digest of the code; never unmapped


def map_code(name: str, code: bytes) -> ctypes.CDLL:
    """The shared library with these bytes, mapped once per process. Raises LibraryError."""
    digest = hashlib.sha256(code).digest()
    library = _mapped.get(digest)
    if library is None:
        library = _mapped.setdefault(digest, _map(name, code))
    return library


def _map(name: str, code: bytes) -> ctypes.CDLL:
    descriptor = _sealed(name, code)
    if descriptor is not None:
        _kept.append(descriptor)
        return open_library(f"/proc/self/fd/{descriptor}")
    with tempfile.TemporaryDirectory(prefix="infopt-") as folder:  # only this user can enter it
        path = os.path.join(folder, "library.so")
        with open(path, "xb") as file:
            file.write(code)
        return open_library(path)


def _sealed(name: str, code: bytes) -> int | None:
    """A memory file nobody can change any more, or None where the system has none."""
    if not hasattr(os, "memfd_create") or not os.path.isdir("/proc/self/fd"):
        return None
    try:
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError:
        return None
    with open(descriptor, "wb", closefd=False) as file:
        file.write(code)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor
