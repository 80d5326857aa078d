"""The C++ toolchain: the compiler found, the flags of each instruction-set level, one build step.

Imports nothing but parallel.py and the standard library: setup.py loads both files by their paths
to build the libraries that are installed, and `infopt.codegen.build` uses them for text generated
later. So both kinds of kernels are compiled with the same flags.
"""

import errno
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from infopt.codegen.parallel import in_parallel, run_process

ABI_VERSION = 1  # of the C interface between plans and kernels, docs/architecture.md
TIMEOUT = 600.0  # seconds one compiler run may take

_NO_SPACE = (
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
    "File size limit exceeded",
)

# Contraction is off so that every level rounds where the source says so; fma is written out.
BASE_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-pthread",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-ffp-contract=off",
)

# prefetchw is a hint: processors that do not have it take it for nothing.
_AVX2 = ("-mavx2", "-mfma", "-mf16c", "-mprfchw")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni")
_AVX512_BF16 = (*_AVX512, "-mavx512bf16")
_AMX = (*_AVX512_BF16, "-mamx-tile", "-mamx-bf16", "-mamx-int8")

# From the least to the most capable; each level includes the ones before it.
LEVELS: Mapping[str, tuple[str, ...]] = {
    "scalar": (),
    "avx2": _AVX2,
    "avx512": _AVX512,
    "avx512_bf16": _AVX512_BF16,
    "amx": _AMX,
}


class BuildFailed(RuntimeError):
    """The C++ compiler refused a text, or ran too long.

    `command` is the command line, `source` the kept source file, `errors` the first error lines.
    """

    def __init__(self, command: Sequence[str], source: Path, errors: str) -> None:
        super().__init__(
            f"the C++ compiler failed on {source} (kept for inspection)\n"
            f"command: {shlex.join(command)}\n{errors}"
        )
        self.command, self.source, self.errors = tuple(command), source, errors


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: its command words and the text that tells two versions apart."""

    command: tuple[str, ...]
    version: str

    def levels(self) -> tuple[str, ...]:
        """The levels whose flags this compiler accepts for this machine's architecture."""
        return tuple(level for level in LEVELS if _accepts(self, level))

    def is_clang(self) -> bool:
        """Whether it says so; the others are taken for GCC."""
        return "clang" in self.version.lower()


def find_compiler(preferred: str | None = None) -> Compiler | None:
    """The first compiler that answers: `preferred` (a CXX value), then g++, c++, clang++.

    A `preferred` that does not answer is not replaced by another one.
    """
    candidates = [preferred] if preferred else ["g++", "c++", "clang++"]
    for candidate in candidates:
        if compiler := _probe(candidate):
            return compiler
    return None


@cache
def _probe(candidate: str) -> Compiler | None:
    words = shlex.split(candidate)
    path = shutil.which(words[0]) if words else None
    if path is None:
        return None
    command = (path, *words[1:])
    try:
        answer = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    lines = answer.stdout.splitlines()
    return Compiler(command, lines[0].strip() if lines else "unknown")


@cache
def _accepts(compiler: Compiler, level: str) -> bool:
    if level == "scalar":
        return True
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    command = [*compiler.command, *LEVELS[level], "-fsyntax-only", "-x", "c++", os.devnull]
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


def flags(level: str) -> tuple[str, ...]:
    """All compiler flags of one level, include folders aside."""
    return (*BASE_FLAGS, *LEVELS[level])


def precompile(compiler: Compiler, header: Path, output: Path, level: str) -> None:
    """Parse `header` into the precompiled header `output`; raises BuildFailed, OSError."""
    with tempfile.TemporaryDirectory(prefix=".objects-", dir=output.parent) as folder:
        command = [*compiler.command, *flags(level), "-x", "c++-header"]
        _run([*command, str(header), "-o", str(output)], header, folder)


def compile_library(
    compiler: Compiler, sources: Sequence[Path], output: Path, level: str, *include: Path
) -> None:
    """Compile `sources` into the shared library `output`; raises BuildFailed, OSError (full disk).

    include: folders of headers, the first one that has a header gives it. Several sources are
    compiled at the same time; processes never exceed the number of cores.
    """
    command = [*compiler.command, *flags(level), *(f"-I{folder}" for folder in include)]
    with tempfile.TemporaryDirectory(prefix=".objects-", dir=output.parent) as folder:
        if len(sources) == 1:
            _run([*command, "-shared", str(sources[0]), "-o", str(output)], sources[0], folder)
            return
        objects = [Path(folder) / f"{source.stem}.o" for source in sources]

        def compile_one(pair: tuple[Path, Path]) -> None:
            _run([*command, "-c", str(pair[0]), "-o", str(pair[1])], pair[0], folder)

        in_parallel(compile_one, zip(sources, objects), len(sources))
        _run([*command, "-shared", *map(str, objects), "-o", str(output)], sources[0], folder)


