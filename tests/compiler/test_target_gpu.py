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
