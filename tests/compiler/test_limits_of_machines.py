"""What is believed of machines: figures of datasheets, and what estimates assume of a processor."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from infopt.compiler.target import LEVELS, Target
from infopt.compiler.target_gpu import ROWS, as_product, row_of
from infopt.compiler.types import dtype_name

K, M = 1 << 10, 1 << 20
# product, multiprocessors, shared memory, caches, bandwidth, warp, registers, then TFLOP/s
GPUS = {
    "cuda:sm80": (
        "A100 SXM 80 GB", 108, 163 * K, (192 * K, 40 * M, 40 * M), 2039, 32, 65536,
        {"f32": 19.5, "f64": 9.7, "tf32": 156, "bf16": 312, "f16": 312, "i8": 624},
    ),
    "cuda:sm90": (
        "H100 SXM", 132, 227 * K, (256 * K, 50 * M, 50 * M), 3352, 32, 65536,
        {"f32": 67, "f64": 34, "tf32": 495, "bf16": 989, "f16": 989, "fp8": 1979, "i8": 1979},
    ),
    "cuda:sm100": (
        "B200", 148, 227 * K, (256 * K, 126 * M, 126 * M), 8000, 32, 65536,
        {"f32": 75, "f64": 37, "tf32": 1100, "bf16": 2250, "f16": 2250, "fp8": 4500, "i8": 4500},
    ),
    "hip:gfx942": (
        "MI300X", 304, 64 * K, (96 * K, 4 * M, 256 * M), 5300, 64, 131072,
        {"f32": 163, "f64": 82, "tf32": 654, "bf16": 1307, "f16": 1307, "fp8": 2615, "i8": 2615},
    ),
}  # fmt: skip
FEATURES = {
    "cuda:sm80": "cuda sm80 bf16 async_copy",
    "cuda:sm90": "cuda sm80 bf16 async_copy sm90 fp8 descriptors wgmma",
    "cuda:sm100": "cuda sm80 bf16 async_copy sm90 fp8 descriptors sm100 tcgen05",
    "hip:gfx942": "hip gfx942 bf16 fp8",
}
# FLOP per cycle and core, and the bits of a vector
CPUS = {
    "scalar": ({"f32": 8, "f64": 4, "bf16": 4, "f16": 4, "i8": 8}, 128),
    "avx2": ({"f32": 32, "f64": 16, "bf16": 24, "f16": 24, "i8": 64}, 256),
    "avx512": ({"f32": 64, "f64": 32, "bf16": 48, "f16": 48, "i8": 256}, 512),
    "avx512_bf16": ({"f32": 64, "f64": 32, "bf16": 128, "f16": 48, "i8": 256}, 512),
    "amx": ({"f32": 64, "f64": 32, "bf16": 1024, "f16": 48, "i8": 2048}, 512),
}


@pytest.mark.parametrize("name", GPUS)
def test_what_datasheets_say(name: str) -> None:
    product, count, shared, caches, bandwidth, warp, registers, peak = GPUS[name]
    row, target = ROWS[name], Target.parse(name)
    assert (row.product, row.warp, row.registers) == (product, warp, registers)
    assert (row.threads, row.blocks) == (2048, 32)
    assert (target.cores, target.fast_memory, target.caches) == (count, shared, caches)
    assert target.bandwidth == bandwidth and target.vector_bits == 32 * warp
    assert target.peak == {dtype: 1000 * tera for dtype, tera in peak.items()}
    assert target.features == set(FEATURES[name].split()) and target.launch_cost == 2.5e-6


@pytest.mark.parametrize(
    ("arch", "runs"),
    [("sm86", "sm80"), ("sm87", "sm80"), ("sm89", "sm80"), ("sm103", "sm100"), ("sm75", None)],
)
def test_whose_code_other_gpus_run(arch: str, runs: str | None) -> None:
    row = row_of("cuda", arch)
    assert (row and row.arch) == runs and row_of("hip", arch) is None


def test_what_is_known_of_products() -> None:
    small = as_product(ROWS["cuda:sm80"], "NVIDIA A100-SXM4-40GB", 108)
    assert (small.product, small.bandwidth) == ("A100 SXM 40 GB", 1555)
    assert as_product(ROWS["cuda:sm90"], "NVIDIA H200", 132).product == "H200 SXM"


def test_an_amd_gpu_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(name="AMD", gcnArchName="gfx942:sramecc+", multi_processor_count=228)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    monkeypatch.setattr(torch.version, "hip", "6.0")
    found = Target.parse("hip")
    assert (found.name, found.cores) == ("hip:gfx942", 228)


@pytest.mark.parametrize("level", LEVELS)
def test_what_is_assumed_of_a_processor(level: str) -> None:
    per_cycle, bits = CPUS[level]
    target = Target.parse(f"cpu:{level},cores=2")
    assert target.peak == {dtype: 2 * 3.0 * flop for dtype, flop in per_cycle.items()}
    assert target.vector_bits == bits and target.launch_cost == 2e-6
    assert target.caches == (32 * K, M, 16 * M) and target.fast_memory == M
    assert (target.name, target.arch, target.kind) == (f"cpu:{level}", "x86_64", "cpu")
    assert target.bandwidth == 30 and Target.parse(f"cpu:{level},cores=40").bandwidth == 200
    f32, bf16 = (round(target.peak[dtype]) for dtype in ("f32", "bf16"))
    told = f"cpu:{level} ({level}, 2 cores, about f32 {f32}, bf16 {bf16} GFLOP/s)"
    assert str(target) == told
    assert target.peak_of("i64") == target.peak["f32"] != target.peak_of("i8") or level == "scalar"


def test_what_code_depends_on() -> None:
    target = Target.parse("cpu:avx2,cores=2")
    caches = "32768,1048576,16777216"
    assert target.key == f"cpu:x86_64:2:{caches}:avx2,f16c,fma,scalar"


def test_a_machine_of_one_cache() -> None:
    made = Target._cpu("small", "aarch64", [], 1, (32 * K,))
    assert made.fast_memory == M and made.level == "scalar"


def test_short_names_of_dtypes() -> None:
    names = {
        "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "i64": "int64",
        "i32": "int32", "i16": "int16", "i8": "int8", "u8": "uint8", "bool": "bool",
        "complex64": "complex64", "uint16": "uint16",
    }  # fmt: skip
    for short, name in names.items():
        assert dtype_name(getattr(torch, name)) == short
