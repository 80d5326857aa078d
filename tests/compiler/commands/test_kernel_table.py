"""What GPU kernels take of a multiprocessor."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infopt.compiler.commands import inspect as inspect_command
from infopt.compiler.commands import kernel_table as module
from infopt.compiler.commands.kernel_table import HEADER, KernelRow, kernel_table, occupancy
from infopt.compiler.target_gpu import ROWS
from infopt.runtime.plan import LaunchStep

SM90 = ROWS["cuda:sm90"]  # 2048 threads, 65536 registers, 32 blocks; 227 KiB of shared memory


def kernel(entry: str = "k", threads: int = 128, registers: int = 32, shared: int = 0) -> Any:
    return SimpleNamespace(
        entry=entry, threads=threads, registers=registers, shared=shared, spills=4
    )


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "blocks"),
    [
        (128, 32, 0, 16),  # as many as threads fit
        (1024, 16, 0, 2),
        (32, 16, 0, 32),  # as many as blocks fit
        (128, 64, 0, 8),  # as many as registers fit
        (128, 57, 0, 8),  # which come in eights
        (128, 56, 0, 9),
        (128, 65, 0, 7),
        (128, 0, 0, 16),  # not known
        (1024, 255, 0, 0),  # not even one
        (128, 32, 227 << 10, 1),  # as many as shared memory fits
        (128, 32, 113 << 10, 2),  # with a KiB for every block: 2 * (113 + 1) = 227 + 1
        (128, 32, (113 << 10) + 1, 1),
        (128, 32, 1, 16),
    ],
)
def test_what_is_scarcest_limits_the_blocks(
    threads: int, registers: int, shared: int, blocks: int
) -> None:
    found = occupancy(kernel("k", threads, registers, shared), SM90)
    assert found == blocks * threads / 2048


def test_a_block_that_does_not_fit_is_not_resident() -> None:
    assert occupancy(kernel(shared=(228 << 10) + 1), SM90) == 0


def test_the_limits_are_those_of_the_gpu() -> None:
    wide = ROWS["cuda:sm86"] if "cuda:sm86" in ROWS else ROWS["cuda:sm80"]
    assert occupancy(kernel(threads=64, registers=16), wide) == (
        min(wide.blocks, wide.threads // 64) * 64 / wide.threads
    )


def plans(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two GPU programs and one of a CPU in a manifest, with their plans in place of files."""

    def launched(index: int) -> LaunchStep:
        step = LaunchStep.__new__(LaunchStep)
        object.__setattr__(step, "device_kernel", index)
        return step

    other = SimpleNamespace(device_kernel=0)  # a step of another kind
    found = {
        "sm90": SimpleNamespace(
            kernels=[kernel("rare"), kernel("often", 1024, 64)],
            steps=[launched(1), other, launched(0), launched(1), other, other],
        ),
        "sm80": SimpleNamespace(kernels=[kernel("only")], steps=[]),
    }
    monkeypatch.setattr(module, "read_plan", lambda path, entry: found[entry.level])
    return SimpleNamespace(variants=[SimpleNamespace(level=n) for n in ("sm90", "avx2", "sm80")])


def test_those_launched_most_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = kernel_table(Path("artifact"), plans(monkeypatch))
    assert [(r.level, r.kernel, r.launches) for r in rows] == [
        ("sm90", "often", 2), ("sm90", "rare", 1), ("sm80", "only", 0),
    ]  # fmt: skip
    assert rows[0] == KernelRow("sm90", "often", 2, 1024, 64, 4, 0, 0.5)


def test_inspect_prints_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = KernelRow("sm90", "often", 2, 1024, 64, 4, 512, 0.5)
    assert row.cells() == ["sm90", "often", "2", "1024", "64", "4", "512", "50%"]
    monkeypatch.setattr(inspect_command, "read_manifest", lambda path: SimpleNamespace(files={}))
    monkeypatch.setattr(inspect_command, "describe", lambda manifest: "of nobody")
    monkeypatch.setattr(inspect_command, "kernel_table", lambda path, manifest: [row])
    args = SimpleNamespace(artifact="artifact", json=False)
    assert inspect_command.run(args) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == [["of", "nobody"], list(HEADER), row.cells()]
    monkeypatch.setattr(inspect_command, "kernel_table", lambda path, manifest: [])
    inspect_command.run(args)
    assert "occupancy" not in capsys.readouterr().out
