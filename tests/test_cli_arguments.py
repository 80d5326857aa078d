"""What a command line means: every command's arguments, their defaults, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from infopt.compiler.cli import _one_line, parser

COMPILING = {
    "source": "net",
    "compute": None,
    "weights": None,
    "activations": None,
    "max_error": None,
    "objective": None,
    "target": "native",
    "tune": None,
    "threads": None,
    "add": [],
    "strict": False,
}
ON_A_MODEL = {"source": "net", "passes": [], "compute": None, "target": "native"}
DEFAULTS: dict[str, dict[str, Any]] = {
    "demo": {"compute": None, "seconds": 1.0, "no_inductor": False, "output": None},
    "compile net -o out": {**COMPILING, "output": "out", "also": [], "golden": 0},
    "run it": {"artifact": "it", "key": None, "inputs": None, "size": [], "output": None},
    "bench net": {**COMPILING, "seconds": 2.0},
    "inspect it": {"artifact": "it"},
    "verify it": {"artifact": "it", "key": None, "golden": False},
    "sign it --key k.pem": {"artifact": "it", "key": "k.pem"},
    "explain net": {**COMPILING, "pass_name": None, "html": None},
    "passes": {"what": "list"},
    "passes list": {"what": "list"},
    "passes run net": {"what": "run", **ON_A_MODEL, "measure": None},
    "passes diff net": {"what": "diff", **ON_A_MODEL, "measure": None, "html": None},
    "passes bisect net": {"what": "bisect", **ON_A_MODEL},
    "cache": {"what": "show", "size": None},
    "tuning": {"what": "show", "file": None},
    "doctor": {},
}


@pytest.mark.parametrize("line", DEFAULTS)
def test_defaults(line: str) -> None:
    command, *rest = line.split()
    expected = {"module": command, "json": False, **DEFAULTS[line]}
    assert vars(parser().parse_args([command, *rest])) == expected


COMPILE_ALL = (
    "--compute bf16 --weights int8 --weights head=none --activations int8 --max-error 0.01 "
    "--objective memory --target cpu:avx2 --tune 2 --threads 3 --add a.py:A --add b:B --strict"
)
COMPILED_ALL = {
    "compute": "bf16",
    "weights": ["int8", "head=none"],
    "activations": "int8",
    "max_error": 0.01,
    "objective": "memory",
    "target": "cpu:avx2",
    "tune": 2,
    "threads": 3,
    "add": ["a.py:A", "b:B"],
    "strict": True,
}
MEASURED = "--compute bf16 --target cpu:amx --measure 0.5"
GIVEN: dict[str, dict[str, Any]] = {
    "demo --json --compute bf16 --seconds 0.5 --no-inductor --output o": {
        "json": True, "compute": "bf16", "seconds": 0.5, "no_inductor": True, "output": "o",
    },
    f"compile net --output o --also cpu:avx2 --also cpu:amx --golden 2 {COMPILE_ALL}": {
        "output": "o", "also": ["cpu:avx2", "cpu:amx"], "golden": 2, **COMPILED_ALL,
    },
    "run it --key k --inputs i --size a=1 --size b=2 --output o": {
        "key": "k", "inputs": "i", "size": ["a=1", "b=2"], "output": "o",
    },
    f"bench net --seconds 3 {COMPILE_ALL}": {"seconds": 3.0, **COMPILED_ALL},
    "verify it --key k --golden": {"key": "k", "golden": True},
    f"explain net fuse-norm --html p {COMPILE_ALL}": {
        "pass_name": "fuse-norm", "html": "p", **COMPILED_ALL,
    },
    "passes list --json": {"json": True},
    f"passes run net a b --json {MEASURED}": {
        "passes": ["a", "b"], "compute": "bf16", "target": "cpu:amx", "measure": 0.5, "json": True,
    },
    f"passes diff net a --html p {MEASURED}": {"passes": ["a"], "html": "p", "measure": 0.5},
    "passes bisect net a --compute bf16": {"passes": ["a"], "compute": "bf16"},
    "cache clear": {"what": "clear"},
    "cache prune --size 500M": {"what": "prune", "size": "500M"},
    "tuning export f": {"what": "export", "file": "f"},
    "tuning merge f": {"what": "merge", "file": "f"},
    "doctor --json": {"json": True},
}  # fmt: skip


@pytest.mark.parametrize("line", GIVEN)
def test_what_is_given(line: str) -> None:
    found = vars(parser().parse_args(line.split()))
    assert {name: found[name] for name in GIVEN[line]} == GIVEN[line]


REFUSED = {
    "": "the following arguments are required: command",
    "nothing": "invalid choice: 'nothing'",
    "compile net": "the following arguments are required: -o/--output",
    "sign it": "the following arguments are required: --key",
    "run": "the following arguments are required: artifact",
    "compile net -o o --tune 3": "argument --tune: invalid choice: 3",
    "compile net -o o --compute f16": "argument --compute: invalid choice: 'f16'",
    "compile net -o o --objective fun": "argument --objective: invalid choice: 'fun'",
    "compile net -o o --activations int4": "argument --activations: invalid choice: 'int4'",
    "bench net --seconds 0": "argument --seconds: expected a positive number, found 0",
    "bench net --seconds nan": "argument --seconds: expected a positive number, found nan",
    "demo --seconds -1": "argument --seconds: expected a positive number, found -1",
    "passes bisect net --measure 1": "unrecognized arguments: --measure 1",
    "passes run net --html p": "unrecognized arguments: --html p",
    "cache forget": "argument what: invalid choice: 'forget'",
    "tuning forget": "argument what: invalid choice: 'forget'",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_is_refused(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parser().parse_args(line.split())
    assert stopped.value.code == 2 and REFUSED[line] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("one", "ValueError: one"),
        ("one\ntwo", "ValueError: one [INFOPT_DEBUG=1 shows more]"),
        ("\n one \n", "ValueError: one"),
        ("", "ValueError: no message"),
    ],
)
def test_a_failure_in_one_line(message: str, line: str) -> None:
    assert _one_line(ValueError(message)) == line
