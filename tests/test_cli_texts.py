"""What commands print for people, and their answers about models with all kinds of inputs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

import infopt
from infopt.codegen import toolchain
from infopt.compiler import cli, doctor
from infopt.compiler.commands import bench, output
from infopt.compiler.commands.inspect import _text
from infopt.compiler.commands.run import describe, named_results
from infopt.compiler.commands.source import BadSource, _from_result, _transformers_folder
from infopt.compiler.target import Target


class Mixed(torch.nn.Module):
    """Floats, integers, a flag and numbers; a nested result, complex and empty parts in it."""

    def forward(self, x, ids, seen, factor: float, times: int):
        y = x * factor + ids * times
        return {"y": y, "parts": (torch.where(seen, y, 0.0), torch.zeros(0))}


@pytest.fixture
def saved(tmp_path: Path) -> str:
    rows = torch.export.Dim("rows", min=2, max=6)
    x, ids = torch.randn(4, 3), torch.ones(4, 3, dtype=torch.int64)
    compiled = infopt.compile(
        Mixed().eval(), (x, ids, ids > 0, 2.5, 3), dynamic_shapes=({0: rows},) * 3 + (None, None)
    )
    return str(compiled.save(tmp_path / "mixed", golden=1))


def test_run_for_people(saved: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", saved]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    level = Target.detect().level
    assert re.fullmatch(rf"loaded mixed for {level} in \S+ m?s, first call \S+ m?s", first)
    shown = [line for line in rest if not line.startswith("  note: ")]
    assert shown[0].startswith("  y: float32[6, 3], ") and "mean" in shown[0]  # at most 8 rows
    assert shown[1].startswith("  parts.0: float32[6, 3], ") and shown[2] == "  parts.1: float32[0]"


def test_run_with_inputs(saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {
        "x": torch.tensor([[1.0, 2, 3], [4, 5, 6]]),
        "ids": torch.tensor([[1, 1, 1], [2, 2, 2]]),
        "seen": torch.tensor([[True, False, True], [False, False, True]]),
    }
    x, ids, seen = given.values()
    rows = torch.export.Dim("rows", min=1, max=9)
    net = Mixed().eval()

    class Tensors(torch.nn.Module):
        def forward(self, x, ids, seen):
            return net(x, ids, seen, 0.5, 2)

    path = infopt.compile(Tensors().eval(), (x, ids, seen), dynamic_shapes=({0: rows},) * 3).save(
        tmp_path / "tensors"
    )
    save_file(given, tmp_path / "in")
    command = ["run", str(path), "--inputs", str(tmp_path / "in"), "--json"]
    assert cli.main([*command, "--output", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["level"] == Target.detect().level
    assert found["load_seconds"] > 0 and found["first_call_seconds"] > 0
    assert set(found["results"]) == {"y", "parts.0", "parts.1"}
    assert found["results"]["y"] == "float32[2, 3], 2.5 to 7, mean 4.75"
    results, expected = load_file(tmp_path / "out"), net(x, ids, seen, 0.5, 2)
    assert torch.equal(results["y"], expected["y"])
    assert torch.equal(results["parts.0"], expected["parts"][0])


def test_random_inputs_fit(saved: str, capsys: pytest.CaptureFixture[str]) -> None:
    for size, shown in ((["--size", "rows=3"], "[3, 3]"), ([], "[6, 3]")):
        assert cli.main(["run", saved, "--json", *size]) == 0
        assert shown in json.loads(capsys.readouterr().out)["results"]["y"]
    assert cli.main(["run", saved, "--size", "rows=7"]) == 1
    assert "2 <= rows <= 6, found 7" in capsys.readouterr().err
    assert cli.main(["run", saved, "--size", "lines=7"]) == 1
    assert "no dim 'lines'; the artifact's dims: rows" in capsys.readouterr().err


def test_results_by_name() -> None:
    x = torch.tensor([1 + 2j])
    assert list(named_results(x)) == ["result"] and describe(x) == "complex64[1]"
    assert list(named_results([x, (x, {"a": 3, "b": x})])) == ["0", "1.0", "1.1.b"]
    assert describe(torch.tensor([True, False])) == "bool[2], 0 to 1, mean 0.5"
    assert describe(torch.zeros(2, 0)) == "float32[2, 0]"


def test_inspect_for_people(saved: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", saved]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"written by infopt \S+, python \S+, torch \S+", lines[0]) or all(
        name in lines[0] for name in ("written by", "infopt", "python", "torch")
    )
    assert lines[1] == "takes x, ids, seen, factor, times" and "  rows: 2 to 6" in lines
    level = Target.detect().level
    assert any(re.match(rf"{level} for \w+ on \w+: runs here$", line) for line in lines)
    assert any(line.startswith("reference for any machine: runs slower here, ") for line in lines)
    assert "1 golden calls" in lines
    assert any(re.fullmatch(r"pass canonicalize \(.*\): \d+ of \d+ sites", line) for line in lines)
    sizes = [line.split() for line in lines if line.startswith(("weights.saf", "graph.txt"))]
    assert len(sizes) == 2 and all(re.fullmatch("[0-9a-f]{16}", line[-1]) for line in sizes)
    assert cli.main(["inspect", saved, "--json"]) == 0
    here = json.loads(capsys.readouterr().out)["here"]
    assert here[0] == {"program": level, "answer": "runs", "reason": ""}
    assert here[-1]["program"] == "reference" and here[-1]["answer"] == "runs slower"


def test_passes_in_a_manifest() -> None:
    sites = [{"applied": True}, {"applied": False}, {}, "odd"]
    entry = {"name": "a", "contract": "Exact()", "sites": sites, "error": "1e-7"}
    assert _text(entry) == "a (Exact()): 1 of 3 sites, error 1e-7"
    assert _text({"name": "b"}) == "b (?): 0 of 0 sites"
    assert _text({"other": 1}) == "{'other': 1}" and _text("text") == "text"


def test_verify_for_people(saved: str, capsys: pytest.CaptureFixture[str]) -> None:
    count = sum(p.is_file() for p in Path(saved).rglob("*"))
    size = sum(p.stat().st_size for p in Path(saved).rglob("*") if p.is_file())
    size -= (Path(saved) / "manifest.json").stat().st_size
    assert cli.main(["verify", saved, "--golden"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{count} files, {size} bytes: every byte is as it was written"
    assert second == f"1 golden calls give the stored results ({Target.detect().level})"
    assert cli.main(["verify", saved, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"files": count, "bytes": size, "signed": False}


def test_bench_for_people(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    net = torch.nn.Linear(4, 4).eval()
    source = SimpleNamespace(name="net", model=net, call=lambda model: model(torch.ones(1, 4)))
    compiled = infopt.compile(net, (torch.ones(1, 4),))
    timing = SimpleNamespace(median=0.004, fastest=0.003, spread=0.25, calls=7)
    quick = SimpleNamespace(median=0.002, fastest=0.001, spread=0.125, calls=7)
    monkeypatch.setattr(bench, "compile_source", lambda args: (source, compiled))
    monkeypatch.setattr(bench, "interleaved", lambda *_: {"eager": timing, "infopt": quick})
    args = SimpleNamespace(seconds=1.0, json=False)
    assert bench.run(args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["median", "fastest", "spread", "calls"]
    assert lines[1].split() == ["eager", "4", "ms", "3", "ms", "25%", "7"]
    assert lines[2].split() == ["infopt", "2", "ms", "1", "ms", "12%", "7"]
    assert lines[3].startswith("2.00 times as fast as eager; results: ")
    compiled.report.declined = "because"
    bench.run(args)
    assert capsys.readouterr().out.splitlines()[-1] == "runs as torch runs it: because"


def test_numbers_for_people() -> None:
    texts = [output.bytes_text(n) for n in (0, 1023, 1024, 1536, 5 << 20, 3 << 30)]
    assert texts == ["0 B", "1023 B", "1 KiB", "1.5 KiB", "5 MiB", "3 GiB"]
    times = [output.milliseconds(s) for s in (0.0001234, 0.5, 1.0, 12.345)]
    assert times == ["0.123 ms", "500 ms", "1.00 s", "12.35 s"]


def test_passes_list_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["passes", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["passes"]
    defaults = [p.name for p in infopt.default_passes()]
    assert [r["name"] for r in rows if r["runs"] == "default"] == defaults
    asked = [r["name"] for r in rows if r["runs"] == "on request"]
    assert "quantize-weights" in asked and not set(asked) & set(defaults)
    assert cli.main(["passes", "list"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in defaults + asked)


def test_explain_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "explained.py").write_text(
        "import torch\n\ndef net():\n    return torch.nn.Linear(4, 4), (torch.ones(1, 4),)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert cli.main(["explain", "explained:net", "--html", str(tmp_path / "page.html")]) == 0
    text = capsys.readouterr().out
    names = [p.name for p in infopt.default_passes()]
    assert re.findall(r"^(\S+) \(", text, re.MULTILINE) == names
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    "result",
    [[1], (torch.nn.ReLU(),), (1, ()), (torch.nn.ReLU(), [1]), (torch.nn.ReLU(), (), 1, 1, 1)],
)
def test_what_a_source_must_return(result: object) -> None:
    with pytest.raises(BadSource, match=r"'f' must return \(model, args\)"):
        _from_result("f", result)
    made = _from_result("f", (torch.nn.ReLU(), (1,), None, "sizes"))
    assert made.kwargs == {} and made.dynamic_shapes == "sizes" and made.args == (1,)
    assert not made.model.training


def test_a_folder_with_an_image_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=[8, 16], patch_size=4, num_channels=2,
    )  # fmt: skip
    transformers.ViTModel(config).save_pretrained(tmp_path)
    found = _transformers_folder(tmp_path)
    assert found.kwargs["pixel_values"].shape == (2, 2, 8, 16)
    (dims,) = found.dynamic_shapes.values()
    assert [d.__name__ for d in dims.values()] == ["batch"] and list(dims) == [0]


def test_a_folder_with_a_model_of_sound(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.WhisperConfig(
        vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    transformers.WhisperModel(config).save_pretrained(tmp_path)
    with pytest.raises(BadSource, match="a model of input_features needs an example"):
        _transformers_folder(tmp_path)


class TestDoctor:
    def health(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> doctor.Health:
        monkeypatch.setenv("INFOPT_CACHE", str(tmp_path / "cache"))
        return doctor.examine()

    def test_an_empty_cache(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        found = self.health(monkeypatch, tmp_path).sections["cache"]
        assert found == {"folder": str(tmp_path / "cache"), "holds": "nothing yet"}

    def test_a_cache_with_something(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        entry = tmp_path / "cache" / "native" / "one"
        entry.mkdir(parents=True)
        for folder in (tmp_path / "cache", tmp_path / "cache" / "native", entry):
            folder.chmod(0o700)
        (entry / "a.so").write_bytes(bytes(3 << 20))
        (entry / "b").write_bytes(b"")
        found = self.health(monkeypatch, tmp_path)
        assert found.sections["cache"]["holds"] == "1 entries, 3.0 MiB"
        (tmp_path / "cache" / "native").chmod(0o777)
        found = self.health(monkeypatch, tmp_path)
        assert found.sections["cache"]["holds"] == "not used"
        assert any(text.startswith("the cache is not used: ") for text in found.lost)

    def test_nothing_installed(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(doctor.build, "executor_library", lambda: None)
        monkeypatch.setattr(doctor.build, "prebuilt", lambda level: None)
        found = self.health(monkeypatch, tmp_path)
        level = Target.detect().level
        assert found.sections["libraries"]["executor"] == "missing"
        assert found.sections["libraries"][level] == "missing  <- this machine's kernels"
        assert "no native executor: programs run as torch runs them" in found.lost
        assert f"no kernels for {level}: only generated code runs natively" in found.lost

    def test_broken_libraries(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def fail(*_: object) -> None:
            raise toolchain.BuildFailed(["g++"], tmp_path, "no such flag")

        monkeypatch.setattr(doctor.build, "executor_library", fail)
        monkeypatch.setattr(doctor.build, "prebuilt", fail)
        found = self.health(monkeypatch, tmp_path)
        level = Target.detect().level
        assert found.sections["libraries"]["executor"] == "broken"
        assert found.sections["libraries"][level] == "broken"
        assert found.broken[0].startswith("executor: ")
        assert found.broken[1].startswith(f"kernels for {level}: ")
