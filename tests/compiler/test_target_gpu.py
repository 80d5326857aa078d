"""GPU targets: rows, parsing, lists, and what detection makes of a device."""

from types import SimpleNamespace

import pytest
import torch

from infopt.compiler.errors import BadOption
from infopt.compiler.target import Target
from infopt.compiler.target_gpu import ROWS, as_product, row_of


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_a_target(name):
    target = Target.parse(name)
    assert target.kind == "gpu" and target.name == name and target.level == target.arch
    assert target.lacks(target.arch, "bf16") is None
    assert target.peak_of("bf16") > 5 * target.peak_of("f32") and target.bandwidth > 1000
    assert target.cores > 100 and target.fast_memory >= 64 << 10


def test_newer_ones_have_what_older_ones_have():
    assert Target.parse("cuda:sm80").lacks("fp8") == "cuda:sm80 has no fp8"
    assert Target.parse("cuda:sm100").lacks("sm80", "sm90", "fp8", "descriptors") is None
    assert Target.parse("cuda:sm100").lacks("wgmma") and Target.parse("hip:gfx942").lacks("cuda")


def test_a_list_of_targets():
    found = Target.parse_list("cpu:avx512; cuda:sm90;hip:gfx942")
    assert [t.level for t in found] == ["avx512", "sm90", "gfx942"]


@pytest.mark.parametrize("text", ["cuda:sm70", "hip:gfx900", "cuda:gfx942", "cuda:sm90,cores=3"])
def test_unknown_gpus_list_what_is_possible(text):
    with pytest.raises(BadOption, match="cuda:sm80, cuda:sm90, cuda:sm100, hip:gfx942"):
        Target.parse(text)


def test_this_machine(monkeypatch):
    device = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    monkeypatch.setattr(torch.version, "hip", None)
    assert Target.parse("cuda").bandwidth == 4800 and Target.of_gpu(0).level == "sm90"
    device.name, device.minor, device.major = "NVIDIA A10", 6, 8
    assert Target.of_gpu(0).level == "sm80"  # whose code it runs
    device.major, device.minor = 7, 0
    with pytest.raises(BadOption, match=r"NVIDIA A10 \(sm70\): expected one of"):
        Target.of_gpu(0)


def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadOption, match="no GPU 0"):
        Target.parse("cuda")


def test_products_differ_in_their_limits():
    row = row_of("cuda", "sm90")
    assert row is not None
    assert as_product(row, "NVIDIA H200", 132).bandwidth == 4800
    assert as_product(row, "NVIDIA H100 PCIe", 114).multiprocessors == 114


# Figures of the makers' data sheets, without sparsity: SMs or compute units, KiB of shared memory
# of a block, KiB of (L1 and shared memory of one, L2, last level), GB/s, of one SM (lanes of a
# warp, registers, threads), TFLOP/s.
SHEETS = {
    "cuda:sm80": (
        *(108, 163, (192, 40960, 40960), 2039, (32, 65536, 2048)),
        "f32 19.5 f64 9.7 tf32 156 bf16 312 f16 312 i8 624",
    ),
    "cuda:sm90": (
        *(132, 227, (256, 51200, 51200), 3352, (32, 65536, 2048)),
        "f32 67 f64 34 tf32 495 bf16 989 f16 989 fp8 1979 i8 1979",
    ),
    "cuda:sm100": (
        *(148, 227, (256, 129024, 129024), 8000, (32, 65536, 2048)),
        "f32 75 f64 37 tf32 1100 bf16 2250 f16 2250 fp8 4500 i8 4500",
    ),
    "hip:gfx942": (
        *(304, 64, (96, 4096, 262144), 5300, (64, 131072, 2048)),
        "f32 163 f64 82 tf32 654 bf16 1307 f16 1307 fp8 2615 i8 2615",
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_figures_are_those_of_the_data_sheets(name):
    cores, shared, caches, bandwidth, limits, peak = SHEETS[name]
    row, target, words = ROWS[name], Target.parse(name), peak.split()
    assert (row.warp, row.registers, row.threads) == limits and row.blocks == 32
    assert (target.cores, target.fast_memory) == (cores, shared << 10)
    assert target.caches == tuple(size << 10 for size in caches)
    assert target.peak == {
        d: float(tera) * 1e3 for d, tera in zip(words[::2], words[1::2], strict=True)
    }
    assert target.bandwidth == bandwidth and target.vector_bits == 32 * row.warp
    assert 1e-6 <= target.launch_cost <= 1e-5  # seconds: some microseconds for a launch


def test_figures_agree_with_each_other():
    """A multiprocessor does a whole number of operations per cycle at a clock that there is."""
    for row in ROWS.values():
        lanes = 64 if row.arch == "sm80" else 128
        lanes *= 2 if row.platform == "hip" else 1  # it issues two vectors at a time
        gigahertz = row.peak["f32"] * 1e3 / (row.multiprocessors * lanes)
        gigahertz /= 1 if row.platform == "hip" else 2  # multiply and add; counted above for hip
        assert 1.3 < gigahertz < 2.2, row.name
        assert row.peak["f64"] == pytest.approx(row.peak["f32"] / 2, rel=0.03)
        assert row.peak["bf16"] == row.peak["f16"] == pytest.approx(2 * row.peak["tf32"], rel=0.03)
        assert row.peak["i8"] == pytest.approx(2 * row.peak["bf16"], rel=0.001)
        assert row.peak.get("fp8", row.peak["i8"]) == row.peak["i8"]


@pytest.mark.parametrize(
    ("arch", "code"),
    [("sm80", "sm80"), ("sm86", "sm80"), ("sm87", "sm80"), ("sm89", "sm80"), ("sm90", "sm90"),
     ("sm100", "sm100"), ("sm103", "sm100"), ("sm75", None), ("sm120", None)],
)  # fmt: skip
def test_whose_code_an_architecture_runs(arch, code):
    row = row_of("cuda", arch)
    assert (row.arch if row else None) == code
    assert row_of("hip", "sm80") is None


@pytest.mark.parametrize(
    ("device", "arch", "product", "bandwidth"),
    [("NVIDIA H200", "sm90", "H200 SXM", 4800), ("NVIDIA H100", "sm90", "H100 SXM", 3352),
     ("NVIDIA A100-SXM4-40GB", "sm80", "A100 SXM 40 GB", 1555),
     ("NVIDIA A100-SXM4-80GB", "sm80", "A100 SXM 80 GB", 2039)],
)  # fmt: skip
def test_products(device, arch, product, bandwidth):
    row = row_of("cuda", arch)
    assert row is not None
    found = as_product(row, device, 99)
    assert (found.product, found.bandwidth, found.multiprocessors) == (product, bandwidth, 99)


def test_an_amd_device(monkeypatch):
    device = SimpleNamespace(
        name="AMD Instinct MI300X", gcnArchName="gfx942:sramecc+:xnack-", multi_processor_count=304
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert Target.parse("hip").name == "hip:gfx942"
    with pytest.raises(BadOption, match="this machine has no GPU 1 that torch can use"):
        Target.of_gpu(1)
