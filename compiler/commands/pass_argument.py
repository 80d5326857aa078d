"""The pass a command line names: by its name, as file.py:Class, or as module:Class."""

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from infopt.compiler.errors import BadOption
from infopt.compiler.pipeline import Pass
from infopt.passes.named import named_pass
from infopt.passes.pipelines import default_passes


def load_pass(text: str) -> Pass:
    """The pass that `text` names. Raises BadOption saying what was expected and found."""
    place, colon, attribute = text.rpartition(":")
    if not colon:
        return named_pass(text)
    module = _from_file(Path(place)) if place.endswith(".py") else _module(text, place)
    try:
        found: Any = getattr(module, attribute)
    except AttributeError:
        passes = [k for k, v in vars(module).items() if _is_pass_class(v) and v.name]
        listed = ", ".join(passes) or "none"
        raise BadOption(f"{text}: there is no {attribute}; passes there are {listed}") from None
    made = found() if _is_pass_class(found) else found
    if not isinstance(made, Pass):
        raise BadOption(f"{text}: expected a Pass or a class of passes, found {found!r}")
    return made


def pipeline(args: argparse.Namespace, names: list[str]) -> tuple[Pass, ...]:
    """The default passes and the named ones that are not among them, each at its stage's end."""
    named = [load_pass(name) for name in names]
    defaults = default_passes(compute=args.compute)
    known = {p.name for p in defaults}
    extra = [p for p in named if p.name not in known]
    return default_passes(add=extra, compute=args.compute)


def _from_file(file: Path) -> Any:
    if not file.exists():
        raise BadOption(f"{file}: there is no such file")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # where inspect finds the source of what is in it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[file.stem]
        raise
    return module


def _module(text: str, name: str) -> Any:
    sys.path.insert(0, "")  # as `python -m` would: modules of the working folder
    try:
        return importlib.import_module(name)
    except ImportError as reason:
        raise BadOption(f"{text}: {reason}") from None
    finally:
        sys.path.remove("")


def _is_pass_class(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Pass)
