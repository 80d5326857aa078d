"""Numbers that the code of a pass mentions: sizes and attributes at the boundaries of its rules."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

from infopt.compiler.pipeline import Pass
from infopt.compiler.rewrite import Rule


def mined_sizes(pass_: Pass) -> tuple[int, ...]:
    """Sizes around the numbers that a pass's code compares with: the boundaries of its legality."""
    found = {n for n in numbers_in(type(pass_)) if isinstance(n, int) and 4 < n <= 64}
    return tuple(sorted({s for n in found for s in (n - 1, n, n + 1)}))


def numbers_in(cls: type) -> list[int | float]:
    """The numbers that the code of a class mentions, with those of its module that it reads."""
    found: dict[Any, None] = {}
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] in ("builtins", "abc") or base in _OWN:
            continue
        for item in vars(base).values():
            function = getattr(item, "__func__", item)
            if isinstance(function, types.FunctionType):
                _collect(function.__code__, function.__globals__, found)
    return list(found)


_OWN = (Rule, Pass)


def _collect(code: types.CodeType, names: Mapping[str, Any], found: dict[Any, None]) -> None:
    constants = [*code.co_consts, *(names[n] for n in code.co_names if n in names)]
    for value in constants:
        if isinstance(value, types.CodeType):
            _collect(value, names, found)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[value] = None
