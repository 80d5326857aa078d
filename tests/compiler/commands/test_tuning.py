"""`infopt tuning`: what it shows, writes and takes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infopt.codegen.schedules import Database, Measured
from infopt.compiler import cli

QUICK = Measured({"panels": 4, "rows": 6}, 1.25e-6, 2e-6, 1)
THOROUGH = Measured({"panels": 2}, 1e-6, 2e-6, 2)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The database of the cache folder, with one entry."""
    monkeypatch.setenv("INFOPT_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "cache" / "tuning.json"
    Database({"k on m": QUICK}, file).save()
    return file


def out(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out)


def test_show_for_people(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tuning", "show"]) == 0
    head, row, end = capsys.readouterr().out.splitlines()
    assert head.split() == ["kernel", "schedule", "usual", "us", "with", "it", "us"]
    assert row.split("  ")[0] == "k on m" and row.split()[3:] == [
        "panels=4,",
        "rows=6",
        "2.0",
        "1.2",
    ]
    assert end == f"{measured}: 1 kernels"


def test_show_as_json(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tuning", "show", "--json"]) == 0
    assert out(capsys) == {"entries": {"k on m": vars(QUICK)}}


def test_export_writes_a_file(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "out.json"
    assert cli.main(["tuning", "export", str(there)]) == 0
    assert capsys.readouterr().out.split("\n")[0] == f"1 entries written to {there}"
    assert Database.load(there).entries == {"k on m": QUICK}
    assert cli.main(["tuning", "export", str(there), "--json"]) == 0
    assert out(capsys) == {"file": str(there), "entries": 1}


def test_merge_takes_what_is_better(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "in.json"
    Database({"k on m": THOROUGH, "other": QUICK, "third": QUICK}, there).save()
    assert cli.main(["tuning", "merge", str(there)]) == 0
    assert capsys.readouterr().out.split("\n")[0] == f"3 entries from {there}"
    merged = {"k on m": THOROUGH, "other": QUICK, "third": QUICK}
    assert Database.load(measured).entries == merged
    assert cli.main(["tuning", "merge", str(there), "--json"]) == 0
    assert out(capsys) == {"file": str(there), "entries": 0}
    assert Database.load(there).entries == merged


def test_what_cannot_be_done_is_said(
    measured: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for what in ("export", "merge"):
        assert cli.main(["tuning", what]) == 1
        assert f"infopt tuning {what}: expected a file, found none" in capsys.readouterr().err
    assert cli.main(["tuning", "merge", str(tmp_path / "none.json")]) == 1
    assert "none.json: there is no such file" in capsys.readouterr().err
    assert Database.load(measured).entries == {"k on m": QUICK}
    for name in ("INFOPT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", staticmethod(no_home))
    monkeypatch.setattr(Path, "expanduser", lambda self: no_home())
    assert cli.main(["tuning", "show"]) == 1
    assert "there is no cache folder: set INFOPT_CACHE" in capsys.readouterr().err


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")
