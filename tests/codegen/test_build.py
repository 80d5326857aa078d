"""Text to library, and what the cache does when files, folders or processes misbehave."""

import ctypes
import itertools
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from infopt.codegen import build as builder
from infopt.codegen import toolchain
from infopt.codegen.build import BuildFailed, CompilerMissing, build, build_all, find_compiler
from infopt.codegen.cache import BuildCache, CacheWarning
from infopt.codegen.cache_folder import UnsafeCache, check_folder

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")

VISIBLE = 'extern "C" __attribute__((visibility("default")))'


def answer(number: int) -> str:
    return f"{VISIBLE} int answer() {{ return {number}; }}\n"


def ask(library: Path) -> int:
    return ctypes.CDLL(str(library)).answer()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh INFOPT_CACHE, and no memory of other caches."""
    builder._cache_at.cache_clear()
    monkeypatch.setenv("INFOPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "native"


def forget() -> None:
    """As a new process would begin: nothing verified yet."""
    builder._cache_at.cache_clear()


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that reached the compiler."""
    seen: list[str] = []
    real = toolchain.compile_library

    def counted(compiler, sources, *rest):  # type: ignore[no-untyped-def]
        seen.append(sources[0].read_text())
        return real(compiler, sources, *rest)

    monkeypatch.setattr(toolchain, "compile_library", counted)
    return seen


@needs_compiler
class TestBuild:
    def test_runs_and_is_kept(self, cache: Path, compilations: list[str]) -> None:
        library = build(answer(41), "scalar", "answer")
        assert ask(library) == 41
        assert library.is_relative_to(cache) and library.name == "answer.so"
        forget()
        assert build(answer(41), "scalar", "answer") == library
        assert len(compilations) == 1

    def test_text_may_include_the_headers(self, cache: Path) -> None:
        text = '#include "abi.h"\nINFOPT_EXPORT int answer() { return infopt::ceil_div(9, 2); }\n'
        assert ask(build(text, "scalar", "answer")) == 5

    def test_header_parsed_ahead_changes_nothing(self, cache: Path) -> None:
        def text(number: int) -> str:
            body = f"return infopt::pw::count(infopt::pw::Full{{}}) + {number};"
            return f'#include "region.h"\nINFOPT_EXPORT int answer() {{ {body} }}\n'

        plain = build(text(1), "scalar", "answer")
        made = list(cache.glob("*/region.h.gch"))
        assert len(made) == (0 if find_compiler().is_clang() else 1)  # type: ignore[union-attr]
        shutil.copy(plain, cache.parent / "plain.so")
        shutil.rmtree(plain.parent)
        forget()
        again = build(text(1), "scalar", "answer")
        assert ask(again) == 17 and again.read_bytes() == (cache.parent / "plain.so").read_bytes()
        for file in made:  # one that GCC refuses is not read, and its entry is made anew
            file.write_bytes(b"gpch")
        forget()
        assert ask(build(text(2), "scalar", "answer")) == 18

    def test_text_level_and_name_are_in_the_key(self, cache: Path) -> None:
        compiler = find_compiler()
        assert compiler is not None
        base = builder.text_key("a", "scalar", "n", compiler)
        other = toolchain.Compiler(compiler.command, compiler.version + " patched")
        assert base == builder.text_key("a", "scalar", "n", compiler)
        changed = [
            builder.text_key("b", "scalar", "n", compiler),
            builder.text_key("a", "avx2", "n", compiler),
            builder.text_key("a", "scalar", "m", compiler),
            builder.text_key("a", "scalar", "n", other),
        ]
        assert len({base, *changed}) == 5

    def test_failure_says_what_and_keeps_the_source(self, cache: Path) -> None:
        with pytest.raises(BuildFailed) as failed:
            build("int broken( {", "scalar", "broken")
        error = failed.value
        assert error.source.read_text() == "int broken( {"
        assert str(error.source) in str(error) and "error" in error.errors
        assert "-std=c++17" in error.command
        assert build(answer(2), "scalar", "fixed").exists()

    def test_too_slow_is_a_failure(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(toolchain, "TIMEOUT", 0.0)
        with pytest.raises(BuildFailed, match="no result after 0 seconds"):
            build(answer(3), "scalar", "slow")

    @pytest.mark.parametrize("name", ["", "../up", "a b", "x" * 101])
    def test_odd_names_are_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match="name"):
            build(answer(4), "scalar", name)

    def test_unknown_level_lists_the_known_ones(self) -> None:
        with pytest.raises(ValueError, match="'sse9': expected one of scalar, avx2, avx512"):
            build(answer(4), "sse9", "answer")

    def test_build_all_keeps_order_and_compiles_equal_text_once(
        self, cache: Path, compilations: list[str]
    ) -> None:
        numbers = [5, 6, 5, 7, 5]
        made = build_all([(answer(n), "scalar", "answer") for n in numbers])
        assert [ask(library) for library in made] == numbers
        assert len(compilations) == 3
        assert build_all([]) == []

    def test_levels_share_their_prefix(self) -> None:
        levels = list(toolchain.LEVELS.values())
        assert all(set(a) <= set(b) for a, b in itertools.pairwise(levels))


