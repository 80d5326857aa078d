"""The cache of compiled code: limits, faults of the disk at every point, owners, interruption."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infopt.codegen import build as builder
from infopt.codegen import cache as cache_module
from infopt.codegen import cache_folder, parallel, toolchain
from infopt.codegen.build import build, find_compiler
from infopt.codegen.cache import BuildCache, CacheWarning
from infopt.codegen.parallel import Cancelled, in_parallel, run_process

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def fill_with(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "file").write_bytes(content)


def leftovers(root: Path) -> list[str]:
    return [p.name for p in root.iterdir() if p.name.startswith((".new-", ".old-"))]


class TestLimit:
    def store(self, tmp_path: Path, limit: int | None = None) -> BuildCache:
        return BuildCache(tmp_path / "native", limit)

    def used_at(self, store: BuildCache, key: str, seconds: float) -> None:
        assert store.root is not None
        os.utime(store.root / key / cache_folder.CHECKSUM, (seconds, seconds))

    def test_least_recently_used_goes_first(self, tmp_path: Path) -> None:
        store = self.store(tmp_path)
        for age, key in enumerate(["young", "middle", "old"]):
            store.ensure(key, "file", fill_with(b"x" * 1000))
            self.used_at(store, key, time.time() - 1000 * age)
        assert [e.key for e in store.prune(2 * 1065)] == ["old"]
        assert [e.key for e in store.entries()] == ["middle", "young"]
        assert leftovers(tmp_path / "native") == []

    def test_reading_counts_as_use(self, tmp_path: Path) -> None:
        for key in ("a", "b"):
            self.store(tmp_path).ensure(key, "file", fill_with(b"x" * 1000))
            self.used_at(self.store(tmp_path), key, 1000.0)
        assert self.store(tmp_path).get("a", "file")
        assert [e.key for e in self.store(tmp_path).prune(1065)] == ["b"]

    def test_a_new_entry_makes_room_and_stays(self, tmp_path: Path) -> None:
        store = self.store(tmp_path, 1500)
        first = store.ensure("first", "file", fill_with(b"x" * 1000))
        last = store.ensure("last", "file", fill_with(b"y" * 5000))  # larger than the limit
        assert last.read_bytes() == b"y" * 5000 and not first.exists()
        assert store.get("first", "file") is None

    def test_all_entries_are_looked_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = self.store(tmp_path, 8 * 1065)
        looks, real = [], store.entries
        monkeypatch.setattr(store, "entries", lambda: looks.append(1) or real())
        for number in range(8):
            store.ensure(f"{number}", "file", fill_with(b"x" * 1000))
            self.used_at(store, f"{number}", 1000.0 + number)
        assert len(looks) == 1 and len(real()) == 8
        store.ensure("more", "file", fill_with(b"x" * 1000))  # two of nine go: 7/8 stay
        assert [e.key for e in real()] == ["2", "3", "4", "5", "6", "7", "more"]
        store.ensure("again", "file", fill_with(b"x" * 1000))
        assert len(looks) == 2 and len(real()) == 8

    def test_entry_without_record_goes_before_all(self, tmp_path: Path) -> None:
        store = self.store(tmp_path)
        for key in ("whole", "damaged"):
            store.ensure(key, "file", fill_with(b"x" * 1000))
        (tmp_path / "native/damaged" / cache_folder.CHECKSUM).unlink()
        assert [e.key for e in store.prune(1500)] == ["damaged"]

    def test_entries_of_no_cache(self, tmp_path: Path) -> None:
        assert BuildCache(None).entries() == [] == BuildCache(tmp_path / "none").entries()


@needs_compiler
def test_removed_between_verification_and_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process clears the cache at the worst moment: the code is built again."""
    import torch

    import infopt
    from infopt.codegen import load

    monkeypatch.setenv("INFOPT_CACHE", str(tmp_path))
    builder._cache_at.cache_clear()
    real, done = load.library_files, []

    def clearing(lowered: object) -> dict[str, Path]:
        files = real(lowered)  # type: ignore[arg-type]
        if not done:
            done.append(builder.build_cache().prune(0))
        return files

    monkeypatch.setattr(load, "library_files", clearing)
    x = torch.linspace(-1, 1, 64)
    compiled = infopt.compile(lambda x: torch.sin(x) * 1.7 + x, (x,))
    assert done and done[0], "nothing was removed: the test shows nothing"
    assert torch.allclose(compiled(x), torch.sin(x) * 1.7 + x)


