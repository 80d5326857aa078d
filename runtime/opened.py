"""The files of an artifact, open, each given out after it was verified: those of a folder, or
those in one file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from infopt.runtime import folder, packed, signature_file
from infopt.runtime.errors import (
    ArtifactCorrupt,
    ArtifactError,
    ArtifactUnsafe,
    ArtifactUntrusted,
)
from infopt.runtime.manifest import NAME, WEIGHTS, Manifest

_MAX_MANIFEST = 64 << 20
_MAX_FILE = 1 << 30  # of any file but the weights, which are mapped
_MAX_SIGNATURE = 16 << 20
_EARLY = 64 << 20  # bytes read for hashing before the manifest says that they belong to it


@dataclass
class Opened:
    """An artifact's files. statuses: of files and folders, for judging the owner."""

    manifest: Manifest
    manifest_sha256: str
    verification: folder.Verification
    statuses: dict[str, os.stat_result] = field(default_factory=dict)
    signature: str | None = None

    def digests(self) -> dict[str, str]:
        """sha256 of every file that a signature covers."""
        entries = self.manifest.files.items()
        return {NAME: self.manifest_sha256, **{name: f.sha256 for name, f in entries}}

    def content(self, name: str) -> memoryview:
        """The bytes of a file, as soon as they are verified. Raises ArtifactCorrupt."""
        self.verification.check(name, self.manifest.files[name].chunks)
        return self.memory(name)

    def part(self, name: str, first: int, last: int) -> bytes:
        """Some bytes of a file, as soon as they are verified. Raises ArtifactCorrupt."""
        self.verification.check(name, self.manifest.files[name].chunks, first, last)
        return bytes(self.memory(name)[first:last])

    def memory(self, name: str) -> memoryview:
        """Where the bytes of a file lie, to be read when they are verified."""
        return self.verification.files[name].data()

    def check_all(self) -> None:
        """Wait until every byte of every file is verified. Raises ArtifactCorrupt."""
        for name, entry in self.manifest.files.items():
            self.verification.check(name, entry.chunks)


class _Files(ExitStack):
    """Files by their name, closed at the end, and the hashing of them, ended before."""

    def __init__(self) -> None:
        super().__init__()
        self.open: dict[str, folder.OpenFile] = {}
        self.verification: folder.Verification | None = None

    def add(self, file: folder.OpenFile) -> None:
        self.open[file.name] = file
        self.callback(file.close)

    def verify(self, names: Iterable[str], chunk: int) -> folder.Verification:
        """Hash these files in such pieces from now on."""
        if self.verification is not None:
            self.verification.close()
        self.verification = folder.Verification({n: self.open[n] for n in names}, chunk)
        self.callback(self.verification.close)
        return self.verification


@contextmanager
def verified(path: Path, key: str | Path | None) -> Iterator[Opened]:
    """Opened, the signature checked if a key is given, its bytes given out when they are verified;
    when the block ends, all are.

    Raises ArtifactError naming the path.
    """
    try:
        with _Files() as files:
            opened = _open_all(path, files, key)
            yield opened
            opened.check_all()
    except ArtifactError as error:
        raise type(error)(f"{path}: {error}") from None


def manifest_of(path: Path) -> Manifest:
    """What an artifact says of itself, nothing else of it read. Raises ArtifactError."""
    with _Files() as files:
        if path.is_dir():
            with _root(path) as root:
                files.add(folder.open_inside(root, NAME))
        else:
            _add_members(path, files)
        return Manifest.from_text(_text_of(files, NAME, _MAX_MANIFEST))


def _open_all(path: Path, files: _Files, key: str | Path | None) -> Opened:
    """All files opened into `files`: exactly those that the manifest names, it, a signature."""
    statuses: dict[str, os.stat_result] = {}
    root = files.enter_context(_root(path)) if path.is_dir() else None
    if root is not None:
        for name in folder.files_inside(root, statuses):
            files.add(folder.open_inside(root, name))
    else:
        _add_members(path, files)
    text = _text_of(files, NAME, _MAX_MANIFEST)
    present = {*files.open} - {NAME, signature_file.NAME}
    # hashing begins before it is known what the digests should be, where that takes no memory
    if sum(files.open[name].size for name in present if not files.open[name].is_mapped) <= _EARLY:
        files.verify(present, folder.CHUNK)
    manifest = Manifest.from_text(text)
    if extra := sorted(present - {*manifest.files}):
        raise ArtifactUnsafe(f"unexpected file {extra[0]}")
    for name, entry in manifest.files.items():
        if name not in files.open and root is not None:
            folder.open_inside(root, name).close()  # says what is there instead
        _check_size(name, files, entry.size)
    statuses |= {n: file.status for n, file in files.open.items() if n != signature_file.NAME}
    signature = None
    if signature_file.NAME in files.open:
        signature = _text_of(files, signature_file.NAME, _MAX_SIGNATURE)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    verification = files.verification
    if verification is None or verification.chunk != manifest.chunk:
        verification = files.verify(present, manifest.chunk)
    opened = Opened(manifest, sha256, verification, statuses, signature)
    if key is not None:
        if signature is None:
            raise ArtifactUntrusted(f"expected a signature, found no {signature_file.NAME}")
        signature_file.check_bundle(signature, opened.digests(), Path(key))
    return opened


def _check_size(name: str, files: _Files, expected: int) -> None:
    if name not in files.open:
        raise ArtifactCorrupt(f"the file {name} is missing")
    found = files.open[name].size
    if found != expected:
        raise ArtifactCorrupt(f"{name}: expected {expected} bytes, found {found}")
    if found > _MAX_FILE and name != WEIGHTS:
        raise ArtifactCorrupt(f"{name}: {found} bytes, expected at most {_MAX_FILE}")


def _add_members(path: Path, files: _Files) -> None:
    if not os.path.lexists(path):
        raise ArtifactCorrupt("expected an artifact, a folder or one file: there is nothing")
    for file in packed.members(path).values():
        files.add(file)


@contextmanager
def _root(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        found = error.strerror
        raise ArtifactCorrupt(f"expected the folder of an artifact, found: {found}") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _text_of(files: _Files, name: str, limit: int) -> str:
    if name not in files.open:
        raise ArtifactCorrupt(f"the file {name} is missing")
    file = files.open[name]
    if file.size > limit:
        raise ArtifactCorrupt(f"{name}: {file.size} bytes, expected at most {limit}")
    try:
        return bytes(file.data()).decode()
    except UnicodeDecodeError as error:
        raise ArtifactCorrupt(f"{name}: expected UTF-8 text, found: {error}") from None
