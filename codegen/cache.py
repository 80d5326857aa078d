"""A content-addressed folder of built files: atomic, verified on read, safe for many processes.

An entry is one folder `<key>/` that holds the file and its sha256. It is filled under a temporary
name and renamed as a whole, so a reader sees a complete entry or none; a damaged one is a miss
and is replaced. Nothing here raises for a cache that cannot be used: the file then lives in a
folder of this process, and one warning says why. Beyond `limit` bytes the entries that were used
longest ago are removed.
"""

import fcntl
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from infopt.codegen.cache_folder import (
    CHECKSUM,
    CacheEntry,
    UnsafeCache,
    check_folder,
    entry_of,
    intact,
    owned,
    sha256,
    sweep,
    sync,
    wait_for,
)


class CacheWarning(UserWarning):
    """The cache cannot be used; what is built now is built again by the next process."""


class BuildCache:
    """Files by key under `root`; under a folder of this process if `root` is None or unusable.

    limit: bytes of all entries together, None for no limit.
    """

    def __init__(self, root: Path | None, limit: int | None = None) -> None:
        self.root, self.limit = root, limit
        self._verified: dict[str, Path] = {}
        self._private: Path | None = None
        self._warned = False
        self._swept = False
        self._total: int | None = None  # bytes of all entries as far as this process knows

    def ensure(self, key: str, name: str, fill: Callable[[Path], object]) -> Path:
        """The file `name` of `key`; if need be made by `fill(folder)`, which writes `folder/name`.

        One process fills, others that want the same key wait for it. What `fill` raises is raised,
        and the folder it wrote into is kept for inspection; an OSError of it is first taken for a
        fault of the folder. Raises OSError where nothing can be written anywhere.
        """
        if found := self.get(key, name):
            return found
        with self._lock(f"{Path(name).suffix[1:]}-{key[:2]}"):
            return self.get(key, name) or self._fill(key, name, fill)

    def get(self, key: str, name: str) -> Path | None:
        """The file `name` of `key`, or None if there is none or it is damaged."""
        known = self._verified.get(key)
        if known is not None and os.path.exists(known):
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
        if not intact(file):
            return None
        with suppress(OSError):  # a cache that can only be read
            os.utime(file.parent / CHECKSUM)
        return self._remember(key, file)

    def forget(self) -> None:
        """Verify every file anew: one that was given out has disappeared or was damaged since."""
        self._verified.clear()

    def entries(self) -> list[CacheEntry]:
        """All complete entries, the one used longest ago first."""
        found: list[CacheEntry] = []
        if self.root is None:
            return found
        with suppress(OSError, UnsafeCache):
            check_folder(self.root)
            for folder in self.root.iterdir():
                if not folder.name.startswith("."):
                    with suppress(OSError):  # removed meanwhile
                        found.append(entry_of(folder))
        return sorted(found, key=lambda entry: entry.used)

    def prune(self, limit: int, keep: str = "") -> list[CacheEntry]:
        """Remove entries, those used longest ago first, until `limit` bytes are left; which ones.

        keep: a key that stays. A process that has a removed file mapped keeps it.
        """
        entries = self.entries()
        total, removed = sum(entry.bytes for entry in entries), []
        for entry in entries:
            if total <= limit:
                break
            if entry.key != keep and self._remove(entry.key):
                total -= entry.bytes
                removed.append(entry)
        self._total = total
        return removed

    def _remove(self, key: str) -> bool:
        """Take an entry away as a whole; a reader finds it complete or not at all."""
        assert self.root is not None
        self._verified.pop(key, None)
        try:
            away = Path(tempfile.mkdtemp(prefix=".old-", dir=self.root))
        except OSError:  # a full disk: then not as a whole; what is left of it is a miss
            shutil.rmtree(self.root / key, ignore_errors=True)
            return not (self.root / key).exists()
        try:
            os.rename(self.root / key, away / "entry")
        except OSError:
            return False
        finally:
            shutil.rmtree(away, ignore_errors=True)
        return True

    def _fill(self, key: str, name: str, fill: Callable[[Path], object]) -> Path:
        try:
            file = self._make(self._shared(), key, name, fill)
        except (OSError, UnsafeCache) as reason:
            self._warn(reason)
            return self._remember(key, self._make(self._own(), key, name, fill))
        self._keep_limit(key, file.parent)
        return self._remember(key, file)

    def _keep_limit(self, key: str, added: Path) -> None:
        """Beyond the limit, to an eighth below it: looking at all entries takes long, so it is done
        once per process and then only when what it added is too much.
        """
        if self.limit is None:
            return
        if self._total is None:
            self._total = sum(entry.bytes for entry in self.entries())
        else:
            with suppress(OSError):  # removed meanwhile
                self._total += entry_of(added).bytes
        if self._total > self.limit:
            self.prune(self.limit - self.limit // 8, keep=key)

    def _make(self, root: Path, key: str, name: str, fill: Callable[[Path], object]) -> Path:
        entry = Path(tempfile.mkdtemp(prefix=".new-", dir=root))
        kept = False
        try:
            with owned(entry):
                fill(entry)
                (entry / CHECKSUM).write_text(sha256(entry / name) + "\n")
                for file in (*sorted(entry.iterdir()), entry):
                    sync(file)
                return self._rename(entry, root / key, name)
        except OSError:
            raise
        except Exception:
            kept = True  # the message names a file in the folder
            raise
        finally:
            if not kept:
                shutil.rmtree(entry, ignore_errors=True)

    @contextmanager
    def _lock(self, bucket: str) -> Iterator[None]:
        """Held by one process per kind of file and first digits of the key: who makes a library may
        make the header that it includes. Without locks it is no error."""
        try:
            descriptor = os.open(
                self._shared() / f".lock-{bucket}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600
            )
        except (OSError, UnsafeCache):
            yield
            return
        try:
            wait_for(descriptor)
            yield
        finally:
            with suppress(OSError):  # explicit: a forked child may still hold the descriptor
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _shared(self) -> Path:
        """The root, made if need be and swept. Raises OSError, UnsafeCache."""
        if self.root is None:
            raise UnsafeCache("no home folder; set INFOPT_CACHE to a folder of your own")
        self.root.mkdir(parents=True, mode=0o700, exist_ok=True)
        check_folder(self.root)
        if not self._swept:
            self._swept = True
            sweep(self.root)
        return self.root

    def _own(self) -> Path:
        """A folder of this process, removed when it ends."""
        if self._private is None or not self._private.exists():
            self._private = Path(tempfile.mkdtemp(prefix="infopt-cache-"))
            weakref.finalize(self, _remove_own, self._private, os.getpid())
        return self._private

    def _rename(self, entry: Path, final: Path, name: str) -> Path:
        for _ in range(8):
            try:
                os.rename(entry, final)
                sync(final.parent)
                return final / name
            except OSError:
                if not final.exists():
                    raise
            if intact(final / name):  # another process was faster
                return final / name
            damaged = Path(tempfile.mkdtemp(prefix=".old-", dir=final.parent))
            with suppress(FileNotFoundError):  # another process took it away
                os.rename(final, damaged / "entry")
            shutil.rmtree(damaged, ignore_errors=True)
        raise OSError(f"{final} cannot be replaced: other processes keep changing it")

    def _remember(self, key: str, file: Path) -> Path:
        self._verified[key] = file
        return file

    def _warn(self, reason: Exception) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the cache {self.root} is not used: {reason}", CacheWarning, stacklevel=4
            )


def _remove_own(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child must not take the folder from its parent
        shutil.rmtree(folder, ignore_errors=True)
