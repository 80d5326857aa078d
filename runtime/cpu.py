"""What this machine's processor is: instruction-set features, levels, cores, caches."""

from __future__ import annotations

import ctypes
import math
import os
import platform
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# From the least to the most capable. A kernel library is compiled for one level and needs all of
# that level's features, named as in /proc/cpuinfo.
_AVX2 = ("avx2", "fma", "f16c")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni")
_AVX512_BF16 = (*_AVX512, "avx512_bf16")
FEATURES: dict[str, tuple[str, ...]] = {
    "scalar": (),
    "avx2": _AVX2,
    "avx512": _AVX512,
    "avx512_bf16": _AVX512_BF16,
    "amx": (*_AVX512_BF16, "amx_tile", "amx_bf16", "amx_int8"),
}
LEVELS = tuple(FEATURES)

_ARCH_REQ_XCOMP_PERM, _XTILEDATA, _SYS_ARCH_PRCTL = 0x1023, 18, 158


@dataclass(frozen=True)
class Cpu:
    """arch: "x86_64", "aarch64", ...; cores: usable by this process; caches: bytes by level.

    Cache sizes are those one core sees (level 3 is usually shared); {} where unknown.
    """

    arch: str
    name: str
    features: frozenset[str]
    cores: int
    caches: dict[int, int]

    @property
    def level(self) -> str:
        """The most capable level this machine can run."""
        return self.levels[-1]

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels this machine can run, the most capable last."""
        return tuple(level for level in LEVELS if not self.lacks(level))

    def lacks(self, level: str) -> tuple[str, ...]:
        """The features that `level` needs and this machine does not have."""
        return missing(FEATURES[level], self.features)


def missing(needed: Collection[str], features: Collection[str]) -> tuple[str, ...]:
    return tuple(f for f in needed if f not in features)


@cache
def detect() -> Cpu:
    """This machine. Asks the kernel for the AMX registers when the processor has them."""
    info = _cpuinfo()
    features = frozenset(info.get("flags", info.get("Features", "")).split())
    if "amx_tile" in features and not permit_amx():
        features = frozenset(f for f in features if not f.startswith("amx"))
    arch = {"amd64": "x86_64", "arm64": "aarch64"}.get(
        platform.machine().lower(), platform.machine().lower()
    )
    name = info.get("model name") or platform.processor() or arch
    return Cpu(arch, name, features, usable_cores(), _caches())


def permit_amx() -> bool:
    """Linux gives a process the AMX tile registers only on request; True if it did."""
    try:
        syscall = ctypes.CDLL(None, use_errno=True).syscall
        return syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA) == 0
    except (OSError, AttributeError):
        return False


def usable_cores() -> int:
    """Cores this process may use: its affinity, limited by the container's quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota, period, *_ = *_read("/sys/fs/cgroup/cpu.max").split(), "", ""
    if quota.isdecimal() and period.isdecimal():
        cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo."""
    found: dict[str, str] = {}
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    return found


def _caches() -> dict[int, int]:
    sizes = {}
    for index in range(8):
        folder = f"/sys/devices/system/cpu/cpu0/cache/index{index}"
        size, level = _read(f"{folder}/size").strip(), _read(f"{folder}/level").strip()
        if level.isdecimal() and _read(f"{folder}/type").strip() in ("Data", "Unified"):
            unit = {"K": 1 << 10, "M": 1 << 20}.get(size[-1:], 1)
            sizes[int(level)] = int(size.rstrip("KM") or 0) * unit
    return sizes


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
