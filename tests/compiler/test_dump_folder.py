"""INFOPT_DUMP: what is written, per program, also where a pass fails, and never in the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import infopt
from infopt.compiler.dump_folder import program_folder, write
from infopt.compiler.errors import ContractBroken
from infopt.runtime.plan import Plan


class Net(torch.nn.Module):
    def forward(self, x):
        return torch.sin(torch.relu(torch.relu(x))) * 2


class Wrong(infopt.Rule):
    """relu(x) -> sigmoid(x)"""

    name, always, accuracy = "wrong", True, infopt.Close(1e-6, 1e-6)

    def pattern(self, o, x):
        return o.relu(x)

    def rewrite(self, o, x):
        return o.sigmoid(x)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFOPT_DUMP", str(tmp_path / "dump"))
    return tmp_path / "dump"


def test_everything_is_written(folder: Path) -> None:
    compiled = infopt.compile(Net().eval(), (torch.randn(40),))
    program = folder / "program_000"
    names = sorted(file.name for file in program.iterdir())
    passes = compiled.report.passes
    assert sum(n.endswith(".txt") for n in names) == len(passes) + 1
    assert sum(n.endswith(".diff") for n in names) == len(compiled.report.history)
    assert "aten.relu" in (program / "traced.txt").read_text()
    last = f"{len(passes) - 1:02}_{passes[-1].name.replace('-', '_')}.txt"
    assert (program / last).read_text() == str(compiled.graph)
    plan = Plan.from_json((program / "plan.json").read_text())
    assert plan.steps
    generated = [n for n in names if n.endswith(".cpp")]
    assert generated and "infopt_call" in (program / generated[0]).read_text()
    report = json.loads((program / "report.json").read_text())
    assert report["phases"].keys() >= {"trace", "passes", "lower", "build"}
    assert [p["milliseconds"] > 0 for p in report["passes"]] == [True] * len(passes)
    assert "arena" in report["memory"]
    assert "program_000" in (program / "report.html").read_text()
    infopt.compile(Net().eval(), (torch.randn(40),))
    assert (folder / "program_001" / "plan.json").exists()


def test_what_was_done_before_a_pass_failed_is_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFOPT_CERTIFY", "0")  # which would refuse the pass before anything runs
    with pytest.raises(ContractBroken, match="pass wrong promises"):
        infopt.compile(
            Net().eval(), (torch.randn(40),), passes=infopt.default_passes(add=[Wrong()])
        )
    report = json.loads((folder / "program_000" / "report.json").read_text())
    assert report["passes"] and report["passes"][-1]["name"] != "fuse-add-norm"
    assert not (folder / "program_000" / "plan.json").exists()
    (wrong,) = (folder / "program_000").glob("*_wrong.diff")
    assert "aten.sigmoid.default" in wrong.read_text()


def test_a_folder_that_cannot_be_written_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INFOPT_DUMP", str(tmp_path / "file" / "dump"))
    with caplog.at_level("WARNING", logger="infopt.compiler.dump_folder"):
        x = torch.randn(5)
        assert torch.equal(infopt.compile(Net().eval(), (x,))(x), Net()(x))
        write(tmp_path / "file", "a.txt", "text")
    assert "nothing is written there" in caplog.text and "a.txt is not written" in caplog.text


def test_every_program_has_a_folder_of_its_own(tmp_path: Path) -> None:
    made = [program_folder(tmp_path) for _ in range(3)]
    assert [m.name for m in made if m] == ["program_000", "program_001", "program_002"]
