"""Targets: detection, parsing with its errors, levels, reasons."""

import os
import platform
from dataclasses import replace
from pathlib import Path

import pytest

from infopt.compiler import target as module
from infopt.compiler.errors import BadOption
from infopt.compiler.target import LEVELS, Target


def test_detect_describes_this_machine() -> None:
    target = Target.detect()
    assert target.kind == "cpu" and target.cores >= 1
    assert target.level in LEVELS
    assert target.lacks(target.level) is None
    assert all(size > 0 for size in target.caches)
    assert Target.parse("native") == target == Target.parse("cpu")


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_includes_those_before_it(level: str) -> None:
    target = Target.parse(f"cpu:{level}")
    assert target.level == level
    names = list(LEVELS)
    below = names[: names.index(level) + 1]
    assert target.lacks(*below, *(f for n in below for f in LEVELS[n])) is None


def test_several_levels_mean_the_highest() -> None:
    assert Target.parse("cpu:avx512,amx").level == "amx"
    assert Target.parse("cpu:amx, scalar").level == "amx"


def test_lacks_gives_a_reason() -> None:
    reason = Target.parse("cpu:avx2").lacks("avx2", "amx_tile")
    assert reason == "cpu:avx2 has no amx_tile"


def test_more_capable_is_faster_and_differs_in_key() -> None:
    targets = [Target.parse(f"cpu:{level}") for level in LEVELS]
    speeds = [t.peak_of("bf16") for t in targets]
    assert speeds == sorted(speeds)
    assert len({t.key for t in targets}) == len(targets)


def test_cores_scale_the_peak() -> None:
    one, four = Target.parse("cpu:avx2,cores=1"), Target.parse("cpu:avx2,cores=4")
    assert four.peak["f32"] == 4 * one.peak["f32"] and four.cores == 4
    assert Target.parse("cpu:cores=3").level == Target.detect().level


@pytest.mark.parametrize(
    "text", ["tpu", "cpu:avx1024", "cpu:cores=0", "cpu:cores=x", "native:x", ""]
)
def test_unknown_targets_list_what_is_possible(text: str) -> None:
    with pytest.raises(BadOption, match="avx512_bf16") as error:
        Target.parse(text)
    assert repr(text) in str(error.value)


def test_a_partial_avx512_is_not_the_level() -> None:
    made = Target._cpu("x", "x86_64", ["avx2", "fma", "f16c", "avx512f"], 2, (1, 2, 3))
    assert made.level == "avx2" and made.lacks("avx512") == "x has no avx512"
    assert hash(made) == hash(Target._cpu("x", "x86_64", made.features, 2, (1, 2, 3)))


def test_a_target_says_what_it_is() -> None:
    text = str(Target.parse("cpu:avx2,cores=3"))
    assert "(avx2, 3 cores, about f32 " in text and text.endswith(" GFLOP/s)")


# GFLOP/s of one core and what else a level has: the figures that choices between forms rest on
LIMITS = {
    "scalar": (128, "f32 24 f64 12 bf16 12 f16 12 i8 24"),
    "avx2": (256, "f32 96 f64 48 bf16 72 f16 72 i8 192"),
    "avx512": (512, "f32 192 f64 96 bf16 144 f16 144 i8 768"),
    "avx512_bf16": (512, "f32 192 f64 96 bf16 384 f16 144 i8 768"),
    "amx": (512, "f32 192 f64 96 bf16 3072 f16 144 i8 6144"),
}


@pytest.mark.parametrize("level", LIMITS)
@pytest.mark.parametrize("cores", [1, 4])
def test_limits_of_a_level(level: str, cores: int) -> None:
    bits, peak = LIMITS[level]
    target, words = Target.parse(f"cpu:{level},cores={cores}"), peak.split()
    assert target.level == level and target.cores == cores and target.vector_bits == bits
    assert target.peak == {
        d: float(n) * cores for d, n in zip(words[::2], words[1::2], strict=True)
    }
    assert target.caches == (32 << 10, 1 << 20, 16 << 20) and target.fast_memory == 1 << 20
    assert target.bandwidth == 15 * cores and target.launch_cost == 2e-6
    assert target.kind == "cpu" and target.arch == "x86_64" and target.name == f"cpu:{level}"


