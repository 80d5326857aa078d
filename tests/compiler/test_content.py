"""The content hash: every edit of what a pass owns changes it, and nothing else does."""

from __future__ import annotations

import functools
import importlib.util
import math
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import sympy
import torch

import infopt
from infopt.compiler.content import content_of, version_of

PASS = """
import infopt

FACTOR = 2

def helper(value):
    return value + 1

class Doubled(infopt.Rule):
    '''x + x -> 2 x'''
    name, always = "doubled", True

    def pattern(self, o, x):
        return o.add(x, x)

    def rewrite(self, o, x):
        return o.mul(x, float(helper(FACTOR) - 1))
"""
FUNCTION = """
import torch
TABLE = {"limit": 3}

def scale(module, by=2):
    factor = TABLE["limit"]
    return module

make = lambda n: (lambda module: module if n else None)
"""


def loaded(folder: Path, text: str, name: str = "owned_by_the_user"):
    """The text as a module of one fixed name, as an edited file is imported by a new process."""
    file = folder / f"{name}.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    import linecache

    linecache.clearcache()
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("FACTOR = 2", "FACTOR = 3"),
        ("value + 1", "value + 2"),
        ("2 x'''", "2x'''"),
        ("True", "bool(0)"),
        ("- 1))", "- 2))"),
        ("x + x", "x + y"),
    ],
)
def test_one_byte_of_the_source_changes_the_key(tmp_path: Path, old: str, new: str) -> None:
    first = loaded(tmp_path, PASS).Doubled().key
    same = loaded(tmp_path, PASS).Doubled().key
    edited = loaded(tmp_path, PASS.replace(old, new)).Doubled().key
    assert first == same != edited


@pytest.mark.parametrize(
    ("old", "new"),
    [("by=2", "by=3"), ('"limit": 3', '"limit": 4'), ("return module\n", "return\n")],
)
def test_functions_count_with_defaults_and_globals(tmp_path: Path, old: str, new: str) -> None:
    first = infopt.FxPass(loaded(tmp_path, FUNCTION).scale).key
    assert first == infopt.FxPass(loaded(tmp_path, FUNCTION).scale).key
    assert first != infopt.FxPass(loaded(tmp_path, FUNCTION.replace(old, new)).scale).key


def test_closures_of_lambdas_count(tmp_path: Path) -> None:
    make = loaded(tmp_path, FUNCTION).make
    assert infopt.FxPass(make(1)).key == infopt.FxPass(make(1)).key != infopt.FxPass(make(0)).key
    assert not infopt.FxPass(make(1)).content.opaque


def test_the_contract_counts() -> None:
    def same(module):
        return module

    keys = {infopt.FxPass(same).key, infopt.FxPass(same, infopt.Close(1e-3, 0)).key}
    keys.add(infopt.FxPass(same, stage=infopt.Stage.FUSE).key)
    assert len(keys) == 3


def test_without_source_the_byte_code_counts() -> None:
    def made(text: str):
        space: dict = {}
        exec(f"def f(module):\n    return {text}", space)
        return infopt.FxPass(space["f"]).key

    assert made("module") == made("module") != made("None")


def test_options_count_by_content() -> None:
    @dataclass(frozen=True, eq=False)
    class Scaled(infopt.Pass):
        """x -> x"""

        name = "scaled"
        scale: torch.Tensor | None = None

    one, again, two = torch.ones(3), torch.ones(3), torch.tensor([1.0, 1.0, 2.0])
    assert Scaled(one).key == Scaled(again).key != Scaled(two).key


def test_what_has_no_content_is_never_equal() -> None:
    one = infopt.FxPass(functools.partial(lambda lock, module: module, threading.Lock()))
    again = infopt.FxPass(one.function)
    assert one.content.opaque and "lock" in one.content.opaque[0]
    assert one.key != again.key and one.key == one.key


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(2, dtype=torch.bfloat16),
        torch.ones(2, dtype=torch.complex64).conj(),
        torch.ones(2, 3).t(),
        torch.ones(0),
        torch.ones(()),
        torch.nn.Linear(2, 2),
        sympy.Symbol("s", positive=True) + 1,
        functools.partial(max, 1),
        infopt.Stage.FUSE,
        math.sin,
        torch.sin,
        torch.ops.aten.sin.default,
        {"a": {1, 2}, "b": [torch.float32, slice(1), ...]},
    ],
    ids=lambda v: type(v).__name__,
)
def test_every_kind_has_content(value) -> None:
    found = content_of(value)
    assert found.digest == content_of(value).digest and not found.opaque


