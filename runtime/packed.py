"""An artifact as one file: a safetensors file whose entries are the artifact's files.

No format of its own and no archive with names to be unpacked: entries are bytes ("U8"), the parser
is the strict one of the weights, and nothing but the file itself is ever opened. Weights begin at a
multiple of 64 KiB, so that they are mapped from inside the file; what lies between entries is
called "padding.<n>" and must be zero. The text before the data has one form only. So no bit of the
file is without a check.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from infopt.runtime.errors import ArtifactCorrupt, ArtifactUnsafe
from infopt.runtime.folder import OpenFile, check_name, sync_folder
from infopt.runtime.safetensors_header import entry, parse, render

SUFFIX = ".infopt"
_PAGE = 1 << 16  # of any machine that maps a part of a file
_ALIGNMENT = 64
_MAX_HEADER = 1 << 20
_PADDING = "padding."
Contents = Mapping[str, Sequence[bytes | memoryview]]  # of bytes: len() is their number


def write(path: Path, contents: Contents, overwrite: bool) -> None:
    """Write the file: all of it or nothing. Raises FileExistsError, as for folders."""
    _check_free(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            head, gaps = _layout({name: sum(map(len, parts)) for name, parts in contents.items()})
            file.write(head)
            for name, parts in contents.items():
                file.write(bytes(gaps[name]))
                file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        _check_free(path, overwrite)
        os.rename(temporary, path)
        sync_folder(path.parent)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def _check_free(path: Path, overwrite: bool) -> None:
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise FileExistsError(f"{path} exists; pass overwrite=True to replace it")
    try:
        for file in members(path).values():
            file.close()
    except (ArtifactCorrupt, ArtifactUnsafe):
        raise FileExistsError(f"{path} exists and is not an artifact; it is left alone") from None


def _layout(sizes: Mapping[str, int]) -> tuple[bytes, dict[str, int]]:
    """What stands before the data; and the zeros before each entry."""
    entries: dict[str, Any] = {}
    gaps, end = {}, 0
    for name, size in sizes.items():
        gaps[name] = -end % (_PAGE if name.endswith(".safetensors") else _ALIGNMENT)
        if gaps[name]:
            entries[f"{_PADDING}{len(entries)}"] = entry("U8", gaps[name], end, end + gaps[name])
        first = end + gaps[name]
        end = first + size
        entries[name] = entry("U8", size, first, end)
    return render(entries, _PAGE), gaps


def members(path: Path) -> dict[str, OpenFile]:
    """The files in the file, open. Raises ArtifactUnsafe, ArtifactCorrupt."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise ArtifactUnsafe(f"expected a regular file, found: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactUnsafe("expected a regular file, found another kind")
        spans, start = _spans(descriptor, status.st_size)
        found: dict[str, OpenFile] = {}
        for name, (first, last) in spans.items():
            found[name] = OpenFile(name, os.dup(descriptor), status, start + first, last - first)
        return found
    finally:
        os.close(descriptor)


def _spans(descriptor: int, size: int) -> tuple[dict[str, tuple[int, int]], int]:
    def read(first: int, last: int) -> bytes:
        return os.pread(descriptor, last - first, first)

    spans, start = parse(read, size, "the file", _MAX_HEADER)
    kept = {name: span for name, span in spans.items() if not name.startswith(_PADDING)}
    for name in kept:
        check_name(name)
    head, gaps = _layout({name: last - first for name, (first, last) in kept.items()})
    if read(0, start) != head:
        raise ArtifactCorrupt("the header was changed: it is not the one that infopt writes")
    for name, gap in gaps.items():
        first = start + kept[name][0]
        if read(first - gap, first) != bytes(gap):
            raise ArtifactCorrupt(f"the content was changed at bytes {first - gap} to {first}")
    return kept, start


def content(path: Path, name: str, sha256: str) -> bytes:
    """A member's bytes. Raises ArtifactCorrupt unless they are those with this sha256."""
    opened = members(path)
    try:
        found = bytes(opened[name].data()) if name in opened else b""
    finally:
        for file in opened.values():
            file.close()
    if hashlib.sha256(found).hexdigest() != sha256:
        raise ArtifactCorrupt(f"{path}: {name}: the content was changed since it was loaded")
    return found


def with_member(path: Path, name: str, text: str) -> None:
    """Write the file again with this member in it, the others as they are."""
    opened = members(path)
    try:
        contents: dict[str, list[bytes | memoryview]]
        contents = {n: [file.data()] for n, file in opened.items()}
        write(path, {**contents, name: [text.encode()]}, overwrite=True)
    finally:
        for file in opened.values():
            file.close()