def _run(command: Sequence[str], source: Path, temporary: str) -> None:
    """Run the compiler; what it writes in between goes to `temporary`, its caller's to remove."""
    try:
        status, stderr = run_process(command, TIMEOUT, os.environ | {"TMPDIR": temporary})
    except subprocess.TimeoutExpired:
        late = f"no result after {TIMEOUT:.0f} seconds"
        raise BuildFailed(command, source, late) from None
    if status and any(mark in stderr for mark in _NO_SPACE):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), temporary)
    if status:
        errors = _first_errors(stderr) or f"it ended with status {status} and no message"
        raise BuildFailed(command, source, errors)


def _first_errors(stderr: str, limit: int = 8) -> str:
    lines = stderr.splitlines()
    marks = ("error:", "undefined reference")
    errors = [line for line in lines if any(mark in line for mark in marks)]
    return "\n".join((errors or lines)[:limit])


def content_hash(files: Sequence[Path]) -> str:
    """sha256 over the names and bytes of `files`, in the given order."""
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


@dataclass(frozen=True)
class Library:
    """One library that is built once per installation: its file name, sources and level."""

    name: str
    level: str
    sources: tuple[Path, ...]
    include: Path

    @property
    def file(self) -> str:
        return f"{self.name}.so"

    def key(self) -> str:
        """Identifies the content: sources, headers, flags and ABI, but not the compiler."""
        files = [*self.sources, *sorted(self.include.glob("*.h"))]
        text = f"{content_hash(files)} {flags(self.level)} {ABI_VERSION}"
        return hashlib.sha256(text.encode()).hexdigest()


def libraries(codegen: Path, runtime: Path) -> list[Library]:
    """The installed libraries, given the two package folders; none for absent sources."""
    found = []
    executor = runtime / "csrc" / "executor.cpp"
    if executor.exists():
        found.append(Library("executor", "scalar", (executor,), executor.parent))
    hashing = runtime / "csrc" / "hashing.cpp"
    if hashing.exists():
        found.append(Library("hashing", "avx512", (hashing,), hashing.parent))
    kernels = tuple(sorted((codegen / "csrc").glob("kernels_*.cpp")))
    if kernels:
        include = codegen / "csrc"
        found += [Library(f"kernels_{level}", level, kernels, include) for level in LEVELS]
    return found


def key_file(library: Path) -> Path:
    """Where the key of an installed library's sources is recorded."""
    return library.with_suffix(".key")


def recorded_key(library: Path) -> str | None:
    """The key of the sources an installed library was built from; None where there is none."""
    try:
        return key_file(library).read_text().strip() if library.exists() else None
    except OSError:
        return None


def build_library(compiler: Compiler, library: Library, folder: Path) -> Path:
    """Build one library into `folder` with its key beside it; raises BuildFailed.

    The file is renamed into place when complete: a process that has the old one mapped keeps it.
    """
    key = library.key()  # before compiling: a source edited meanwhile makes the result stale
    target = folder / library.file
    temporary = folder / f".{library.name}.{os.getpid()}.so"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        compile_library(compiler, library.sources, temporary, library.level, library.include)
        key_file(target).unlink(missing_ok=True)
        os.replace(temporary, target)
        key_file(target).write_text(key + "\n")
    finally:
        temporary.unlink(missing_ok=True)
    return target


def take_library(library: Path, folder: Path) -> Path:
    """Copy an installed library and its key into `folder`, where it does not lie there already."""
    if library.parent == folder:
        return library
    folder.mkdir(parents=True, exist_ok=True)
    for file in (library, key_file(library)):
        shutil.copy2(file, folder / file.name)
    return folder / library.name


def build_libraries(
    compiler: Compiler, wanted: Sequence[Library], folder: Path, earlier: Path
) -> dict[str, Path | BuildFailed]:
    """Build what this compiler can build into `folder`, several at a time: name -> file or failure.

    A level whose flags the compiler does not know is left out.
    earlier: a folder of libraries; what was built there from the same sources is taken as it is
    """
    levels = compiler.levels()
    possible = [library for library in wanted if library.level in levels]

    def build(library: Library) -> Path | BuildFailed:
        ready = earlier / library.file
        try:
            if recorded_key(ready) == library.key():
                return take_library(ready, folder)
            return build_library(compiler, library, folder)
        except BuildFailed as failure:
            return failure

    made = in_parallel(build, possible, len(LEVELS) + 1)
    return dict(zip((library.name for library in possible), made))
