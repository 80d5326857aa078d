"""A folder of files that is written as a whole, and read only after every byte was verified."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infopt.runtime.errors import ArtifactCorrupt, ArtifactUnsafe
from infopt.runtime.hashing import Digests

CHUNK = 1 << 20  # bytes hashed as one piece, so that a file is hashed by many lanes at once
_AT_FDCWD, _EXCHANGE = -100, 2  # of Linux's renameat2
_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
Parts = Iterable[bytes | memoryview]


def check_name(name: Any) -> None:
    """A relative path of plain components, at most three. Raises ArtifactUnsafe."""
    parts = name.split("/") if isinstance(name, str) else []
    if not 1 <= len(parts) <= 3 or not all(_COMPONENT.fullmatch(p) for p in parts):
        raise ArtifactUnsafe(f"expected a plain file name inside the artifact, found {name!r:.80}")


@dataclass
class OpenFile:
    """A regular file of the artifact, opened once; all reading is through this descriptor.

    first, size: where its bytes lie in what is open (runtime/packed.py)
    """

    name: str
    descriptor: int
    status: os.stat_result
    first: int
    size: int
    content: memoryview | None = None

    def data(self) -> memoryview:
        """Its bytes. Read once, so what is verified is what is used. Weights that only this user
        or root can change are mapped instead, privately: writing to them never reaches the file."""
        if self.content is None:
            if self.is_mapped:
                access = mmap.ACCESS_COPY
                mapped = mmap.mmap(self.descriptor, self.size, access=access, offset=self.first)
                self.content = memoryview(mapped)
            else:
                with open(self.descriptor, "rb", closefd=False) as file:
                    file.seek(self.first)
                    self.content = memoryview(file.read(self.size))
        return self.content

    @property
    def is_mapped(self) -> bool:
        """Whether `data` takes no memory of its own."""
        own = self.status.st_uid in (0, os.geteuid()) and not self.status.st_mode & stat.S_IWOTH
        return own and self.size > 0 and self.name.endswith(".safetensors")

    def close(self) -> None:
        os.close(self.descriptor)


def open_inside(root: int, name: str) -> OpenFile:
    """Open a file below the directory descriptor `root`, following no links on the way."""
    check_name(name)
    *folders, last = name.split("/")
    directory = os.dup(root)
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        for folder in folders:
            inner = os.open(folder, flags | os.O_DIRECTORY, dir_fd=directory)
            os.close(directory)
            directory = inner
        descriptor = os.open(last, flags | os.O_NONBLOCK, dir_fd=directory)
    except FileNotFoundError:
        raise ArtifactCorrupt(f"the file {name} is missing") from None
    except OSError as error:
        raise ArtifactUnsafe(f"expected a regular file {name}, found: {error.strerror}") from None
    finally:
        os.close(directory)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise ArtifactUnsafe(f"expected a regular file {name}, found another kind")
    return OpenFile(name, descriptor, found, 0, found.st_size)


def files_inside(
    root: int, statuses: dict[str, os.stat_result], prefix: str = "", depth: int = 3
) -> list[str]:
    """The names of all files below `root`; `statuses` gets those of the folders. Raises
    ArtifactUnsafe for a link."""
    found = []
    statuses[prefix or "the folder"] = os.fstat(root)
    with os.scandir(root) as entries:
        listed = sorted(entries, key=lambda e: e.name)
    for entry in listed:
        name = prefix + entry.name
        if entry.is_symlink():
            raise ArtifactUnsafe(f"{name} is a symbolic link")
        if not entry.is_dir(follow_symlinks=False):
            found.append(name)
            continue
        if depth == 1:
            raise ArtifactUnsafe(f"unexpected folder {name}")
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY
        inner = os.open(entry.name, flags, dir_fd=root)
        try:
            found += files_inside(inner, statuses, name + "/", depth - 1)
        finally:
            os.close(inner)
    return found


class Verification:
    """Files whose bytes are hashed from now on, in the background where hashing.py can; each is to
    be used only after `check` of it. The caller ends it with `close`."""

    def __init__(self, files: Mapping[str, OpenFile], chunk: int) -> None:
        self.files, self.chunk = files, chunk
        self._pieces: dict[str, range] = {}
        self._checked: set[int] = set()
        pieces: list[memoryview] = []
        for name, file in sorted(files.items(), key=lambda item: item[1].size):
            data, first = file.data(), len(pieces)
            pieces += [data[i : i + chunk] for i in range(0, file.size, chunk)]
            self._pieces[name] = range(first, len(pieces))
        self._digests = Digests(pieces)

    def check(self, name: str, expected: Sequence[str], first: int = 0, last: int = -1) -> None:
        """Wait for the chunks of a file in which its bytes [first:last] lie, of all unless given,
        and compare their digests with those expected. Raises ArtifactCorrupt naming file and place.
        """
        pieces, size = self._pieces[name], self.files[name].size
        if len(expected) != len(pieces):
            raise ArtifactCorrupt(f"{name}: expected {len(pieces)} digests, found {len(expected)}")
        end = size if last < 0 else min(last, size)
        asked = pieces[first // self.chunk : -(-end // self.chunk)]
        new = [piece for piece in asked if piece not in self._checked]
        for piece, digest in zip(new, self._digests.of(new), strict=True):
            i = piece - pieces.start
            if digest != expected[i]:
                raise ArtifactCorrupt(
                    f"{name}: the content was changed at bytes {i * self.chunk} to "
                    f"{min((i + 1) * self.chunk, size)}: expected sha256 {expected[i]}, "
                    f"found {digest}"
                )
            self._checked.add(piece)

    def close(self) -> None:
        """The files are not read any more."""
        self._digests.close()


def entry_of(parts: Parts) -> dict[str, Any]:
    """Size, sha256 and the digest of every chunk of what the parts are together."""
    whole, chunk, chunks, size, filled = hashlib.sha256(), hashlib.sha256(), [], 0, 0
    for part in parts:
        whole.update(part)
        view = memoryview(part)
        while len(view):
            piece = view[: CHUNK - filled]
            chunk.update(piece)
            view, filled = view[len(piece) :], filled + len(piece)
            size += len(piece)
            if filled == CHUNK:
                chunks.append(chunk.hexdigest())
                chunk, filled = hashlib.sha256(), 0
    if filled:
        chunks.append(chunk.hexdigest())
    return {"size": size, "sha256": whole.hexdigest(), "chunks": chunks}


def write_file(path: Path, parts: Parts) -> None:
    """Write a new file and flush it to disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "xb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary file that takes the place of `path` when all went well."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent.parent)
    os.close(descriptor)
    try:
        yield Path(name)
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.rename(name, path)
        sync_folder(path.parent)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)


