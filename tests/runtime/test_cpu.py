"""The processor: levels follow from features, and this machine is described truthfully."""

import os
import platform
from itertools import pairwise

import pytest
import torch

from infopt.runtime import cpu
from infopt.runtime.cpu import FEATURES, LEVELS, Cpu


def of(*features):
    return Cpu("x86_64", "test", frozenset(features), 2, {})


def test_levels_are_ordered_and_each_includes_the_one_before():
    assert LEVELS == ("scalar", "avx2", "avx512", "avx512_bf16", "amx")
    for lower, higher in pairwise(LEVELS):
        assert set(FEATURES[lower]) < set(FEATURES[higher])


@pytest.mark.parametrize("level", LEVELS)
def test_the_level_is_the_best_whose_features_are_there(level):
    machine = of(*FEATURES[level], "sse4_2")
    assert machine.level == level
    assert machine.levels == LEVELS[: LEVELS.index(level) + 1]
    assert machine.lacks(level) == ()


def test_what_is_missing_is_named():
    assert of(*FEATURES["avx512"]).lacks("avx512_bf16") == ("avx512_bf16",)
    assert of("avx2", "f16c").lacks("avx2") == ("fma",)
    assert of("avx2", "f16c").level == "scalar"


def test_this_machine():
    machine = cpu.detect()
    assert machine.arch == {"AMD64": "x86_64", "arm64": "aarch64"}.get(
        platform.machine(), platform.machine()
    )
    assert 1 <= machine.cores <= (os.cpu_count() or 1)
    assert all(size >= 4096 for size in machine.caches.values())
    capability = torch.backends.cpu.get_cpu_capability()
    if capability.startswith("AVX512"):
        assert "avx512f" in machine.features
    elif capability == "AVX2":
        assert "avx2" in machine.features


def test_amx_needs_the_permission_of_the_system(monkeypatch):
    flags = " ".join(FEATURES["amx"])
    monkeypatch.setattr(cpu, "_cpuinfo", lambda: {"flags": flags, "model name": "test"})
    for granted, level in ((True, "amx"), (False, "avx512_bf16")):
        monkeypatch.setattr(cpu, "permit_amx", lambda granted=granted: granted)
        cpu.detect.cache_clear()
        assert cpu.detect().level == level
    monkeypatch.undo()
    cpu.detect.cache_clear()


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("150000 100000", 2), ("1000 100000", 1), ("", 8), ("odd", 8)],
)
def test_the_quota_of_a_container_limits_the_cores(monkeypatch, quota, cores):
    monkeypatch.setattr(cpu, "_read", lambda path: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert cpu.usable_cores() == cores
