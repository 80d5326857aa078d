"""Shared libraries: the installed executor, and kernels by their symbol."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from infopt.runtime.errors import LibraryError

EXECUTOR_VERSION = 1
FOLDER = Path(__file__).resolve().parent / "lib"  # where the installation puts the libraries

_WORDS = ctypes.POINTER(ctypes.c_int64)
_ADDRESSES = ctypes.POINTER(ctypes.c_void_p)
_SIGNATURES = {
    "infopt_executor_version": (ctypes.c_int64, []),
    "infopt_program_new": (ctypes.c_void_p, [_WORDS, _ADDRESSES]),
    "infopt_program_free": (None, [ctypes.c_void_p]),
    "infopt_context_new": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int64]),
    "infopt_context_free": (None, [ctypes.c_void_p]),
    "infopt_context_slots": (_WORDS, [ctypes.c_void_p]),
    "infopt_context_starts": (_WORDS, [ctypes.c_void_p]),
    "infopt_context_resize": (ctypes.c_int64, [ctypes.c_void_p, _WORDS]),
    "infopt_context_run": (
        ctypes.c_int64,
        [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p],
    ),
    "infopt_context_launch": (
        ctypes.c_int64,
        [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, *[ctypes.c_void_p] * 4],
    ),
}

_ADDED = ("infopt_context_launch",)  # since the first version: only programs for GPUs need it


def open_library(path: Path | str) -> ctypes.CDLL:
    """Map a shared library; this runs its constructors. Raises LibraryError."""
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise LibraryError(f"cannot load the library {path}: {error}") from None


@cache
def load_executor(path: Path = FOLDER / "executor.so") -> ctypes.CDLL:
    """The executor library with its functions typed. Raises LibraryError when there is none."""
    if not path.is_file():
        raise LibraryError(
            f"the native executor is missing: expected {path}; it is built when infopt is "
            "installed on a machine with a C++ compiler"
        )
    return typed_executor(open_library(path), str(path))


def typed_executor(library: ctypes.CDLL, path: str) -> ctypes.CDLL:
    """An executor library with its functions typed. Raises LibraryError for another version."""
    for name, (result, arguments) in _SIGNATURES.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            if name in _ADDED:
                continue
            raise LibraryError(f"{path} has no function {name}; install infopt again") from None
        function.restype, function.argtypes = result, arguments
    found = library.infopt_executor_version()
    if found != EXECUTOR_VERSION:
        raise LibraryError(
            f"{path}: expected executor version {EXECUTOR_VERSION}, found {found}; "
            "install infopt again"
        )
    return library


def kernel_address(libraries: Mapping[str, ctypes.CDLL], library: str, kernel: str) -> int:
    """The address of a kernel. Raises LibraryError naming what is missing."""
    if library not in libraries:
        raise LibraryError(
            f"kernel {kernel!r} needs the library {library!r}; given: {sorted(libraries)}"
        )
    try:
        function = getattr(libraries[library], kernel)
    except AttributeError:
        raise LibraryError(f"the library {library!r} has no kernel {kernel!r}") from None
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address