def test_a_socket_levels_off() -> None:
    assert [Target.parse(f"cpu:avx2,cores={n}").bandwidth for n in (13, 14, 64)] == [195, 200, 200]


def test_a_target_in_words() -> None:
    assert str(Target.parse("cpu:avx2,cores=2")) == (
        "cpu:avx2 (avx2, 2 cores, about f32 192, bf16 144 GFLOP/s)"
    )
    assert str(Target.parse("cuda:sm90")) == (
        "cuda:sm90 (sm90, 132 cores, about f32 67000, bf16 989000 GFLOP/s)"
    )


def test_what_compiled_code_depends_on() -> None:
    target = Target.parse("cpu:avx2,cores=2")
    assert target.key == "cpu:x86_64:2:32768,1048576,16777216:avx2,f16c,fma,scalar"
    asked = replace(target, batch_invariant=True)
    assert asked.key == f"{target.key}:batch_invariant"
    assert target.lacks("avx2") is None
    assert target.lacks("avx2", "amx", "sse9") == "cpu:avx2 has no amx, sse9"


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is read in place of the root of the file system."""
    monkeypatch.setattr(module, "Path", lambda path: tmp_path / str(path).lstrip("/"))
    return tmp_path


def test_what_linux_tells_of_a_processor(system: Path) -> None:
    read = module._machine.__wrapped__
    assert read() == ((), "")
    (system / "proc").mkdir()
    file = system / "proc/cpuinfo"
    file.write_text(
        "processor\t: 0\nmodel name\t: One: fast\nflags\t\t: fma avx2\n\n"
        "processor\t: 1\nmodel name\t: Two\nflags\t\t: sse\n"
    )
    assert read() == (("fma", "avx2"), "One: fast")
    file.write_text("processor : 0\nFeatures : fp asimd\n")
    assert read() == (("fp", "asimd"), "")


def test_what_linux_tells_of_caches(system: Path) -> None:
    read = module._cache_sizes.__wrapped__
    assert read() == (32 << 10, 1 << 20, 16 << 20)
    told = [("1", "Data", "48K"), ("1", "Instruction", "64K"), ("2", "Unified", "2M"),
            ("3", "Unified", "many"), ("4", "Unified", "512M"), ("0", "Data", "1K"),
            ("1", "Data", None)]  # fmt: skip
    for index, (level, kind, size) in enumerate(told):
        folder = system / f"sys/devices/system/cpu/cpu0/cache/index{index}"
        folder.mkdir(parents=True)
        (folder / "level").write_text(f"{level}\n")
        (folder / "type").write_text(f"{kind}\n")
        if size is not None:
            (folder / "size").write_text(f"{size}\n")
    assert read() == (48 << 10, 2 << 20, 16 << 20)
    (system / "sys/devices/system/cpu/cpu0/cache/index3/size").write_text("64M\n")
    assert read() == (48 << 10, 2 << 20, 64 << 20)


@pytest.mark.parametrize(
    ("told", "arch"),
    [("AMD64", "x86_64"), ("x86_64", "x86_64"), ("arm64", "aarch64"), ("riscv64", "riscv64")],
)
def test_architectures_by_one_name(told: str, arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: told)
    assert module._arch() == arch


def test_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert module._cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert module._cores() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert module._cores() == 1


def test_a_machine_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_machine", lambda: ((), ""))
    monkeypatch.setattr(module, "_arch", lambda: "riscv64")
    found = Target.detect()
    assert (found.name, found.arch, found.level) == ("this riscv64", "riscv64", "scalar")
    assert Target._cpu("x", "x86_64", [], 1, (1 << 10,)).fast_memory == 1 << 20
