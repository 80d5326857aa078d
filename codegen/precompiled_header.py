"""The header of all generated text, parsed once: reading it is most of what a small text takes.

GCC takes `NAME.gch` from an include folder instead of parsing NAME, where a text includes NAME
first and flags and version are the same; otherwise it reads NAME as ever. So the result does not
depend on whether the file is there.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from infopt.codegen import toolchain
from infopt.codegen.cache import BuildCache
from infopt.codegen.toolchain import ABI_VERSION, Compiler

HEADER = "region.h"
FILE = f"{HEADER}.gch"


class PrecompiledHeader:
    """HEADER as `compiler` parses it with the flags of `level`, an entry of `cache`.

    headers: the hash of all headers in the folder `include`.
    """

    def __init__(
        self, cache: BuildCache, compiler: Compiler, level: str, include: Path, headers: str
    ) -> None:
        self._cache, self._compiler, self._level = cache, compiler, level
        self._include = include
        parts = (FILE, headers, *toolchain.flags(level), *compiler.command, compiler.version)
        self._key = hashlib.sha256("\0".join((*parts, str(ABI_VERSION))).encode()).hexdigest()

    def serves(self, text: str) -> bool:
        """Whether compiling `text` is faster with it."""
        return text.startswith(f'#include "{HEADER}"') and not self._compiler.is_clang()

    def folder(self) -> Path | None:
        """The include folder that has it, None before it was made."""
        found = self._cache.get(self._key, FILE)
        return found.parent if found else None

    def make(self) -> None:
        """Raises BuildFailed, and OSError where nothing can be written."""

        def fill(folder: Path) -> None:
            source = self._include / HEADER
            toolchain.precompile(self._compiler, source, folder / FILE, self._level)

        self._cache.ensure(self._key, FILE, fill)
