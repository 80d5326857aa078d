"""Who may import whom (docs/architecture.md), read from the imports of every file."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.checkout

ROOT = Path(__file__).resolve().parents[1]
LAYERS = {
    "runtime": {"runtime"},
    "compiler": {"compiler"},
    "codegen": {"runtime", "compiler", "codegen"},
    "passes": {"compiler", "codegen", "passes"},
    "models": {"models"},
}
ROOF = (
    "compiler.driver",
    "compiler.options",
    "compiler.dynamo",
    "compiler.compiled",
    "compiler.model",
    "compiler.provenance",
    "compiler.cli",
    "compiler.commands",
    "compiler.decoding",
    "compiler.doctor",
    "compiler.kernel_check",
    "compiler.adapter_room",
    "compiler.flat_program",
    "compiler.stream",
    "compiler.transformers_exporter",
    "compiler.machine",
)
DEPLOYED = {"torch", "numpy", "safetensors"}  # all that infopt.runtime may need
OPTIONAL = {"runtime.signature_file": {"cryptography"}}  # imported when a key is given


def modules(layer: str) -> Iterator[tuple[str, Path]]:
    for file in sorted((ROOT / layer).rglob("*.py")):
        yield ".".join(file.relative_to(ROOT).with_suffix("").parts), file


def is_roof(module: str) -> bool:
    return any(module == r or module.startswith(f"{r}.") for r in ROOF)


def imports(file: Path) -> Iterator[str]:
    """Full dotted names; `from infopt.a import b` gives infopt.a and infopt.a.b."""
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} has a relative import"
            assert node.module is not None
            yield node.module
            if node.module.split(".")[0] == "infopt":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(file: Path) -> Iterator[str]:
    for name in imports(file):
        first, _, rest = name.partition(".")
        if first == "infopt" and rest:
            yield rest


@pytest.mark.parametrize("layer", LAYERS)
def test_layers(layer: str) -> None:
    for module, file in modules(layer):
        if is_roof(module):
            continue
        for name in own(file):
            if name.split(".")[0] in LAYERS:  # the rest are public names, checked below
                assert name.split(".")[0] in LAYERS[layer], f"{file} imports infopt.{name}"
            assert not is_roof(name), f"{file} imports the roof, infopt.{name}"


def test_the_face_is_for_users() -> None:
    for layer in LAYERS:
        for module, file in modules(layer):
            if is_roof(module) or layer == "models":
                continue
            for name in own(file):
                assert name.split(".")[0] in LAYERS, f"{file} imports infopt.{name} by the face"


def test_the_runtime_needs_only_what_is_deployed() -> None:
    for module, file in modules("runtime"):
        allowed = DEPLOYED | OPTIONAL.get(module, set())
        for name in imports(file):
            first = name.split(".")[0]
            known = first in sys.stdlib_module_names or first in allowed or first == "infopt"
            assert known, f"{file} imports {name}"
