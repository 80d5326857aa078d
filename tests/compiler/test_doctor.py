"""What `infopt doctor` finds: each section alone, with stand-ins for what a machine may lack."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infopt.codegen import toolchain
from infopt.compiler import doctor
from infopt.compiler.doctor import Health
from infopt.compiler.settings import Settings
from infopt.runtime.errors import LibraryError

LEVELS = list(toolchain.LEVELS)


def test_findings_as_text() -> None:
    health = Health({"cache": {"folder": "/c", "a name of 17 ..": "x"}})
    assert str(health).splitlines() == [
        "cache", "  folder         /c", "  a name of 17 .. x", "all is well",
    ]  # fmt: skip
    health.lost.append("speed")
    assert str(health).splitlines()[3:] == ["lost: speed"]
    health.broken.append("it")
    assert str(health).splitlines()[3:] == ["lost: speed", "broken: it"]
    health.lost.clear()
    assert str(health).splitlines()[3:] == ["broken: it"]
    assert health.to_json() == {"sections": health.sections, "lost": [], "broken": ["it"]}


def target(level: str, lacks: str = "") -> Any:
    return SimpleNamespace(level=level, lacks=lambda name: f"{name} needs {lacks}" if lacks else "")


def test_why_the_next_level_is_out_of_reach() -> None:
    lowest, above, highest = LEVELS[0], LEVELS[1], LEVELS[-1]
    assert doctor._lacking(target(lowest, "vnni")) == f"{above} needs vnni"
    assert doctor._lacking(target(lowest)) == above
    assert doctor._lacking(target(highest, "vnni")) == "none"
    assert doctor._lacking(target("unheard of", "vnni")) == "none"


def test_ops_with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["aten.linear.default", "conv_act", "aten.gelu.default"]
    monkeypatch.setattr(doctor, "kernel_names", lambda target: names)
    monkeypatch.setattr(doctor.build, "find_compiler", lambda: object())
    assert doctor._kernels(target(LEVELS[0])) == {
        "1 of infopt's": "conv_act",
        "2 of torch's": "linear.default, gelu.default",
        "generated": "pointwise operations",
    }
    monkeypatch.setattr(doctor.build, "find_compiler", lambda: None)
    assert doctor._kernels(target(LEVELS[0]))["generated"] == "none: no C++ compiler"


def test_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(command=["ccache", "g++"], version="13.2", levels=lambda: ["a", "b"])
    monkeypatch.setattr(doctor.build, "find_compiler", lambda: found)
    doctor._examine_compiler(health := Health())
    assert health.sections["compiler"] == {
        "found": "ccache g++", "version": "13.2", "levels": "a, b",
    }  # fmt: skip
    assert not health.lost
    monkeypatch.setattr(doctor.build, "find_compiler", lambda: None)
    for given, wanted in (("my-c++", "my-c++"), ("", "g++, c++ or clang++")):
        monkeypatch.setenv("CXX", given)
        doctor._examine_compiler(health := Health())
        assert health.sections["compiler"] == {"found": f"none; expected {wanted}"}
        assert [what.partition(":")[0] for what in health.lost] == ["no C++ compiler"]
        assert not health.broken


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """What is there: the executor, kernels of the second level, and files of the others."""
    there = SimpleNamespace(executor=tmp_path / "lib" / "executor.so", kernels=tmp_path / "k.so")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / f"kernels_{LEVELS[0]}.so").touch()

    def given(value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    there.loaded = []
    monkeypatch.setattr(doctor.build, "RUNTIME", tmp_path)
    monkeypatch.setattr(doctor.build, "executor_library", lambda: given(there.executor))
    monkeypatch.setattr(doctor.build, "prebuilt", lambda level: given(there.kernels))
    monkeypatch.setattr(doctor.build, "is_installed", lambda file: file.parent.name == "lib")
    monkeypatch.setattr(doctor, "load_executor", lambda file: there.loaded.append(given(file)))
    return there


def examined(level: str) -> tuple[dict[str, str], Health]:
    doctor._examine_libraries(health := Health(), target(level))
    return health.sections["libraries"], health


def test_libraries_that_are_there(libraries: SimpleNamespace) -> None:
    entries, health = examined(LEVELS[2])
    assert entries == {
        "executor": "installed",
        LEVELS[0]: "installed",
        LEVELS[1]: "not installed",
        LEVELS[2]: f"rebuilt, {libraries.kernels}  <- this machine's kernels",
    }
    assert libraries.loaded == [libraries.executor] and not health.lost and not health.broken
    assert list(examined(LEVELS[0])[0]) == ["executor", LEVELS[0]]


def test_libraries_that_are_missing_cost_speed(libraries: SimpleNamespace) -> None:
    libraries.executor = libraries.kernels = None
    entries, health = examined(LEVELS[1])
    assert entries["executor"] == "missing" and entries[LEVELS[1]].startswith("missing ")
    assert [what.partition(":")[0] for what in health.lost] == [
        "no native executor", f"no kernels for {LEVELS[1]}",
    ]  # fmt: skip
    assert not libraries.loaded and not health.broken


def test_libraries_that_are_broken(
    libraries: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(file: Path) -> None:
        raise LibraryError("not for this machine")

    monkeypatch.setattr(doctor, "load_executor", refused)
    libraries.kernels = toolchain.BuildFailed(["g++"], tmp_path, "no such flag")
    entries, health = examined(LEVELS[1])
    assert entries["executor"] == entries[LEVELS[1]] == "broken" and not health.lost
    assert health.broken[0] == "executor: not for this machine"
    assert health.broken[1].startswith(f"kernels for {LEVELS[1]}: ")
    assert "no such flag" in health.broken[1] and len(health.broken) == 2


def cache(monkeypatch: pytest.MonkeyPatch, folder: Path | None) -> tuple[dict[str, str], Health]:
    monkeypatch.setattr(doctor.Settings, "from_environment", lambda: Settings(cache=folder))
    doctor._examine_cache(health := Health())
    return health.sections["cache"], health


def test_no_place_for_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    entries, health = cache(monkeypatch, None)
    assert entries == {"folder": "none: no home folder"}
    assert len(health.lost) == 1 and "set INFOPT_CACHE" in health.lost[0]


def test_what_the_cache_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for entry, names in (("one", ("a.so", "b.so")), ("two", ("a.so",)), ("empty", ())):
        (tmp_path / "native" / entry).mkdir(parents=True)
        for name in names:
            (tmp_path / "native" / entry / name).write_bytes(bytes(1 << 19))
    (tmp_path / "native" / "loose").touch()
    monkeypatch.setattr(doctor, "check_folder", lambda folder: None)
    entries, health = cache(monkeypatch, tmp_path)
    assert entries == {"folder": str(tmp_path), "holds": "2 entries, 1.5 MiB"}
    assert not health.lost


def test_a_cache_that_is_still_to_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its nearest folder that exists must be writable."""
    asked: list[Path] = []

    def writable(answer: bool) -> Any:
        return lambda folder, mode: asked.append(folder) or answer

    monkeypatch.setattr(doctor.os, "access", writable(True))
    entries, health = cache(monkeypatch, tmp_path / "a" / "b")
    assert entries["holds"] == "nothing yet" and not health.lost
    monkeypatch.setattr(doctor.os, "access", writable(False))
    entries, health = cache(monkeypatch, tmp_path / "a" / "b")
    assert entries["holds"] == "nothing yet" and asked == [tmp_path, tmp_path]
    assert health.lost == [f"the cache folder cannot be made: {tmp_path} is not writable"]


def test_a_cache_that_others_may_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for error in (doctor.UnsafeCache("anyone may write it"), PermissionError("no entry")):

        def refuse(folder: Path, error: Exception = error) -> None:
            assert folder == tmp_path / "native"
            raise error

        monkeypatch.setattr(doctor, "check_folder", refuse)
        entries, health = cache(monkeypatch, tmp_path)
        assert entries["holds"] == "not used"
        assert health.lost == [f"the cache is not used: {error}"] and not health.broken


def test_gpus_and_what_compiles_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "has_triton", lambda: False)
    for gpus, told in (([], "none that torch can use"), (["a GPU", "b"], "a GPU, b")):
        monkeypatch.setattr(doctor, "find_gpus", lambda found=gpus: found)
        found = doctor.examine().sections["gpu"]
        assert found == {"found": told, "triton": "not installed: compiles for no GPU"}