def test_without_a_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert find_compiler() is None
    with pytest.raises(CompilerMissing, match="compiling answer needs a C\\+\\+ compiler"):
        build(answer(1), "scalar", "answer")


Damage = Callable[[Path], object]


@needs_compiler
@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:100]),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"\0" * file.stat().st_size),
        lambda file: file.unlink(),
        lambda file: (file.parent / "sha256").unlink(),
        lambda file: (file.parent / "sha256").write_bytes(b"\xff\xfe"),
    ],
    ids=["truncated", "empty", "zeroed", "missing", "no record", "garbage record"],
)
def test_damaged_entry_is_rebuilt(cache: Path, damage: Damage) -> None:
    library = build(answer(8), "scalar", "answer")
    damage(library)
    forget()
    assert ask(build(answer(8), "scalar", "answer")) == 8
    assert not list(cache.glob(".new-*")) and not list(cache.glob(".old-*"))


@needs_compiler
def test_cleared_while_in_use(cache: Path) -> None:
    library = build(answer(9), "scalar", "answer")
    for file in library.parent.iterdir():
        file.unlink()
    library.parent.rmdir()
    assert ask(build(answer(9), "scalar", "answer")) == 9


def fill_with(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "file").write_bytes(content)


class TestUnusableFolder:
    """One warning, and the work goes on in a folder of this process."""

    def check(self, root: Path | None, reason: str) -> None:
        store = BuildCache(root)
        with pytest.warns(CacheWarning, match=reason):
            first = store.ensure("k1", "file", fill_with(b"one"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            second = store.ensure("k2", "file", fill_with(b"two"))
            assert store.get("k1", "file") == first
        assert (first.read_bytes(), second.read_bytes()) == (b"one", b"two")
        assert root is None or not first.is_relative_to(root.resolve())

    def test_no_home(self) -> None:
        self.check(None, "no home folder")

    def test_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "native").write_text("")
        self.check(tmp_path / "native", "exists|not a folder")

    def test_symbolic_link(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir(mode=0o700)
        (tmp_path / "native").symlink_to(tmp_path / "real")
        self.check(tmp_path / "native", "is a symbolic link")
        assert not list((tmp_path / "real").iterdir())

    def test_writable_by_others(self, tmp_path: Path) -> None:
        (tmp_path / "native").mkdir()
        (tmp_path / "native").chmod(0o777)
        self.check(tmp_path / "native", "can be written by others")

    def test_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(path: Path) -> None:
            if path.is_relative_to(tmp_path):
                raise OSError(28, "No space left on device")

        monkeypatch.setattr("infopt.codegen.cache.sync", full)
        self.check(tmp_path / "native", "No space left")
        assert not list((tmp_path / "native").glob(".new-*"))

    def test_foreign_owner(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "native").mkdir(mode=0o700)
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        with pytest.raises(UnsafeCache, match=f"belongs to user {os.getuid()}, expected"):
            check_folder(tmp_path / "native")


def test_folder_is_for_the_owner_only(tmp_path: Path) -> None:
    BuildCache(tmp_path / "native").ensure("key", "file", fill_with(b"x"))
    assert (tmp_path / "native").stat().st_mode & 0o777 == 0o700


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    root = tmp_path / "native"
    root.mkdir(mode=0o700)
    old, new = root / ".new-old", root / ".new-new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "file").write_bytes(b"half")
    os.utime(old, (0, 0))
    BuildCache(root).ensure("key", "file", fill_with(b"x"))
    assert not old.exists() and new.exists()


def test_failed_fill_leaves_no_entry(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise ValueError(f"kept {folder}")

    store = BuildCache(tmp_path / "native")
    with pytest.raises(ValueError, match="kept"):
        store.ensure("key", "file", fail)
    assert store.get("key", "file") is None
    assert store.ensure("key", "file", fill_with(b"x")).read_bytes() == b"x"


@needs_compiler
def test_processes_at_once(cache: Path) -> None:
    """Four processes, one key: the compiler runs once, all get the same working file."""
    code = (
        "import ctypes, sys\n"
        "from infopt.codegen.build import build\n"
        "library = build(sys.argv[1], 'scalar', 'answer')\n"
        "print(library, ctypes.CDLL(str(library)).answer(), library.stat().st_mtime_ns)\n"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, answer(10)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    results = {process.communicate()[0] for process in running}
    assert len(results) == 1 and results.pop().split()[1] == "10"


@needs_compiler
class TestInstalledLibraries:
    @pytest.fixture
    def tree(self, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A small package tree with one kernel file and an executor, nothing built yet."""
        for folder in ("codegen/csrc", "runtime/csrc"):
            (tmp_path / folder).mkdir(parents=True)
        (tmp_path / "codegen/csrc/abi.h").write_text("// nothing yet\n")
        (tmp_path / "codegen/csrc/kernels_one.cpp").write_text(answer(1))
        (tmp_path / "runtime/csrc/executor.cpp").write_text(answer(2))
        monkeypatch.setattr(builder, "CODEGEN", tmp_path / "codegen")
        monkeypatch.setattr(builder, "RUNTIME", tmp_path / "runtime")
        builder._library.cache_clear()
        yield tmp_path
        builder._library.cache_clear()

    def install(self, tree: Path, into: Path | None = None) -> dict[str, object]:
        compiler = find_compiler()
        assert compiler is not None
        wanted = toolchain.libraries(tree / "codegen", tree / "runtime")
        folder = tree / "runtime/lib"
        return dict(toolchain.build_libraries(compiler, wanted, into or folder, folder))

    def test_installed_file_is_used(self, tree: Path) -> None:
        made = self.install(tree)
        assert set(made) >= {"executor", "kernels_scalar"}
        assert builder.prebuilt("scalar") == made["kernels_scalar"]
        assert builder.executor_library() == made["executor"]

    def test_what_is_built_already_is_copied(self, tree: Path, tmp_path: Path) -> None:
        made = self.install(tree)["executor"]
        assert isinstance(made, Path)
        made.write_bytes(b"as it is")
        again = self.install(tree)["executor"]
        wheel = self.install(tree, tmp_path / "wheel")["executor"]
        assert again == made and isinstance(wheel, Path)
        assert wheel.read_bytes() == made.read_bytes() == b"as it is"
        assert toolchain.recorded_key(wheel) == toolchain.recorded_key(made)

    def test_other_sources_are_built_anew(self, tree: Path, tmp_path: Path) -> None:
        self.install(tree)
        (tree / "runtime/csrc/executor.cpp").write_text(answer(4))
        wheel = self.install(tree, tmp_path / "wheel")["executor"]
        assert isinstance(wheel, Path) and ask(wheel) == 4

    def test_missing_file_is_built_into_the_cache(self, tree: Path, cache: Path) -> None:
        library = builder.executor_library()
        assert library is not None and library.is_relative_to(cache) and ask(library) == 2

    def test_edited_source_is_built_into_the_cache(self, tree: Path, cache: Path) -> None:
        self.install(tree)
        (tree / "codegen/csrc/kernels_one.cpp").write_text(answer(3))
        library = builder.prebuilt("scalar")
        assert library is not None and library.is_relative_to(cache) and ask(library) == 3

    def test_edited_header_counts(self, tree: Path, cache: Path) -> None:
        self.install(tree)
        with (tree / "codegen/csrc/abi.h").open("a") as header:
            header.write("// changed\n")
        library = builder.prebuilt("scalar")
        assert library is not None and library.is_relative_to(cache)

    def test_none_without_compiler(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CXX", "no-such-compiler")
        assert builder.prebuilt("scalar") is None and builder.executor_library() is None

    def test_broken_source_leaves_the_others(self, tree: Path) -> None:
        (tree / "codegen/csrc/kernels_one.cpp").write_text("int broken( {")
        made = self.install(tree)
        assert isinstance(made["kernels_scalar"], toolchain.BuildFailed)
        assert made["executor"] == tree / "runtime/lib/executor.so"
        assert not list((tree / "runtime/lib").glob(".*"))
