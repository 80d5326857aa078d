"""Artifacts that hold programs for GPUs: their files, the verdicts, loading and replaying."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")
import infopt
from infopt.codegen.interpreted_device import InterpretedDevice
from infopt.runtime.cuda_device import Gpu
from infopt.runtime.errors import ArtifactCorrupt, ArtifactIncompatible
from infopt.runtime.loading import read_manifest
from infopt.runtime.plan import Plan
from infopt.runtime.verdict import CANNOT, RUNS, SLOWER, choose, verdicts

H200 = Gpu("cuda", 0, "sm90", "H200")
A10 = Gpu("cuda", 1, "sm86", "A10")
MI300X = Gpu("hip", 0, "gfx942", "MI300X")


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(16, 32)

    def forward(self, x):
        return torch.cumsum(self.inner(x).sigmoid() * 2, 0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    net, device = Net().eval(), InterpretedDevice()
    rows = torch.export.Dim("rows", max=64)
    compiled = infopt.compile(
        net,
        (torch.randn(5, 16),),
        target="cuda:sm90;hip:gfx942",
        device=device,
        dynamic_shapes=({0: rows},),
    )
    path = tmp_path_factory.mktemp("gpu") / "net"
    compiled.save(path, targets=("cuda:sm80;cpu:scalar", "cpu:avx2"), golden=1)
    return path, net, device


def test_it_holds_machine_code_of_every_target(saved):
    path, _, _ = saved
    manifest = read_manifest(path)
    assert {v.level for v in manifest.variants} == {"sm90", "gfx942", "sm80", "scalar", "avx2"}
    for entry in manifest.variants:
        if entry.level not in ("scalar", "avx2"):
            kind = ".hsaco" if entry.level == "gfx942" else ".cubin"
            assert len(entry.libraries) >= 2
            for file in entry.libraries.values():
                assert file.startswith(f"kernels/{entry.level}/") and file.endswith(kind)
                assert (path / file).read_bytes()[:4] == b"\x7fELF"
    plan = Plan.from_json((path / "plans/sm90.json").read_text())
    assert all(k.registers > 0 and k.spills == 0 and k.absent == 2 for k in plan.kernels)


def test_verdicts_for_other_machines(saved):
    manifest = read_manifest(saved[0])

    def found(*gpus):
        return {v.program: (v.answer, v.reason) for v in verdicts(manifest, gpus=gpus)}

    assert found(H200)["sm90"] == (RUNS, "")
    assert found(H200)["sm80"] == (CANNOT, "needs a GPU sm80, found sm90")
    assert found(A10)["sm80"] == (SLOWER, "made for sm80, the GPU is sm86")
    assert found(A10)["sm90"] == (CANNOT, "needs a GPU sm90, found sm86")
    assert found(A10, H200)["sm90"] == (RUNS, "")
    assert found(MI300X)["gfx942"] == (RUNS, "")
    assert found()["sm90"] == (CANNOT, "needs a GPU sm90, found none that torch can use")
    assert choose(manifest, (A10, H200)).gpu == H200 and choose(manifest, (A10,)).gpu == A10
    assert choose(manifest, ()).program in ("avx2", "scalar")
    with pytest.raises(ArtifactIncompatible, match=r"for this GPU .*sm90 needs a GPU sm90"):
        choose(
            dataclasses.replace(manifest, reference=None), (Gpu("cuda", 0, "sm75", "T4"),), "gpu"
        )


def test_it_runs_on_the_device_given(saved):
    path, net, device = saved
    program = infopt.load(path, device=device, check=True)
    assert program.level == "sm90" and program.is_native
    x = torch.randn(9, 16)
    torch.testing.assert_close(program(x), net(x).detach())
    other = Net().eval()
    program.load_weights(other.state_dict())
    torch.testing.assert_close(program(x), other(x).detach())


def test_it_runs_on_the_processor(saved):
    path, net, _ = saved
    program = infopt.load(path, device="cpu", check=True)
    assert program.level in ("avx2", "scalar")
    x = torch.randn(9, 16)
    torch.testing.assert_close(program(x), net(x).detach())


def test_a_gpu_that_is_not_there_is_a_verdict(saved):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ArtifactIncompatible, match="found none that torch can use"):
        infopt.load(saved[0], device="cuda")


def test_changed_machine_code_is_found(saved, tmp_path):
    import shutil

    path = tmp_path / "changed"
    shutil.copytree(saved[0], path)
    file = next((path / "kernels/sm90").glob("*.cubin"))
    code = bytearray(file.read_bytes())
    code[len(code) // 2] ^= 1
    file.write_bytes(code)
    with pytest.raises(ArtifactCorrupt, match=r"kernels/sm90/.*\.cubin"):
        infopt.load(path)


def test_loading_needs_no_triton(saved):
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "from infopt.runtime.loading import load\n"
        f"import torch; p = load({str(saved[0])!r}); p(torch.randn(3, 16))\n"
        "assert not any(m.startswith('infopt.c') for m in sys.modules), 'compiler or codegen'\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_inspect_shows_what_kernels_take(saved, capsys):
    from infopt.compiler.cli import main

    assert main(["inspect", str(saved[0])]) == 0
    text = capsys.readouterr().out
    assert "sm90 for a GPU" in text and "registers" in text and "linear_tiles" in text
    assert main(["inspect", str(saved[0]), "--json"]) == 0
    table = json.loads(capsys.readouterr().out)["kernels"]
    assert {row["level"] for row in table} == {"sm90", "sm80", "gfx942"}
    assert all(row["registers"] > 0 and row["occupancy"] > 0 for row in table)