class Faults:
    """The n-th call of the system, counted over all functions, fails as on a full disk."""

    NAMES = ("mkdir", "open", "fsync", "rename", "utime", "lstat", "scandir", "listdir", "rmdir")

    def __init__(self, patch: pytest.MonkeyPatch, root: Path, number: int) -> None:
        self.root, self.left = str(root), number
        for name in self.NAMES:
            patch.setattr(os, name, self.failing(getattr(os, name)))
        patch.setattr("io.open", self.failing(open))

    def failing(self, real: Callable) -> Callable:
        def call(*args, **kwargs):  # type: ignore[no-untyped-def]
            path = args[0] if args else "."
            if isinstance(path, int):
                path = os.readlink(f"/proc/self/fd/{path}")
            if str(path).startswith(self.root):
                self.left -= 1
                if self.left == 0:
                    raise OSError(28, "No space left on device", str(path))
            return real(*args, **kwargs)

        return call


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")
def test_a_fault_at_every_call_is_a_miss_and_at_most_one_warning(tmp_path: Path) -> None:
    warned, number = 0, 0
    while True:
        number += 1
        root = tmp_path / str(number)
        BuildCache(root).ensure("there", "file", fill_with(b"there"))
        store = BuildCache(root, 10_000)
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            faults = Faults(patch, root, number)
            found = {k: store.ensure(k, "file", fill_with(k.encode())) for k in ("there", "new")}
        for key, file in found.items():
            assert file.read_bytes() == key.encode(), f"call {number}"
        assert len(seen) <= 1 and all(w.category is CacheWarning for w in seen)
        warned += len(seen)
        assert BuildCache(root).ensure("new", "file", fill_with(b"new")).read_bytes() == b"new"
        if faults.left > 0:
            break
    assert number > 20 and warned > 5


def as_another_user(work: Callable[[], bool]) -> bool:
    """Whether `work` is true in a child that is not allowed everything."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            status = 0 if work() else 2
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1] == 0


@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_folder_without_permission_is_a_warning(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o555 if folder == tmp_path else folder.stat().st_mode | 0o055)

    def work() -> bool:
        store = BuildCache(tmp_path / "cache" / "native")
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            first = store.ensure("a", "file", fill_with(b"a"))
            second = store.ensure("b", "file", fill_with(b"b"))
        right = (first.read_bytes(), second.read_bytes()) == (b"a", b"b")
        return right and [w.category for w in seen] == [CacheWarning]

    try:
        assert as_another_user(work)
    finally:
        tmp_path.chmod(0o755)


@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_cache_that_can_only_be_read_serves(tmp_path: Path) -> None:
    root = tmp_path / "native"
    BuildCache(root).ensure("key", "file", fill_with(b"x"))
    for path in (root / "key", root):
        path.chmod(0o500)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert BuildCache(root).ensure("key", "file", fill_with(b"y")).read_bytes() == b"x"
    finally:
        for path in (root, root / "key"):
            path.chmod(0o700)


def test_a_wrong_clock_takes_nothing_from_a_writer(tmp_path: Path) -> None:
    """Its folder looks a year old or young to another process, which sweeps."""
    store = BuildCache(tmp_path / "native")

    def slow(folder: Path) -> None:
        for years in (-1, 1):
            when = time.time() + years * 3e7
            os.utime(folder, (when, when))
            cache_folder.sweep(tmp_path / "native")
        fill_with(b"x")(folder)

    assert store.ensure("key", "file", slow).read_bytes() == b"x"


@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_odd_things_in_place_of_a_file(tmp_path: Path, kind: str) -> None:
    store = BuildCache(tmp_path / "native")
    file = store.ensure("key", "file", fill_with(b"x"))
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to("/dev/zero")
    assert BuildCache(store.root).ensure("key", "file", fill_with(b"x")).read_bytes() == b"x"


def test_nobody_waits_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is stopped holds the lock: after a while this one makes the entry itself."""
    monkeypatch.setattr(cache_folder, "PATIENCE", 0.1)
    holder = BuildCache(tmp_path / "native")
    with holder._lock("-ke"):
        made = BuildCache(tmp_path / "native").ensure("key", "file", fill_with(b"x"))
    assert made.read_bytes() == b"x"