@pytest.mark.parametrize("value", [torch.ones(2, device="meta"), torch.eye(2).to_sparse()])
def test_tensors_without_values_have_none(value) -> None:
    assert "Tensor on" in content_of(value).opaque[0]


def test_a_report_says_that_content_is_unknown() -> None:
    lock = threading.Lock()
    p = infopt.FxPass(lambda module: module if lock else None)
    compiled = infopt.compile(torch.nn.ReLU(), (torch.ones(2),), passes=[p])
    known = "whose content is unknown: no cache will find"
    assert any(known in note for note in compiled.report.notes)


def test_recursion_and_sharing_end() -> None:
    def even(n):
        return n == 0 or odd(n - 1)

    def odd(n):
        return n != 0 and even(n - 1)

    shared = (1, 2)
    loop: list = [shared, shared]
    loop.append(loop)
    assert content_of(even).digest != content_of(odd).digest
    assert content_of([shared, shared]).digest == content_of([(1, 2), (1, 2)]).digest
    assert content_of(loop).digest


def test_kinds_are_told_apart() -> None:
    values = [
        1,
        True,
        1.0,
        -0.0,
        0.0,
        "1",
        b"1",
        None,
        (1,),
        [1],
        {1},
        torch.float32,
        "torch.float32",
    ]
    assert len({content_of(v).digest for v in values}) == len(values)


def test_every_process_finds_the_same_keys() -> None:
    code = "import infopt; print(*[p.key for p in infopt.default_passes()])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [p.key for p in infopt.default_passes()]
    assert not any(p.content.opaque for p in infopt.default_passes())


class Colour(__import__("enum").Enum):
    RED, BLUE = 1, 2


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, **given):
        for name, value in given.items():
            setattr(self, name, value)

    def method(self):
        return self.a


class Held:
    def __init__(self, a):
        self.a = a

    def method(self):
        return self.a

    def other(self):
        return self.a


def make_property(value):
    class Made:
        @property
        def field(self):
            return value

        @functools.cached_property
        def kept(self):
            return value + 1

        @staticmethod
        def plain():
            return value

    return Made


def endless():
    def inner(n):
        return inner(n - 1)

    return inner


def unbound(again):
    def inner():
        return later

    if again:
        later = 1
    return inner


@pytest.mark.parametrize(
    ("same", "other"),
    [
        (lambda: Colour.RED, lambda: Colour.BLUE),
        (lambda: Slotted(a=1, b=2), lambda: Slotted(a=1, b=3)),
        (lambda: Slotted(a=1), lambda: Slotted(b=1)),
        (lambda: Held(1).method, lambda: Held(2).method),
        (lambda: Held(1).method, lambda: Held(1).other),
        (lambda: functools.partial(pow, 2), lambda: functools.partial(pow, 3)),
        (lambda: functools.partial(pow, exp=2), lambda: functools.partial(pow, mod=2)),
        (lambda: make_property(1), lambda: make_property(2)),
        (lambda: unbound(False), lambda: unbound(True)),
        (lambda: {1, 2}, lambda: {1, 3}),
        (lambda: [1, 2], lambda: (1, 2)),
        (lambda: {"a": 1}, lambda: {"a": 2}),
        (lambda: torch.zeros(2), lambda: torch.zeros(3)),
        (lambda: torch.zeros(2), lambda: torch.zeros(2, dtype=torch.float64)),
        (lambda: math, lambda: functools),
        (lambda: len, lambda: abs),
        (lambda: sympy.Symbol("a"), lambda: sympy.Symbol("b")),
        (lambda: 1, lambda: True),
        (lambda: 1.0, lambda: -1.0),
        (lambda: "a", lambda: b"a"),
        (lambda: None, lambda: ()),
    ],
)
def test_equal_things_have_equal_content(same, other) -> None:
    assert content_of(same()).digest == content_of(same()).digest
    assert content_of(same()).digest != content_of(other()).digest


def test_a_function_that_calls_itself() -> None:
    assert content_of(endless()).digest == content_of(endless()).digest


def test_where_a_class_stands_in_its_file_does_not_count() -> None:
    """Newer Pythons write the line into the class."""
    first, second = (type("Same", (), {"__firstlineno__": n, "limit": 3}) for n in (7, 9))
    assert content_of(first).digest == content_of(second).digest
    assert content_of(first).digest != content_of(type("Same", (), {"limit": 4})).digest


def test_packages_count_by_their_version_and_infopt_by_its_files() -> None:
    assert version_of("torch.nn") == f"torch.nn {torch.__version__}"
    name, digest = version_of("infopt.passes.named").split()
    assert name == "infopt.passes.named" and digest == version_of("infopt").split()[1]
    assert len(digest) >= 16 and digest != infopt.__version__
