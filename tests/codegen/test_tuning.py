"""Schedules measured in place: chosen, remembered, merged, and without effect on results."""

from __future__ import annotations

import json

import pytest
import sympy
import torch
from torch import nn

import infopt
from infopt.codegen import tuner as tuner_module
from infopt.codegen.kernel import emitters
from infopt.codegen.schedules import BadTuning, Database, Measured, key_of
from infopt.codegen.tuner import Tuner
from infopt.compiler import cli
from infopt.compiler.infer import Builder
from infopt.compiler.target import Target
from infopt.compiler.types import Dim, TensorType


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INFOPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(96, 128), nn.GELU(), nn.Linear(128, 64)).eval()


@pytest.fixture
def linear():
    """A linear layer as a node, with its emitter."""
    o = Builder()
    x, w = (
        o.input(n, TensorType.dense(s, torch.float32))
        for n, s in (("x", (40, 64)), ("w", (96, 64)))
    )
    node = o.linear(x, w)
    return node, emitters("aten.linear.default")[0]


def fixed_times(monkeypatch, times):
    """Let measuring find these seconds, schedule by schedule; returns the calls made."""
    calls = []

    def seconds(node, schedules, *rest):
        calls.append(node)
        return [times.get(tuple(s.values()), 1.0) for s in schedules]

    monkeypatch.setattr(tuner_module, "schedule_seconds", seconds)
    return calls


def test_the_fastest_is_taken_and_remembered(linear, monkeypatch):
    node, emitter = linear
    calls = fixed_times(monkeypatch, {(4, 2): 0.5, (8, 1): 0.7})
    database = Database()
    tuner = Tuner(database, 1, Target.detect(), ())
    assert tuner(node, emitter) == tuner(node, emitter) == {"panels": 4, "groups": 2}
    assert len(calls) == tuner.measured == 1
    again = Tuner(database, 0, Target.detect(), ())
    assert again(node, emitter) == {"panels": 4, "groups": 2} and again.measured == 0
    Tuner(database, 2, Target.detect(), ())(node, emitter)
    assert len(calls) == 2 and [m.effort for m in database.entries.values()] == [2]


def test_noise_changes_nothing(linear, monkeypatch):
    node, emitter = linear
    fixed_times(monkeypatch, {(4, 2): 0.99})
    chosen = Tuner(Database(), 1, Target.detect(), ())(node, emitter)
    assert chosen == next(emitter.schedules())


def test_without_effort_nothing_is_measured(linear, monkeypatch):
    node, emitter = linear
    calls = fixed_times(monkeypatch, {(4, 2): 0.5})
    assert Tuner(Database(), 0, Target.detect(), ())(node, emitter) == next(emitter.schedules())
    assert not calls


def test_a_schedule_of_another_version_is_not_used(linear):
    node, emitter = linear
    key = key_of(node, Target.detect(), ())
    database = Database({key: Measured({"panels": 77, "groups": 1}, 0.5, 1.0, 2)})
    assert Tuner(database, 0, Target.detect(), ())(node, emitter) == next(emitter.schedules())


def test_keys_round_open_sizes_and_name_the_machine():
    def key(hint, target):
        dim = Dim(sympy.Symbol("rows", integer=True, positive=True), 2, 100, hint)
        o = Builder((dim,))
        x = o.input("x", TensorType.dense((dim.symbol, 64), torch.float32))
        w = o.input("w", TensorType.dense((96, 64), torch.float32))
        return key_of(o.linear(x, w), Target.parse(target), (dim,))

    assert key(33, "cpu:avx2") == key(64, "cpu:avx2") != key(65, "cpu:avx2")
    assert key(33, "cpu:avx2") != key(33, "cpu:scalar")
    assert "float32[64, 64; 64, 1]" in key(33, "cpu:avx2")


@torch.no_grad()
def test_results_do_not_depend_on_it(cache, net):
    x = torch.randn(50, 96)
    usual = infopt.compile(net, (x,), tune=0)(x)
    tuned = infopt.compile(net, (x,), tune=1)
    assert torch.equal(tuned(x), usual)
    assert "measured the schedules of 2 kernels" in tuned.report.notes
    entries = json.loads((cache / "tuning.json").read_text())["entries"]
    assert len(entries) == 2 and all(
        key.startswith(("linear_act", "aten.linear")) for key in entries
    )
    again = infopt.compile(net, (x,), tune=1)
    assert not any("measured" in note for note in again.report.notes)
    assert torch.equal(again(x), usual)


@torch.no_grad()
def test_a_damaged_database_is_ignored_and_replaced(cache, net):
    cache.mkdir()
    (cache / "tuning.json").write_text("{")
    x = torch.randn(50, 96)
    report = infopt.compile(net, (x,), tune=1).report
    assert any(note.startswith("measured schedules are ignored") for note in report.notes)
    assert len(Database.load(cache / "tuning.json").entries) == 2


def test_merge_takes_what_is_new_or_more_thorough(tmp_path):
    slow, fast = Measured({"panels": 2}, 1.0, 2.0, 1), Measured({"panels": 4}, 0.5, 2.0, 2)
    ours = Database({"a": slow, "b": fast}, tmp_path / "t.json")
    assert ours.merge(Database({"a": fast, "b": slow, "c": slow})) == 2
    assert ours.entries == {"a": fast, "b": fast, "c": slow}
    ours.save()
    assert Database.load(tmp_path / "t.json").entries == ours.entries
    assert [p.name for p in tmp_path.iterdir()] == ["t.json"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("[]", "expected measured schedules as JSON"),
        ('{"format": 9, "entries": {}}', "expected format 1, found 9"),
        ('{"format": 1, "entries": {"k": {"schedule": {}}}}', "entry 'k': expected schedule"),
    ],
)
def test_bad_files(tmp_path, text, message):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(BadTuning) as error:
        Database.load(tmp_path / "t.json")
    assert message in str(error.value)


def test_command_line(cache, tmp_path, capsys):
    cache.mkdir()
    Database({"k on m": Measured({"panels": 4}, 1e-6, 2e-6, 1)}, cache / "tuning.json").save()
    assert cli.main(["tuning"]) == 0
    assert "k on m" in capsys.readouterr().out
    assert cli.main(["tuning", "export", str(tmp_path / "out.json")]) == 0
    (cache / "tuning.json").unlink()
    assert cli.main(["tuning", "merge", str(tmp_path / "out.json"), "--json"]) == 0
    assert '"entries": 1' in capsys.readouterr().out
    assert cli.main(["tuning", "merge", str(tmp_path / "none.json")]) == 1
