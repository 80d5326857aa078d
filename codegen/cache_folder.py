"""What makes a folder fit to be a cache: its owner, whole entries, locks, and a clean-up."""

import fcntl
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from infopt.codegen.parallel import check_cancelled

CHECKSUM = "sha256"  # the file of an entry that records the other one's digest
ABANDONED = 3600.0  # seconds after which a half-made entry without an owner is removed
PATIENCE = 900.0  # seconds to wait for another process that makes the same entry


class UnsafeCache(RuntimeError):
    """The cache folder could be written by somebody else, so code in it cannot be trusted."""


@dataclass(frozen=True)
class CacheEntry:
    """One built file in the cache: its bytes, and when it was last used (seconds of the epoch)."""

    key: str
    files: tuple[str, ...]
    bytes: int
    used: float


def check_folder(folder: Path) -> None:
    """Raises UnsafeCache unless `folder` is a real folder of this user only this user can write."""
    info = folder.lstat()
    if stat.S_ISLNK(info.st_mode):
        raise UnsafeCache(f"{folder} is a symbolic link; name the folder itself")
    if not stat.S_ISDIR(info.st_mode):
        raise UnsafeCache(f"{folder} is not a folder")
    if info.st_uid != os.geteuid():
        raise UnsafeCache(
            f"{folder} belongs to user {info.st_uid}, expected {os.geteuid()}; "
            "set INFOPT_CACHE to a folder of your own"
        )
    if info.st_mode & 0o022:
        raise UnsafeCache(
            f"{folder} can be written by others (mode {stat.S_IMODE(info.st_mode):o}); "
            f"run: chmod 700 {folder}"
        )


def intact(file: Path) -> bool:
    """Whether a file is what its entry's record says; anything odd is a miss."""
    record = file.parent / CHECKSUM
    try:
        if not all(stat.S_ISREG(f.lstat().st_mode) for f in (file, record)):
            return False
        return record.read_text().strip() == sha256(file)
    except (OSError, UnicodeDecodeError):
        return False


def entry_of(folder: Path) -> CacheEntry:
    """What a folder of the cache holds. One without a record was used never: it is a miss."""
    files = sorted(folder.iterdir())
    record = folder / CHECKSUM
    return CacheEntry(
        folder.name,
        tuple(file.name for file in files),
        sum(file.lstat().st_size for file in files),
        record.stat().st_mtime if record in files else 0.0,
    )


def sha256(file: Path) -> str:
    """The digest of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Make a file durable; or the names in a folder, where the file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise
    finally:
        os.close(descriptor)


def wait_for(descriptor: int) -> None:
    """Lock the file when nobody else has it; not for ever: two makers do no harm."""
    give_up = time.monotonic() + PATIENCE
    with suppress(OSError):  # a file system without locks
        while time.monotonic() < give_up:
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                check_cancelled()
                time.sleep(0.02)


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """While it lasts, `_sweep` of no process takes the folder away."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def sweep(root: Path) -> None:
    """Remove what processes that were killed left half done, and old failures."""
    for folder in [*root.glob(".new-*"), *root.glob(".old-*")]:
        with suppress(OSError):  # another process removed it
            if abs(time.time() - folder.stat().st_mtime) > ABANDONED and not _has_owner(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _has_owner(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
