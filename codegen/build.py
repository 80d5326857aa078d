"""From C++ text to a shared library, through the cache; and the libraries built at installation.

`prebuilt` and `executor_library` give the installed file when it belongs to the sources beside it.
In a checkout whose C++ was edited since, or where no compiler was there at installation, they
build into the cache instead.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import infopt.codegen
import infopt.runtime
from infopt.codegen import toolchain
from infopt.codegen.cache import BuildCache
from infopt.codegen.parallel import in_parallel
from infopt.codegen.precompiled_header import PrecompiledHeader
from infopt.codegen.toolchain import ABI_VERSION, BuildFailed, Compiler, Library
from infopt.compiler.settings import Settings

__all__ = [
    "BuildFailed",
    "Compiler",
    "CompilerMissing",
    "build",
    "build_all",
    "build_cache",
    "executor_library",
    "find_compiler",
    "forget",
    "is_installed",
    "prebuilt",
]

CODEGEN = Path(infopt.codegen.__path__[0]).resolve()
RUNTIME = Path(infopt.runtime.__path__[0]).resolve()
INCLUDE = CODEGEN / "csrc"


class CompilerMissing(RuntimeError):
    """Text has to be compiled and no C++ compiler was found."""


def find_compiler() -> Compiler | None:
    """The C++ compiler: what CXX names, else the first of g++, c++ and clang++ that answers."""
    return toolchain.find_compiler(Settings.from_environment().cxx)


def build(text: str, level: str, name: str) -> Path:
    """The shared library of C++ `text` at an instruction-set `level`, from the cache if possible.

    `name` (letters, digits, "_", "-") is for people: it names the files. Raises CompilerMissing,
    BuildFailed, and ValueError for an unknown level or such a name.
    """
    if level not in toolchain.LEVELS:
        raise ValueError(f"level {level!r}: expected one of {', '.join(toolchain.LEVELS)}")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name):
        raise ValueError(f"name {name!r}: expected letters, digits, '_' and '-', at most 100")
    compiler = find_compiler()
    if compiler is None:
        raise CompilerMissing(
            f"compiling {name} needs a C++ compiler; expected CXX, g++, c++ or clang++, found none"
        )
    file = f"{name}.so"
    header = PrecompiledHeader(build_cache(), compiler, level, INCLUDE, _headers_hash())

    def fill(folder: Path) -> None:
        source = folder / f"{name}.cpp"
        source.write_text(text)

        def compile_text(*parsed: Path) -> None:
            toolchain.compile_library(compiler, [source], folder / file, level, *parsed, INCLUDE)

        if not header.serves(text):
            compile_text()
        elif parsed := header.folder():
            compile_text(parsed)
        else:  # the next text will have it; this one does not wait
            in_parallel(lambda step: step(), [compile_text, lambda: _try(header.make)])

    return _ensure(text_key(text, level, name, compiler), file, fill)


def _try(step: Callable[[], object]) -> None:
    """Nothing depends on it: what is wrong with compiler or disk, the text itself will meet."""
    with suppress(BuildFailed, OSError):
        step()


def build_all(texts: Sequence[tuple[str, str, str]]) -> list[Path]:
    """`build` for each (text, level, name), as many at a time as there are cores; same order."""
    different = list(dict.fromkeys(texts))  # two threads must not compile one text
    done = dict(zip(different, in_parallel(lambda item: build(*item), different)))
    return [done[item] for item in texts]


def text_key(text: str, level: str, name: str, compiler: Compiler) -> str:
    """sha256 of all that decides a built file: text, name, headers, flags, compiler, ABI."""
    parts = (text, name, _headers_hash(), *toolchain.flags(level), *compiler.command)
    parts += (compiler.version, str(ABI_VERSION))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def prebuilt(level: str) -> Path | None:
    """The kernels compiled for `level`; None without them and without a compiler that knows it.

    Raises BuildFailed when they had to be built and the compiler refused the sources.
    """
    return _library(f"kernels_{level}")


def executor_library() -> Path | None:
    """The executor; None as for `prebuilt`. Raises BuildFailed as `prebuilt` does."""
    return _library("executor")


def is_installed(library: Path | None) -> bool:
    """Whether `library` is the file the installation made, not one that was built later."""
    return library is not None and library.parent == RUNTIME / "lib"


@cache
def _library(name: str) -> Path | None:
    wanted = {library.name: library for library in toolchain.libraries(CODEGEN, RUNTIME)}
    installed = RUNTIME / "lib" / f"{name}.so"
    library = wanted.get(name)
    if library is None:
        return installed if installed.exists() else None
    key = library.key()
    if toolchain.recorded_key(installed) == key:
        return installed
    return _build_into_cache(library, key)


def _build_into_cache(library: Library, key: str) -> Path | None:
    compiler = find_compiler()
    if compiler is None or library.level not in compiler.levels():
        return None
    entry = hashlib.sha256(f"{key} {compiler.command} {compiler.version}".encode()).hexdigest()
    return _ensure(
        entry, library.file, lambda work: toolchain.build_library(compiler, library, work)
    )


def _ensure(key: str, file: str, fill: Callable[[Path], object]) -> Path:
    cache = build_cache()
    return in_parallel(lambda key: cache.ensure(key, file, fill), [key])[0]


def build_cache() -> BuildCache:
    """The cache that the settings name."""
    settings = Settings.from_environment()
    return _cache_at(settings.cache, settings.cache_size)


def forget() -> None:
    """Look at all files anew: one that was given out cannot be loaded."""
    _library.cache_clear()
    build_cache().forget()


@cache
def _cache_at(root: Path | None, limit: int) -> BuildCache:
    return BuildCache(root / "native" if root else None, limit)


@cache
def _headers_hash() -> str:
    return toolchain.content_hash(sorted(INCLUDE.glob("*.h")))
