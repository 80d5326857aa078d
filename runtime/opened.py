"""The files of an artifact, open and verified: those of a folder, or those in one file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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


@dataclass
class Opened:
    """An artifact's files. statuses: of files and folders, for judging the owner."""

    manifest: Manifest
    manifest_sha256: str
    files: Mapping[str, folder.OpenFile]
    statuses: dict[str, os.stat_result] = field(default_factory=dict)
    signature: str | None = None

    def digests(self) -> dict[str, str]:
        """sha256 of every file that a signature covers."""
        entries = self.manifest.files.items()
        return {NAME: self.manifest_sha256, **{name: f.sha256 for name, f in entries}}


@contextmanager
def verified(path: Path, key: str | Path | None) -> Iterator[Opened]:
    """Opened, the signature checked if a key is given, every byte compared with its digest.

    Raises ArtifactError naming the path.
    """
    files: dict[str, folder.OpenFile] = {}
    try:
        opened = _open_all(path, files)
        manifest = opened.manifest
        for name, file in opened.files.items():
            if file.size != manifest.files[name].size:
                raise ArtifactCorrupt(
                    f"{name}: expected {manifest.files[name].size} bytes, found {file.size}"
                )
            if file.size > _MAX_FILE and name != WEIGHTS:
                raise ArtifactCorrupt(f"{name}: {file.size} bytes, expected at most {_MAX_FILE}")
        if key is not None:
            if opened.signature is None:
                raise ArtifactUntrusted(f"expected a signature, found no {signature_file.NAME}")
            signature_file.check_bundle(opened.signature, opened.digests(), Path(key))
        chunks = {name: manifest.files[name].chunks for name in opened.files}
        folder.verify(opened.files, chunks, manifest.chunk)
        yield opened
    except ArtifactError as error:
        raise type(error)(f"{path}: {error}") from None
    finally:
        for file in files.values():
            file.close()


def manifest_of(path: Path) -> Manifest:
    """What an artifact says of itself, nothing else of it read. Raises ArtifactError."""
    files: dict[str, folder.OpenFile] = {}
    try:
        if path.is_dir():
            root = _open_root(path)
            try:
                files[NAME] = folder.open_inside(root, NAME)
            finally:
                os.close(root)
        else:
            files.update(_members(path))
        return Manifest.from_text(_text_of(files, NAME, _MAX_MANIFEST))
    finally:
        for file in files.values():
            file.close()


def _open_all(path: Path, files: dict[str, folder.OpenFile]) -> Opened:
    """All files opened into `files`: exactly those that the manifest names, it, a signature."""
    statuses: dict[str, os.stat_result] = {}
    root = _open_root(path) if path.is_dir() else None
    try:
        if root is None:
            files.update(_members(path))
            present = set(files)
        else:
            present = set(folder.files_inside(root, statuses))
            files[NAME] = folder.open_inside(root, NAME)
        text = _text_of(files, NAME, _MAX_MANIFEST)
        manifest = Manifest.from_text(text)
        known = {NAME, signature_file.NAME, *manifest.files}
        if extra := sorted(present - known):
            raise ArtifactUnsafe(f"unexpected file {extra[0]}")
        for name in sorted({*manifest.files, *(present & {signature_file.NAME})} - set(files)):
            if root is None:
                raise ArtifactCorrupt(f"the file {name} is missing")
            files[name] = folder.open_inside(root, name)
    finally:
        if root is not None:
            os.close(root)
    signature = None
    if signature_file.NAME in files:
        signature = _text_of(files, signature_file.NAME, _MAX_SIGNATURE)
    statuses |= {name: file.status for name, file in files.items() if name != signature_file.NAME}
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    named = {name: files[name] for name in manifest.files}
    return Opened(manifest, sha256, named, statuses, signature)


def _members(path: Path) -> dict[str, folder.OpenFile]:
    if not os.path.lexists(path):
        raise ArtifactCorrupt("expected an artifact, a folder or one file: there is nothing")
    return packed.members(path)


def _open_root(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        found = error.strerror
        raise ArtifactCorrupt(f"expected the folder of an artifact, found: {found}") from None


def _text_of(files: Mapping[str, folder.OpenFile], name: str, limit: int) -> str:
    if name not in files:
        raise ArtifactCorrupt(f"the file {name} is missing")
    file = files[name]
    if file.size > limit:
        raise ArtifactCorrupt(f"{name}: {file.size} bytes, expected at most {limit}")
    try:
        return bytes(file.data()).decode()
    except UnicodeDecodeError as error:
        raise ArtifactCorrupt(f"{name}: expected UTF-8 text, found: {error}") from None