class TestInterruption:
    LONG = 900  # seconds that a process would take if nobody ended it
    SOON = 300  # far less, and enough for the busiest machine

    def alive(self, marker: str) -> list[str]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes().decode(errors="replace")
                state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
            except OSError:
                continue
            if marker in command and state != "Z":
                found.append(command)
        return found

    @pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
    def test_ctrl_c_ends_processes_and_folders(self, tmp_path: Path) -> None:
        marker = f"31{os.getpid()}"
        # a shell without job control starts what it puts in the background with Ctrl-C ignored
        before = signal.signal(signal.SIGINT, signal.default_int_handler)

        def work(index: int) -> None:
            store = BuildCache(tmp_path / "native")
            command = ["sh", "-c", f"sleep {marker}.{index} & wait"]
            store.ensure(f"{index}", "file", lambda _: run_process(command, self.LONG, os.environ))

        sent: list[float] = []

        def interrupt() -> None:
            while len(self.alive(marker)) < 2:
                time.sleep(0.02)
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

        assert threading.current_thread() is threading.main_thread()
        helper = threading.Thread(target=interrupt, daemon=True)
        helper.start()
        try:
            with pytest.raises(KeyboardInterrupt):
                in_parallel(work, range(4))
        finally:
            signal.signal(signal.SIGINT, before)
        assert time.monotonic() - sent[0] < self.SOON
        helper.join()
        # a shell's child that was killed with it ends by itself, a moment later
        while self.alive(marker) and time.monotonic() - sent[0] < self.SOON:
            time.sleep(0.02)
        assert self.alive(marker) == []
        assert leftovers(tmp_path / "native") == []

    def test_one_failure_ends_the_others(self) -> None:
        def work(index: int) -> None:
            if index == 0:
                raise ValueError("first")
            run_process(["sleep", f"{self.LONG}"], self.LONG, os.environ)

        start = time.monotonic()
        with pytest.raises(ValueError, match="first"):
            in_parallel(work, range(2))
        assert time.monotonic() - start < self.SOON

    def test_work_inside_work_is_cancelled_too(self) -> None:
        outcome: list[type] = []
        started = threading.Event()

        def inner(_: int) -> None:
            started.set()
            try:
                run_process(["sleep", f"{self.LONG}"], self.LONG, os.environ)
            except BaseException as error:
                outcome.append(type(error))
                raise

        def outer(index: int) -> None:
            if index == 0:
                started.wait()
                raise ValueError("outer")
            in_parallel(inner, [1, 2])

        with pytest.raises(ValueError, match="outer"):
            in_parallel(outer, range(2), workers=2)
        assert set(outcome) <= {Cancelled} and outcome

    @needs_fork
    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
    def test_a_child_forked_during_a_compile_can_compile(self) -> None:
        """The parent's threads held every slot when it was made."""

        def work(_: int) -> None:
            run_process(["sleep", "0.5"], 10, os.environ)

        thread = threading.Thread(target=in_parallel, args=(work, range(parallel.CORES)))
        thread.start()
        time.sleep(0.2)
        pid = os.fork()
        if pid == 0:
            os._exit(run_process(["true"], 10, os.environ)[0])
        assert os.waitpid(pid, 0)[1] == 0
        thread.join()


@needs_compiler
def test_the_compiler_leaves_no_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(toolchain, "TIMEOUT", 0.05)  # killed in the middle
    monkeypatch.setenv("INFOPT_CACHE", str(tmp_path / "cache"))
    builder._cache_at.cache_clear()
    with pytest.raises(builder.BuildFailed, match="no result after"):
        build('#include <map>\n#include <regex>\nextern "C" int f() { return 0; }', "scalar", "f")
    assert list((tmp_path / "tmp").iterdir()) == []
    (kept,) = (tmp_path / "cache/native").glob(".new-*")
    assert [f.name for f in kept.iterdir()] == ["f.cpp"]


@needs_compiler
def test_full_disk_while_compiling(tmp_path: Path) -> None:
    """No file may grow beyond 4 KiB: the compiler fails, then nothing can be written at all."""
    code = (
        "import resource, signal, sys, warnings\n"
        "from infopt.codegen.build import build\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "warnings.simplefilter('error')\n"
        "try:\n"
        "    build('extern \"C\" int f() { return 0; }', 'scalar', 'f')\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, type(error).__mro__[-3].__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"INFOPT_CACHE": str(tmp_path)},
    )
    assert done.stdout.startswith("CacheWarning"), done
    assert leftovers(tmp_path / "native") == []


@pytest.fixture(autouse=True)
def no_memory_of_caches() -> Iterator[None]:
    yield
    builder._cache_at.cache_clear()


def test_who_makes_a_library_may_make_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock of a library and that of a header are two, whatever their keys begin with."""

    def never_wait(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    monkeypatch.setattr(cache_module, "wait_for", never_wait)
    store = BuildCache(tmp_path / "native")

    def both(folder: Path) -> None:
        store.ensure("78b", "region.h.gch", lambda f: (f / "region.h.gch").write_bytes(b"h"))
        (folder / "graph.so").write_bytes(b"so")

    assert store.ensure("78a", "graph.so", both).read_bytes() == b"so"
    assert store.get("78b", "region.h.gch")
