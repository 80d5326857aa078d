"""`infopt demo` with a small model in this process; test_cli.py runs the real one."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import infopt
from infopt.compiler import cli
from infopt.compiler.commands import demo, demo_arm, demo_worker
from infopt.compiler.commands.demo_worker import Worker
from infopt.models.minilm import Batch

WORDS, WIDTH = 50, 16


class Small(torch.nn.Module):
    """ids, mask [B, T] -> [B, 16] of unit length."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.up = torch.nn.Embedding(WORDS, WIDTH), torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, ids, mask):
        states = torch.tanh(self.up(self.table(ids))) * mask[:, :, None].float()
        return torch.nn.functional.normalize(states.sum(1), dim=1)


def tokenize(sentences: Sequence[str]) -> Batch:
    ids = torch.tensor([[(len(s) * 7 + ord(s[i])) % WORDS for i in range(4)] for s in sentences])
    return Batch(ids, torch.ones_like(ids))


class Inside(demo_arm.Arm):
    """An arm whose worker is in this process, and which counts what it is asked."""

    asked: list[tuple[str, str]] = []
    off: float = 0.0  # by how much infopt's embeddings are wrong

    def __init__(self, name: str, inputs: Path, compute: str | None, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.worker = Worker(name, str(inputs), compute)

    def ask(self, do: str, **arguments: Any) -> Any:
        Inside.asked.append((self.name, do))
        value = json.loads(json.dumps(getattr(self.worker, do)(**arguments)))
        return [1e-4] * len(value) if do == "turn" else value

    def embeddings(self, size: str) -> torch.Tensor:
        found = super().embeddings(size)
        return found.roll(1, 1) if self.name == "infopt" and Inside.off else found

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> type[Inside]:
    monkeypatch.setattr(demo, "Arm", Inside)
    monkeypatch.setattr(demo, "tokenize", tokenize)
    monkeypatch.setattr(demo_worker, "load_minilm", lambda: Small().eval())
    monkeypatch.setattr(Inside, "asked", [])
    return Inside


def loaded_here(artifact: Path, inputs: Path, folder: Path) -> tuple[torch.Tensor, Any]:
    """What a fresh process would do, without its seconds of imports."""
    tensors = load_file(inputs)
    took = {"load": 0.125, "first_call": 0.5, "compiler_imported": False}
    return infopt.load(artifact)(tensors["all.ids"], tensors["all.mask"]), took


@pytest.fixture
def quick(inside: type[Inside], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "run_artifact", loaded_here)


def run(*options: str) -> int:
    return cli.main(["demo", "--no-inductor", "--seconds", "0.3", *options])


@pytest.mark.slow
def test_json(inside: type[Inside], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json", "--output", str(tmp_path / "kept")) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["failures"] == [] and list(result["arms"]) == ["eager", "infopt"]
    assert result["compute"] == "fp32" and result["threads"] == torch.get_num_threads()
    assert result["sentences"] == len(demo.SENTENCES) and result["rebuilt"] in (True, False)
    eager, fast = result["arms"].values()
    for arm in (eager, fast):
        assert set(arm) == {
            "first_call_one", "first_call_batch", "time_one", "time_batch", "peak_memory",
            "accuracy",
        }  # fmt: skip
        assert arm["first_call_one"] > 0 and arm["peak_memory"] > 50 << 20
        # 0.3 s are 6 turns of 0.05 s, of calls that take 0.1 ms
        assert arm["time_one"]["median"] == 1e-4 and arm["time_one"]["calls"] == 6 * 500
    assert eager["accuracy"]["largest_difference"] == 0.0
    assert eager["accuracy"]["least_cosine"] == pytest.approx(1.0)
    assert 0.99999 <= fast["accuracy"]["least_cosine"] < 1.00001
    artifact = result["artifact"]
    files = [f for f in (tmp_path / "kept").rglob("*") if f.is_file()]
    assert artifact["bytes"] == sum(f.stat().st_size for f in files) > 10_000
    assert artifact["largest_difference"] <= 1e-6 and not artifact["compiler_imported"]
    assert artifact["load"] > 0 and artifact["first_call"] > 0
    assert result["native_share"] == 7 / 8
    assert [n["query"] for n in result["neighbours"]] == list(demo.QUERIES)
    for near in (n["nearest"] for n in result["neighbours"]):
        cosines = [x["cosine"] for x in near]
        assert len(near) == 3 and cosines == sorted(cosines, reverse=True)
        assert all(x["sentence"] in demo.SENTENCES and x["cosine"] < 1.001 for x in near)
    asked = [do for name, do in inside.asked if name == "infopt"]
    assert asked[:2] == ["first", "first"] and asked[-2:] == ["save", "report"]


def test_nearest_are_the_nearest() -> None:
    count = len(demo.QUERIES)
    places = torch.nn.functional.one_hot(torch.arange(count), len(demo.SENTENCES)).float()
    sentences = torch.eye(len(demo.SENTENCES))
    found = demo._neighbours(torch.cat([places, sentences]))
    for i, entry in enumerate(found):
        assert entry["query"] == demo.QUERIES[i]
        assert entry["nearest"][0] == {"sentence": demo.SENTENCES[i], "cosine": 1.0}


def test_text(quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "kept"
    assert run("--output", str(kept)) == 0
    text = capsys.readouterr().out
    first = text.splitlines()
    assert first[0] == f"The nearest of {len(demo.SENTENCES)} sentences, with their cosine:"
    assert first[2] == demo.QUERIES[0] and first[3].startswith("   ")
    assert sum(line.startswith("   ") for line in first) >= 3 * len(demo.QUERIES)
    assert f"fp32, {torch.get_num_threads()} threads, arms in turn: median (fastest)" in text
    assert "1 sentence ms" in text and "16 ms" in text and "first calls s" in text
    assert text.count("0.10 (0.10)") == 4 and "0.0e+00" in text
    assert f"kept in {kept}" in text and "ran natively: 88% of the operations" in text
    assert "FAILED" not in text and "loaded in a fresh process in 125 ms" in text


@pytest.mark.slow
def test_bf16_is_compared_with_fp32_eager(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json", "--compute", "bf16") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["compute"] == "bf16" and result["failures"] == []
    for arm in result["arms"].values():
        assert 1e-5 < arm["accuracy"]["largest_difference"] < 0.1


@pytest.mark.slow
def test_wrong_embeddings_fail(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Inside, "off", 1.0)
    assert run() == 1
    text = capsys.readouterr().out
    assert "FAILED: embeddings: least cosine to fp32 eager" in text and "expected 0.99999" in text
    assert "FAILED: the loaded artifact differs from the program by" in text


def test_what_counts_as_a_failure() -> None:
    def failures(cosine: float, difference: float, imported: bool, compute: str | None) -> int:
        arms = {"infopt": {"accuracy": {"least_cosine": cosine}}}
        artifact = {"largest_difference": difference, "compiler_imported": imported}
        return len(demo._failures({"arms": arms, "artifact": artifact}, compute))

    assert failures(0.99999, 1e-6, False, None) == 0
    assert failures(0.99998, 1e-6, False, None) == failures(1.0, 2e-6, False, None) == 1
    assert failures(0.999, 0.0, False, "bf16") == 0 and failures(0.998, 0.0, True, "bf16") == 2
    assert failures(float("nan"), float("nan"), True, None) == 3


def test_a_worker_answers_line_by_line(
    inside: type[Inside], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    inputs = demo._write_inputs(tmp_path)
    assert {n: t.shape[0] for n, t in load_file(inputs).items() if n.endswith("ids")} == {
        "one.ids": 1,
        "batch.ids": 16,
        "all.ids": len(demo.QUERIES) + len(demo.SENTENCES),
    }
    asked = [
        {"do": "first", "size": "one"},
        {"do": "turn", "size": "batch", "calls": 3},
        {"do": "embed", "size": "one", "path": str(tmp_path / "out")},
        {"do": "memory"},
        {"do": "nothing"},
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(json.dumps(a) + "\n" for a in asked)))
    monkeypatch.setattr(sys, "argv", ["worker", "eager", str(inputs)])
    monkeypatch.setattr(demo_worker.os, "dup2", lambda *_: None)
    demo_worker.main()
    first, turn, embed, memory, wrong = map(json.loads, capfd.readouterr().out.splitlines())
    assert 0 < first["value"] < 60 and len(turn["value"]) == 3 and min(turn["value"]) > 0
    assert embed == {"value": None} and memory["value"] > 50 << 20
    assert wrong["error"].startswith("AttributeError: 'Worker' object has no attribute 'nothing'")
    assert "Traceback" in wrong["error"]
    (found,) = load_file(tmp_path / "out").values()
    expected = Small().eval()(*vars(tokenize(demo.SENTENCES[:1])).values())
    assert torch.equal(found, expected)


@pytest.mark.parametrize("arm", ["eager", "infopt"])
def test_arms_compute_in_what_was_permitted(inside: type[Inside], tmp_path: Path, arm: str) -> None:
    inputs = str(demo._write_inputs(tmp_path))
    exact = Worker("eager", inputs, None)._call("batch")
    assert exact.dtype == torch.float32
    found = Worker(arm, inputs, "bf16")._call("batch").float()
    assert 1e-5 < (found - exact).abs().max() < 0.1
    assert torch.equal(Worker("eager", inputs, None)._call("batch"), exact)


def test_an_arm_is_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its failures are told with what it said."""
    stand_in = """
import json, os, sys
for line in sys.stdin:
    asked = json.loads(line)
    if asked["do"] == "end":
        sys.exit("the reason")
    answer = {"value": [asked, sys.argv[1:], os.environ["INFOPT_CACHE"]]}
    print(json.dumps({"error": "Odd: it is"} if asked["do"] == "fail" else answer), flush=True)
"""
    started = subprocess.Popen

    def popen(command: list[str], **options: Any) -> Any:
        assert command[1:4] == ["-m", "infopt.compiler.commands.demo_worker", "eager"]
        return started([command[0], "-c", stand_in, *command[3:]], **options)

    monkeypatch.setattr(demo_arm.subprocess, "Popen", popen)
    with demo_arm.Arm("eager", tmp_path / "in", "bf16", tmp_path) as arm:
        asked, given, cache = arm.ask("first", size="one")
        assert asked == {"do": "first", "size": "one"}
        assert given == ["eager", str(tmp_path / "in"), "bf16"]
        assert Path(cache).name == "infopt" and tmp_path in Path(cache).parents
        with pytest.raises(demo_arm.ArmFailed, match="eager: Odd: it is"):
            arm.ask("fail")
        with pytest.raises(demo_arm.ArmFailed, match="eager: the process ended: the reason"):
            arm.ask("end")
        with pytest.raises(demo_arm.ArmFailed, match="eager: the process ended"):
            arm.ask("first")
    assert arm._process.returncode == 1 and arm._log.closed
    with pytest.raises(ZeroDivisionError), demo_arm.Arm("eager", tmp_path, None, tmp_path) as arm:
        assert arm.ask("first")[1] == ["eager", str(tmp_path)]
        raise ZeroDivisionError
    assert arm._process.returncode is not None  # it did not outlive its arm


def test_a_loader_that_fails(tmp_path: Path) -> None:
    with pytest.raises(demo_arm.ArmFailed, match=r"the fresh process that loads .* failed: .*"):
        demo_arm.run_artifact(tmp_path / "nothing", tmp_path / "in", tmp_path)


def test_children_do_not_import_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoy = tmp_path / "infopt"
    decoy.mkdir()
    (decoy / "__init__.py").write_text("raise SystemExit('imported from the working folder')")
    monkeypatch.chdir(tmp_path)
    child = demo_arm.Arm("eager", tmp_path / "in", None, tmp_path)
    with child as arm, pytest.raises(demo_arm.ArmFailed) as error:
        arm.ask("embed", size="all", path=str(tmp_path / "out"))
    assert "working folder" not in str(error.value)
    with pytest.raises(demo_arm.ArmFailed) as error:
        demo_arm.run_artifact(tmp_path / "nothing", tmp_path / "in", tmp_path)
    assert "working folder" not in str(error.value)
