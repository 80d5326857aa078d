"""`infopt run`: the inputs it makes, the names it gives to results, what it prints."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from infopt.compiler.commands import run as module
from infopt.compiler.commands.run import BadInputs, _random_input, named_results, parse_sizes
from infopt.runtime.plan import InputSpec


def test_sizes_of_a_command_line() -> None:
    assert parse_sizes([]) == {} and parse_sizes(["a=3", "b=0"]) == {"a": 3, "b": 0}
    for text in ("a", "=3", "a=", "a=-1", "a=x", "a=1.5"):
        with pytest.raises(BadInputs, match=f"--size {text}: expected DIM=N"):
            parse_sizes([text])


def test_inputs_of_every_kind() -> None:
    dims = [SimpleNamespace(input=2), SimpleNamespace(input=0), SimpleNamespace(input=1)]
    specs = [
        InputSpec("x", "tensor", "torch.float32", (0, 1)),
        InputSpec("n", "int"),
        InputSpec("ids", "tensor", "torch.int64", (1,)),
        InputSpec("factor", "float"), InputSpec("flag", "bool"), InputSpec("any", "other"),
        InputSpec("k", "int"), InputSpec("z", "tensor", "torch.complex64", (1,)),
        InputSpec("mask", "tensor", "torch.bool", (0,)),
    ]  # fmt: skip
    plan: Any = SimpleNamespace(dims=dims, inputs=specs)
    made = [_random_input(plan, i, [4, 3], [7, 8, 9]) for i in range(len(specs))]
    assert (
        made[0].shape == (4, 3) and made[0].dtype == torch.float32 and made[0].unique().numel() > 1
    )
    assert made[1] == 9  # the size that is read from it
    assert torch.equal(made[2], torch.ones(3, dtype=torch.int64))
    assert made[3] == 1.0 and type(made[3]) is float and made[4] is True and made[5] is None
    assert made[6] == 1 and type(made[6]) is int
    assert made[7].dtype == torch.complex64 and made[7].real.unique().numel() > 1
    assert made[8].tolist() == [True] * 4


def program(result: Any) -> Any:
    called = lambda **arguments: result  # noqa: E731
    called.level, called.notes = "avx2", ["kernels/a.so is not mapped"]  # type: ignore[attr-defined]
    return called


def arguments(**given: Any) -> Any:
    common = {"artifact": "folder/net", "inputs": None, "size": [], "output": None, "json": False}
    return SimpleNamespace(**{**common, **given})


def test_what_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = {"y": torch.tensor([[1.0, 4.0]]), "n": 3}
    monkeypatch.setattr(module, "load", lambda args: program(result))
    monkeypatch.setattr(module, "random_arguments", lambda program, sizes: {})
    assert module.run(arguments()) == 0
    first, note, shown = capsys.readouterr().out.splitlines()
    assert first.startswith("loaded net for avx2 in ") and ", first call " in first
    assert note == "  note: kernels/a.so is not mapped"
    assert shown == "  y: float32[1, 2], 1 to 4, mean 2.5"
    assert module.run(arguments(json=True)) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"level", "load_seconds", "first_call_seconds", "results"}
    assert found["level"] == "avx2" and found["results"] == {"y": "float32[1, 2], 1 to 4, mean 2.5"}
    assert 0 <= found["first_call_seconds"] < 60 and 0 <= found["load_seconds"] < 60


def test_places_of_every_kind_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    x, odd = torch.ones(1), SimpleNamespace(name="field")
    monkeypatch.setattr(
        module.pytree, "tree_leaves_with_path", lambda result: [((odd, 5), x), ((), x), ((odd,), 3)]
    )
    assert list(named_results(None)) == ["field.5", "result"]
