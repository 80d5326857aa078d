"""`python -m benchmarks gpu`: its checks and rows, on a device that the interpreter stands for."""

import json
import time

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("benchmarks")
from benchmarks import gpu, gpu_check
from benchmarks.gpu_lab import Lab
from benchmarks.gpu_rows import measure, rows
from benchmarks.report import wide_console
from infopt.codegen.gpu_tuning.clock import CallClock
from infopt.codegen.interpreted_device import InterpretedDevice
from infopt.compiler.target import Target


def lab(seconds: float = 1e6) -> Lab:
    deadline = time.perf_counter() + seconds
    target = Target.parse("cuda:sm90")
    return Lab(InterpretedDevice(), target, CallClock(), deadline, tiny=True, rounds=2)


def row(name):
    (found,) = (r for r in rows() if r.name == name)
    return found


@pytest.mark.slow
def test_every_kernel_is_compared_with_its_reference(monkeypatch):
    monkeypatch.setattr(gpu_check, "CASES", 1)
    found = gpu_check.check_kernels(lab())
    assert not [c for c in found if c["error"]]
    assert {"region chain", "linear_act"} <= {c["kernel"] for c in found}


class Wrong:
    """A program whose results are off by one."""

    def __init__(self, program):
        self.program, self.plan = program, program.plan

    def __call__(self, inputs):
        return [r + 1 for r in self.program(inputs)]


def test_a_wrong_kernel_is_found(monkeypatch):
    where, right = lab(), Lab.program

    def wrong(self, graph):
        return Wrong(right(self, graph))

    monkeypatch.setattr(Lab, "program", wrong)
    monkeypatch.setattr(gpu_check, "FLOATS", (torch.float32,))
    monkeypatch.setattr(gpu_check, "kernel_names", lambda target: ())
    assert all(c["error"] for c in gpu_check.check_kernels(where))


def test_rows_are_scored_and_printed(tmp_path):
    where, console = lab(), wide_console()
    result = gpu.run(where, console, "8192", check=False)
    (gemm,) = result["rows"]
    assert gemm["score"] > 0 and gemm["reached"] == (gemm["score"] >= gemm["goal"])
    assert set(gemm["arms"]) == {"infopt", "cublas"} and where.ceilings["flops"] > 0
    assert json.dumps(gpu.about(where) | result)
    console.print(gpu.table(result["rows"]))


@pytest.mark.slow
def test_a_share_of_bandwidth_and_a_model():
    where = lab()
    measure(where, row("copy bandwidth"))
    found = measure(where, row("decode linear qkv int8"))
    assert found["score"] > 0 and found["goal"] == 0.8, found
    found = measure(where, row("BERT-base batch 1 bf16"))
    assert found["error"] < 0.02 and found["launches"]["kernels"] > 0, found


def test_what_does_not_fit_the_time_is_left_out():
    found = measure(lab(seconds=1.0), row("gemm bf16 4096^3"))
    assert found["failure"].startswith("left out: ") and "score" not in found


def test_a_failing_arm_is_a_failure_of_its_row():
    found = measure(lab(), row("decode linear o bf16"))  # no bandwidth was measured before
    assert "KeyError" in found["failure"]


def test_without_a_gpu_it_fails(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert gpu.main([]) == 1
    assert "nothing was measured" in capsys.readouterr().out
