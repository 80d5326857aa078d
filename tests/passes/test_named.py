"""Passes by name: infopt's own, and those of installed packages, which never run unasked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import infopt
from infopt.compiler.errors import BadOption
from infopt.compiler.pipeline import Pass
from infopt.passes import named
from infopt.passes.named import BUILT_IN, named_pass

CODE = """
import infopt

class Clamps(infopt.Rule):
    '''relu(x) -> clamp_min(x, 0)'''
    name, always = "{name}", True

    def pattern(self, o, x):
        return o.relu(x)

    def rewrite(self, o, x):
        return o.clamp_min(x, 0.0)

an_instance = Clamps()
nothing = 3
"""


def install(
    folder: Path, package: str, offers: dict[str, str], name: str = "relu-to-clamp"
) -> None:
    """A package as pip leaves it: a module, and metadata with entry points."""
    (folder / f"{package}.py").write_text(CODE.format(name=name))
    info = folder / f"{package}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    lines = [f"{key} = {package}:{value}" for key, value in offers.items()]
    (info / "entry_points.txt").write_text("\n".join(["[infopt.passes]", *lines]) + "\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for added in set(sys.modules) - before:
        if added.startswith("offers_"):
            del sys.modules[added]


class Net(torch.nn.Module):
    def forward(self, x):
        return torch.relu(torch.sin(x))


def test_an_installed_pass_runs_when_it_is_named_and_only_then(site: Path) -> None:
    install(site, "offers_one", {"relu-to-clamp": "Clamps"})
    model, x = Net().eval(), torch.randn(3)
    plain = infopt.compile(model, (x,))
    assert "relu-to-clamp" not in [p.name for p in plain.report.passes]
    assert "offers_one" not in sys.modules  # not even imported

    passes = infopt.default_passes(add=["relu-to-clamp"])
    compiled = infopt.compile(model, (x,), passes=passes)
    assert len(compiled.report.find("relu-to-clamp").applied) == 1
    assert torch.equal(compiled(x), model(x))


def test_names_in_options(site: Path) -> None:
    install(site, "offers_two", {"relu-to-clamp": "an_instance"})
    torch._dynamo.reset()
    options = {"passes": ["canonicalize", "relu-to-clamp", "fuse-norm"]}
    fast = torch.compile(Net().eval(), backend="infopt", options=options)
    with torch.no_grad():
        fast(torch.randn(3))
    assert ": applied" in infopt.explain(fast, "relu-to-clamp")


def test_mistakes_are_named(site: Path) -> None:
    install(site, "offers_three", {"other-name": "Clamps", "no-pass": "nothing", "gone": "Gone"})
    install(site, "offers_four", {"twice": "Clamps"}, "twice")
    install(site, "offers_five", {"twice": "Clamps"}, "twice")
    with pytest.raises(BadOption, match="calls itself 'relu-to-clamp'; the two names must be the"):
        named_pass("other-name")
    with pytest.raises(BadOption, match=r"of offers_three 1\.2 .*expected a Pass .*found 3"):
        named_pass("no-pass")
    with pytest.raises(BadOption, match=r"cannot be loaded: .*Gone"):
        named_pass("gone")
    with pytest.raises(BadOption, match=r"offered twice, by offers_(four|five) 1\.2 and offers_"):
        named_pass("twice")
    with pytest.raises(BadOption, match=r"none of that name; infopt has canonicalize.*no-pass"):
        named_pass("nobody-has-this")
    with pytest.raises(BadOption, match="names of passes"):
        infopt.compile(Net(), (torch.randn(3),), passes=[3])


def test_every_pass_of_infopt_has_its_name() -> None:
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("infopt.passes."):
            for value in vars(module).values():
                if isinstance(value, type) and issubclass(value, Pass) and value.name:
                    assert BUILT_IN[value.name] is value
    for name in BUILT_IN:
        assert named_pass(name).name == name


def test_infopts_own_passes_cannot_be_replaced(site: Path) -> None:
    install(site, "offers_six", {"canonicalize": "Clamps"}, "canonicalize")
    assert type(named_pass("canonicalize")) is BUILT_IN["canonicalize"]
    assert "offers_six" in [named.describe(e).split()[0] for e in named.offered()]


def test_a_pass_is_named_after_its_file() -> None:
    for name, cls in BUILT_IN.items():
        words = cls.__module__.rpartition(".")[2].split("_")
        assert cls.name == name == "-".join(words)
        assert cls.__name__ == "".join(w.capitalize() for w in words)
