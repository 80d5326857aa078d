"""Tables of operators in compiler/ and passes/: a name misspelt there would be a rule that never
holds, which no result shows. The same for the names by which passes are ordered."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from functools import reduce
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers.integrations.moe  # noqa: F401  defines operators that passes know by name

import infopt
from infopt.compiler import ops
from infopt.compiler.pipeline import Pass
from infopt.passes.named import BUILT_IN

_OPERATOR = re.compile(r"aten\.\w+\.\w+")
_OF_GRAPHS = {op.name for op in (ops.INPUT, ops.CONST, ops.GETITEM)}  # not called by name


def modules() -> Iterator[ModuleType]:
    for package in (infopt.compiler, infopt.passes):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            yield importlib.import_module(found.name)


def tables() -> dict[str, Any]:
    """Containers of names of which one at least is an operator of torch."""
    return {
        f"{module.__name__}.{name}": held
        for module in modules()
        for name, held in vars(module).items()
        if isinstance(held, set | frozenset | tuple | list | dict) and any(map(_names_one, held))
    }


def _names_one(entry: Any) -> bool:
    return isinstance(entry, str) and _OPERATOR.fullmatch(entry) is not None


TABLES = tables()


def test_the_tables_are_found() -> None:
    # of operators alone, with numbers, with parameters, with functions
    for name in ("simplify_masks._VIEWS", "layers.LINEARS", "slicing_rules._LAST_DIM"):
        assert f"infopt.passes.{name}" in TABLES
    assert "infopt.compiler.cost._FLOPS" in TABLES and len(TABLES) > 20


@pytest.mark.parametrize("name", TABLES)
def test_every_name_is_an_operator(name: str) -> None:
    for entry in set(TABLES[name]) - _OF_GRAPHS:
        space, *rest = entry.split(".")
        if space == "transformers":
            reduce(getattr, rest, torch.ops.transformers)  # raises AttributeError
        else:
            assert ops.find(entry).name == entry  # raises UnknownOp where there is none


@pytest.mark.parametrize("name", [n for n, t in TABLES.items() if isinstance(t, dict)])
def test_every_parameter_is_one_of_its_operator(name: str) -> None:
    """Tables that name parameters, or number them, mean tensors of the operator."""
    for entry, held in TABLES[name].items():
        if not isinstance(held, tuple):
            continue
        parameters = ops.find(entry).parameters
        tensors = {p.name for p in parameters if p.is_tensor}
        for one in held:
            found = parameters[one].name if isinstance(one, int) else one
            assert found in tensors, f"{entry} has no tensor {one}"


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_pass_is_called_what_its_module_is(name: str) -> None:
    module = BUILT_IN[name].__module__.rpartition(".")[2]
    assert name == module.replace("_", "-")


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_pass_follows_passes_that_there_are(name: str) -> None:
    made: type[Pass] = BUILT_IN[name]
    assert set(made.after) <= BUILT_IN.keys() - {name}


def test_dtypes_that_hold_all_values_of_another() -> None:
    """The table of casts that can be undone, against torch's ranges and digits."""
    from infopt.compiler.types import dtype_name
    from infopt.passes.canonicalize import _LOSSLESS

    def kind(dtype: torch.dtype) -> tuple[float, float, float]:
        """(smallest, largest, the finest step at 1) of a dtype."""
        if dtype == torch.bool:
            return 0, 1, 1
        if dtype.is_floating_point:
            info = torch.finfo(dtype)
            return info.min, info.max, info.eps
        whole = torch.iinfo(dtype)
        return whole.min, whole.max, 1

    def holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
        low, high, step = kind(narrow)
        least, most, finest = kind(wide)
        if not (least <= low and high <= most and finest <= step):
            return False
        # a float holds whole numbers up to 2 / eps without a gap
        return not wide.is_floating_point or narrow.is_floating_point or high <= 2 / finest

    known = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
             torch.float16, torch.bfloat16, torch.float32, torch.float64)  # fmt: skip
    for narrow in known:
        wider = {dtype_name(w) for w in known if w != narrow and holds(w, narrow)}
        assert set(_LOSSLESS.get(narrow, "").split()) == wider, narrow
