"""A content-addressed folder of built files: atomic, verified on read, safe for many processes.

An entry is one folder `<key>/` that holds the file and its sha256. It is filled under a temporary
name and renamed as a whole, so a reader sees a complete entry or none; a damaged one is a miss
and is replaced. Nothing here raises for a cache that cannot be used: the file then lives in a
folder of this process, and one warning says why.
"""

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CHECKSUM = "sha256"
ABANDONED = 3600.0  # seconds after which a half-made entry has no owner any more


class UnsafeCache(RuntimeError):
    """The cache folder could be written by somebody else, so code in it cannot be trusted."""


class CacheWarning(UserWarning):
    """The cache cannot be used; what is built now is built again by the next process."""


class BuildCache:
    """Files by key under `root`; under a folder of this process if `root` is None or unusable."""

    def __init__(self, root: Path | None) -> None:
        self.root = root
        self._verified: dict[str, Path] = {}
        self._private: Path | None = None
        self._warned = False
        self._swept = False

    def ensure(self, key: str, name: str, fill: Callable[[Path], object]) -> Path:
        """The file `name` of `key`; if need be made by `fill(folder)`, which writes `folder/name`.

        One process fills, others that want the same key wait for it. What `fill` raises is raised,
        and the folder it wrote into is kept for inspection.
        """
        if found := self.get(key, name):
            return found
        with self._lock(key):
            return self.get(key, name) or self._fill(key, name, fill)

    def get(self, key: str, name: str) -> Path | None:
        """The file `name` of `key`, or None if there is none or it is damaged."""
        known = self._verified.get(key)
        if known is not None and known.exists():
            return known
        if self.root is None:
            return None
        try:
            check_folder(self.root)
        except FileNotFoundError:
            return None
        except (OSError, UnsafeCache) as reason:
            self._warn(reason)
            return None
        file = self.root / key / name
        return self._remember(key, file) if _intact(file) else None

    def _fill(self, key: str, name: str, fill: Callable[[Path], object]) -> Path:
        work = Path(tempfile.mkdtemp(prefix="infopt-"))
        try:
            fill(work)
        except Exception:
            raise  # the folder stays: the message names a file in it
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        try:
            file = self._publish(key, name, work)
        except (OSError, UnsafeCache) as reason:
            self._warn(reason)
            file = self._keep_private(key, name, work)
        shutil.rmtree(work, ignore_errors=True)
        return self._remember(key, file)

    @contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        """Held by one process per key (keys share 256 lock files). Without locks it is no error."""
        try:
            if self.root is None:
                raise OSError
            self.root.mkdir(parents=True, mode=0o700, exist_ok=True)
            check_folder(self.root)
            descriptor = os.open(
                self.root / f".lock-{key[:2]}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600
            )
        except (OSError, UnsafeCache):
            yield
            return
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            with suppress(OSError):  # explicit: a forked child may still hold the descriptor
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _publish(self, key: str, name: str, work: Path) -> Path:
        if self.root is None:
            raise UnsafeCache("no home folder; set INFOPT_CACHE to a folder of your own")
        self.root.mkdir(parents=True, mode=0o700, exist_ok=True)
        check_folder(self.root)
        self._sweep(self.root)
        entry = Path(tempfile.mkdtemp(prefix=".new-", dir=self.root))
        try:
            (work / CHECKSUM).write_text(_sha256(work / name) + "\n")
            for file in sorted(work.iterdir()):
                _copy_synced(file, entry / file.name)
            return self._rename(entry, self.root / key, name)
        finally:
            shutil.rmtree(entry, ignore_errors=True)

    def _sweep(self, root: Path) -> None:
        """Once per process: remove what processes that were killed left half done."""
        if self._swept:
            return
        self._swept = True
        for folder in [*root.glob(".new-*"), *root.glob(".old-*")]:
            with suppress(OSError):  # another process removed it
                if time.time() - folder.stat().st_mtime > ABANDONED:
                    shutil.rmtree(folder, ignore_errors=True)

    def _rename(self, entry: Path, final: Path, name: str) -> Path:
        for _ in range(8):
            try:
                os.rename(entry, final)
                return final / name
            except OSError:
                if not final.exists():
                    raise
            if _intact(final / name):  # another process was faster
                return final / name
            damaged = Path(tempfile.mkdtemp(prefix=".old-", dir=final.parent))
            with suppress(FileNotFoundError):  # another process took it away
                os.rename(final, damaged / "entry")
            shutil.rmtree(damaged, ignore_errors=True)
        raise OSError(f"{final} cannot be replaced: other processes keep changing it")

    def _keep_private(self, key: str, name: str, work: Path) -> Path:
        if self._private is None:
            self._private = Path(tempfile.mkdtemp(prefix="infopt-cache-"))
            weakref.finalize(self, _remove_own, self._private, os.getpid())
        entry = self._private / key
        shutil.copytree(work, entry, dirs_exist_ok=True)
        return entry / name

    def _remember(self, key: str, file: Path) -> Path:
        self._verified[key] = file
        return file

    def _warn(self, reason: Exception) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the cache {self.root} is not used: {reason}", CacheWarning, stacklevel=4
            )


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


def _intact(file: Path) -> bool:
    try:
        return (file.parent / CHECKSUM).read_text().strip() == _sha256(file)
    except (OSError, UnicodeDecodeError):
        return False


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _copy_synced(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer)
        writer.flush()
        os.fsync(writer.fileno())


def _remove_own(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child must not take the folder from its parent
        shutil.rmtree(folder, ignore_errors=True)
