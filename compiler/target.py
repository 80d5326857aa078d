"""What a machine is: instruction sets, cores, caches, and rough limits for estimates."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType

import torch

from infopt.compiler import target_gpu
from infopt.compiler.errors import BadOption

# From the least to the most capable; each level includes the ones before it. For each: the
# features that make it, as Linux names them, and FLOP per cycle and core in each dtype.
LEVELS: Mapping[str, tuple[str, ...]] = {
    "scalar": (),
    "avx2": ("avx2", "fma", "f16c"),
    "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"),
    "avx512_bf16": ("avx512_bf16",),
    "amx": ("amx_tile", "amx_bf16", "amx_int8"),
}
_FLOP_PER_CYCLE: Mapping[str, Mapping[str, int]] = {
    "scalar": {"f32": 8, "f64": 4, "bf16": 4, "f16": 4, "i8": 8},
    "avx2": {"f32": 32, "f64": 16, "bf16": 24, "f16": 24, "i8": 64},
    "avx512": {"f32": 64, "f64": 32, "bf16": 48, "f16": 48, "i8": 256},
    "avx512_bf16": {"f32": 64, "f64": 32, "bf16": 128, "f16": 48, "i8": 256},
    "amx": {"f32": 64, "f64": 32, "bf16": 1024, "f16": 48, "i8": 2048},
}
_VECTOR_BITS = {"scalar": 128, "avx2": 256}
_ASSUMED_HZ = 3e9
_ASSUMED_GB_PER_CORE = 15.0  # what one core draws from memory; a socket levels off
_ASSUMED_GB_PER_SOCKET = 200.0
_ASSUMED_CACHES = (32 << 10, 1 << 20, 16 << 20)
_CPU_LAUNCH = 2e-6  # waking the threads for one step, seconds


@dataclass(frozen=True)
class Target:
    """A machine to compile for. Limits are estimates for comparing choices, not measurements.

    kind        "cpu" or "gpu"; of a GPU, cores are its multiprocessors
    features    instruction sets as Linux names them, and the names of the levels they complete
    caches      bytes of (L1 data, L2, L3) as one core sees them
    fast_memory bytes one core can keep close: the size blocks should have; on a GPU, shared memory
    peak        dtype name -> GFLOP/s of all cores together
    bandwidth   GB/s of main memory
    launch_cost seconds to start one step
    """

    name: str
    kind: str
    arch: str
    features: frozenset[str]
    cores: int
    vector_bits: int
    caches: tuple[int, ...]
    fast_memory: int
    peak: Mapping[str, float] = field(hash=False)
    bandwidth: float
    launch_cost: float
    batch_invariant: bool = False  # asked of kernels: a row's result depends on that row alone

    @classmethod
    def detect(cls) -> Target:
        """This machine, as the operating system describes it."""
        features, model = _machine()
        arch = _arch()
        return cls._cpu(model or f"this {arch}", arch, features, _cores(), _cache_sizes())

    @classmethod
    def parse(cls, text: str) -> Target:
        """The target that a string names.

        "native", "cpu"           this machine
        "cpu:avx512,amx"          an x86-64 machine of the highest level listed, this many cores
        "cpu:avx2,cores=8"        the same with another number of cores
        "cuda:sm90", "hip:gfx942" a GPU of this architecture (target_gpu.py), here or elsewhere
        "cuda", "hip"             the GPU of this machine

        Raises BadOption for anything else, listing what is possible.
        """
        kind, _, rest = text.strip().partition(":")
        if kind == "native" and not rest:
            return cls.detect()
        if kind in ("cuda", "hip"):
            return cls._named_gpu(text.strip(), rest)
        if kind != "cpu":
            raise BadOption(f"target={text!r}: expected {_possible()}")
        levels, cores = ["scalar"], _cores()
        words = [w.strip() for w in rest.split(",")] if rest else []
        for word in words:
            if word in LEVELS:
                levels.append(word)
            elif word.startswith("cores=") and word[6:].isdigit() and int(word[6:]):
                cores = int(word[6:])
            else:
                raise BadOption(f"target={text!r}: {word!r} is unknown, expected {_possible()}")
        if not any(w in LEVELS for w in words):
            own = cls.detect()
            return cls._cpu(own.name, own.arch, own.features, cores, own.caches)
        names = list(LEVELS)
        highest = max(levels, key=names.index)
        features = [f for n in names[: names.index(highest) + 1] for f in LEVELS[n]]
        return cls._cpu(f"cpu:{highest}", "x86_64", features, cores, _ASSUMED_CACHES)

    @classmethod
    def parse_list(cls, text: str) -> tuple[Target, ...]:
        """Several targets, separated by semicolons: "cpu:avx512;cuda:sm90". Raises BadOption."""
        return tuple(cls.parse(part) for part in text.split(";"))

    @classmethod
    def of_gpu(cls, index: int = 0) -> Target:
        """A GPU of this machine, by torch's number. Raises BadOption where there is none, or none
        of a known architecture."""
        if not torch.cuda.is_available() or index >= torch.cuda.device_count():
            raise BadOption(f"this machine has no GPU {index} that torch can use")
        found = torch.cuda.get_device_properties(index)
        if torch.version.hip:
            platform, arch = "hip", found.gcnArchName.partition(":")[0]
        else:
            platform, arch = "cuda", f"sm{found.major}{found.minor}"
        row = target_gpu.row_of(platform, arch)
        if row is None:
            known = ", ".join(target_gpu.ROWS)
            raise BadOption(f"GPU {index} is a {found.name} ({arch}): expected one of {known}")
        return cls._gpu(target_gpu.as_product(row, found.name, found.multi_processor_count))

    @classmethod
    def _named_gpu(cls, text: str, arch: str) -> Target:
        if not arch:
            return cls.of_gpu()
        if text not in target_gpu.ROWS:
            raise BadOption(f"target={text!r}: {arch!r} is unknown, expected {_possible()}")
        return cls._gpu(target_gpu.ROWS[text])

    @classmethod
    def _gpu(cls, row: target_gpu.Gpu) -> Target:
        return cls(
            name=row.name,
            kind="gpu",
            arch=row.arch,
            features=frozenset(row.features),
            cores=row.multiprocessors,
            vector_bits=32 * row.warp,
            caches=row.cache,
            fast_memory=row.shared,
            peak=MappingProxyType({d: tera * 1e3 for d, tera in row.peak.items()}),
            bandwidth=row.bandwidth,
            launch_cost=target_gpu.LAUNCH_COST,
        )

    @classmethod
    def _cpu(
        cls, name: str, arch: str, features: Iterable[str], cores: int, caches: tuple[int, ...]
    ) -> Target:
        found = frozenset(features)
        level = _level(found)
        names = list(LEVELS)
        found |= frozenset(names[: names.index(level) + 1])
        per_cycle = _FLOP_PER_CYCLE[level]
        return cls(
            name=name,
            kind="cpu",
            arch=arch,
            features=found,
            cores=cores,
            vector_bits=_VECTOR_BITS.get(level, 512),
            caches=caches,
            fast_memory=caches[1] if len(caches) > 1 else _ASSUMED_CACHES[1],
            peak=MappingProxyType({d: n * cores * _ASSUMED_HZ / 1e9 for d, n in per_cycle.items()}),
            bandwidth=min(_ASSUMED_GB_PER_CORE * cores, _ASSUMED_GB_PER_SOCKET),
            launch_cost=_CPU_LAUNCH,
        )

    @property
    def level(self) -> str:
        """The instruction-set level that kernels for this machine are built at."""
        return _level(self.features) if self.kind == "cpu" else self.arch

    @property
    def key(self) -> str:
        """What compiled code depends on, as text."""
        features = ",".join(sorted(self.features))
        caches = ",".join(map(str, self.caches))
        asked = ":batch_invariant" if self.batch_invariant else ""
        return f"{self.kind}:{self.arch}:{self.cores}:{caches}:{features}{asked}"

    def lacks(self, *features: str) -> str | None:
        """None where the target has all of these features or levels, else the reason against it."""
        missing = [f for f in features if f not in self.features]
        return f"{self.name} has no {', '.join(missing)}" if missing else None

    def peak_of(self, dtype: str) -> float:
        """GFLOP/s in a dtype; integers and bools count as f32."""
        return self.peak.get(dtype, self.peak["f32"])

    def __str__(self) -> str:
        peak = ", ".join(f"{d} {self.peak[d]:.0f}" for d in ("f32", "bf16") if d in self.peak)
        return f"{self.name} ({self.level}, {self.cores} cores, about {peak} GFLOP/s)"


def _level(features: frozenset[str]) -> str:
    best = "scalar"
    for name, needed in LEVELS.items():
        if not features.issuperset(needed):
            break
        best = name
    return best


def _possible() -> str:
    return (
        "'native', 'cpu', or 'cpu:' followed by levels and options separated by commas: "
        f"{', '.join(LEVELS)}, cores=N; or a GPU: {', '.join(target_gpu.ROWS)}"
    )


def _arch() -> str:
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def _machine() -> tuple[tuple[str, ...], str]:
    """(features, model name) of this machine; without /proc the level is scalar."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return (), ""
    features: tuple[str, ...] = ()
    model = ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features") and not features:
            features = tuple(value.split())
        elif key.strip() == "model name" and not model:
            model = value.strip()
    return features, model


@cache
def _cache_sizes() -> tuple[int, ...]:
    """Bytes of L1 data, L2 and L3, from the kernel; typical ones where it does not say."""
    sizes = list(_ASSUMED_CACHES)
    units = {"K": 1 << 10, "M": 1 << 20}
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            level = int((folder / "level").read_text())
            kind = (folder / "type").read_text().strip()
            text = (folder / "size").read_text().strip()
        except (OSError, ValueError):
            continue
        if kind != "Instruction" and 1 <= level <= 3 and text[:-1].isdigit():
            sizes[level - 1] = int(text[:-1]) * units.get(text[-1], 1)
    return tuple(sizes)