class NewFolder:
    """`with NewFolder(path) as temporary`: what is written there appears at `path`, all or nothing.

    Raises FileExistsError if `path` exists, unless overwrite and it holds a `marker` file.
    """

    def __init__(self, path: Path, overwrite: bool, marker: str) -> None:
        self.path, self.overwrite, self.marker = path, overwrite, marker

    def __enter__(self) -> Path:
        self._check()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.temporary = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent))
        return self.temporary

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                self._publish()
        finally:
            shutil.rmtree(self.temporary, ignore_errors=True)

    def _check(self) -> None:
        if not os.path.lexists(self.path):
            return
        if not self.overwrite:
            raise FileExistsError(f"{self.path} exists; pass overwrite=True to replace it")
        if not (self.path / self.marker).is_file():
            raise FileExistsError(f"{self.path} exists and is not an artifact; it is left alone")

    def _publish(self) -> None:
        umask = os.umask(0)
        os.umask(umask)
        self.temporary.chmod(0o777 & ~umask)
        for folder, _, _ in os.walk(self.temporary):
            sync_folder(Path(folder))
        self._check()
        old = None
        if os.path.lexists(self.path) and exchange(self.temporary, self.path):
            sync_folder(self.path.parent)
            return  # what was there before goes with the temporary name
        if os.path.lexists(self.path):
            old = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent))
            os.rename(self.path, old)
        try:
            os.rename(self.temporary, self.path)
        except BaseException:
            if old is not None:
                os.rename(old, self.path)
            raise
        sync_folder(self.path.parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)


def exchange(first: Path, second: Path) -> bool:
    """Swap two names at one stroke: nobody finds either of them missing. False where it cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None or not sys.platform.startswith("linux"):
        return False
    return rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _EXCHANGE) == 0


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
