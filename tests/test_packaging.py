"""The package as users meet it: public names, cheap import, what a wheel holds."""

import ast
import importlib
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import infopt

ROOT = Path(__file__).resolve().parents[1]
ROOTS = ("compiler", "passes", "codegen", "runtime", "models")


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", infopt.__all__)
def test_public_name_resolves(name: str) -> None:
    assert getattr(infopt, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = infopt.nothing


def test_type_checkers_see_every_public_name() -> None:
    tree = ast.parse(Path(infopt.__file__).read_text())
    guarded = next(n for n in tree.body if isinstance(n, ast.If))
    seen = {
        alias.asname
        for node in ast.walk(guarded)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == set(infopt.__all__)


def test_import_is_cheap() -> None:
    loaded = run_python("import sys, infopt; print(*sys.modules)").split()
    assert not {"torch", "numpy", "sympy", "infopt.compiler"} & set(loaded)


def test_deployed_machines_never_import_the_compiler() -> None:
    code = "import sys, infopt; infopt.load; print(*sys.modules)"
    loaded = set(run_python(code).split())
    assert "infopt.runtime.loading" in loaded
    assert not {"infopt.compiler", "infopt.codegen", "infopt.passes", "sympy"} & {
        ".".join(name.split(".")[:2]) for name in loaded if name.startswith("infopt")
    }


def test_dynamo_lists_the_backend_without_importing_it() -> None:
    code = (
        "import sys, torch; names = torch.compiler.list_backends(); "
        "print('infopt' in names, any(m.startswith('infopt') for m in sys.modules))"
    )
    assert run_python(code).split() == ["True", "False"]


def test_entry_points_load() -> None:
    (backend,) = entry_points(group="torch_dynamo_backends", name="infopt")
    assert callable(backend.load())
    (command,) = entry_points(group="console_scripts", name="infopt")
    assert callable(command.load())


def test_typing_marker_is_installed() -> None:
    assert (Path(infopt.__file__).parent / "py.typed").exists()


def test_native_sources_are_installed() -> None:
    """Generated code includes the headers, from wherever the package lies."""
    codegen = Path(importlib.import_module("infopt.codegen").__path__[0])
    assert (codegen / "csrc" / "abi.h").exists()


@pytest.mark.checkout
def test_every_folder_is_packaged() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {file.parent for root in ROOTS for file in (ROOT / root).rglob("*.py")}
    expected = {"infopt." + ".".join(f.relative_to(ROOT).parts) for f in folders}
    assert set(settings["packages"]) == expected | {"infopt"}


@pytest.mark.checkout
@pytest.mark.parametrize("folder", ROOTS)
def test_face_links_are_relative(folder: str) -> None:
    link = ROOT / "infopt" / folder
    if not link.is_symlink():
        pytest.skip("a checkout without symbolic links; only editors need them")
    assert str(link.readlink()) == f"../{folder}"
