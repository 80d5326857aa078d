"""Where a program is compiled for: the machine its example inputs are on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from infopt.compiler import machine
from infopt.compiler.errors import BadOption, TraceDeclined
from infopt.compiler.machine import machine_for
from infopt.compiler.target import Target
from tests.compiler.elsewhere import there


def test_inputs_on_the_cpu_are_for_this_machine() -> None:
    for values in ([], [3, "text"], [torch.ones(2), 5]):
        found = machine_for(values)
        assert found.target == Target.detect() and found.device is None


def test_the_gpu_that_has_the_inputs_runs_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CudaDevice", lambda index: f"device {index}")
    monkeypatch.setattr(machine, "Target", SimpleNamespace(of_gpu=lambda index: f"GPU {index}"))
    for index in (0, 1, 3):
        found = machine_for([4, there(torch.ones(2), index)])
        assert (found.target, found.device) == (f"GPU {index}", f"device {index}")
    found = machine_for([there(torch.ones(2), None)])
    assert (found.target, found.device) == ("GPU 0", "device 0")


def test_other_places_are_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TraceDeclined, match="the inputs are on meta, expected the CPU or a GPU"):
        machine_for([torch.empty(2, device="meta")])
    with pytest.raises(TraceDeclined, match="several devices: cpu, meta"):
        machine_for([torch.empty(2), torch.empty(2, device="meta")])

    def unknown(index: int) -> None:
        raise BadOption("there is no row for sm10")

    monkeypatch.setattr(machine, "Target", SimpleNamespace(of_gpu=unknown))
    with pytest.raises(TraceDeclined, match="there is no row for sm10"):
        machine_for([there(torch.ones(2))])
