"""`infopt passes`: offers of other packages, and differences as JSON."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from infopt.compiler import cli
from infopt.compiler.commands import explain
from infopt.compiler.commands import passes as module


def test_passes_that_other_packages_offer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offer = SimpleNamespace(name="their-pass", value="theirs:Pass", dist=None)
    monkeypatch.setattr(module, "offered", lambda: (offer,))
    monkeypatch.setattr(module, "describe", lambda entry: f"package of {entry.value}")
    assert cli.main(["passes", "list"]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last == "offered by package of theirs:Pass, runs when named: their-pass"
    assert cli.main(["passes", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["offered"] == [
        {"name": "their-pass", "from": "package of theirs:Pass", "place": "theirs:Pass"}
    ]
    for row in found["passes"]:
        assert set(row) == {"stage", "name", "contract", "runs", "what"} and all(row.values())


def test_differences(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [SimpleNamespace(name=n, diff=lambda n=n: f"- {n}") for n in ("one", "two", "three")]
    report = SimpleNamespace(history=steps)
    asked: list[list[str]] = []
    monkeypatch.setattr(module, "_through", lambda args, names: asked.append(names) or report)
    monkeypatch.setattr(module, "load_pass", lambda text: SimpleNamespace(name=text.lower()))

    def shown(*passes: str, json: bool = True) -> Any:
        args = SimpleNamespace(passes=list(passes), html=None, json=json, source="net")
        assert module._diff(args) == 0
        return capsys.readouterr().out

    assert json.loads(shown("Three", "One")) == {
        "passes": [{"name": "one", "diff": "- one"}, {"name": "three", "diff": "- three"}]
    }
    assert [p["name"] for p in json.loads(shown())["passes"]] == ["one", "two", "three"]
    assert shown("Two", json=False) == "two: - two\n" and asked == [["three", "one"], [], ["two"]]


def test_explanations_of_what_torch_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = SimpleNamespace(
        passes=[SimpleNamespace(name="one"), SimpleNamespace(name="two")], declined=None
    )
    compiled = SimpleNamespace(report=report)
    monkeypatch.setattr(explain, "compile_source", lambda args: (None, compiled))
    monkeypatch.setattr(explain.infopt, "explain", lambda c, name: f"of {name}", raising=False)
    args = SimpleNamespace(html=None, json=False, pass_name=None, source="net")
    assert explain.run(args) == 0
    assert capsys.readouterr().out == "of one\nof two\n"
    report.declined = "it has no tensors"
    explain.run(args)
    assert capsys.readouterr().out.splitlines()[-1] == "runs as torch runs it: it has no tensors"
    args.pass_name = "two"
    explain.run(args)
    assert capsys.readouterr().out == "of two\n"
