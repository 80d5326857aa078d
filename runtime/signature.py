"""How a loaded program is called: its parameters, and where each program input comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infopt.runtime.errors import InputMismatch
from infopt.runtime.structure import flatten, leaves


@dataclass(frozen=True)
class Parameter:
    """One argument. kind: "positional" (by position or name), "keyword" (by name only).

    A parameter whose structure holds no leaf may be left out.
    """

    name: str
    kind: str
    structure: Any  # a Structure


@dataclass(frozen=True)
class Signature:
    """The parameters in order; positional ones first."""

    parameters: tuple[Parameter, ...]

    @property
    def leaf_count(self) -> int:
        return 1 + max((i for p in self.parameters for i in leaves(p.structure)), default=-1)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The flat list of leaves. Raises InputMismatch naming the argument."""
        flat: list[Any] = [None] * self.leaf_count
        positional = [p for p in self.parameters if p.kind == "positional"]
        if len(args) > len(positional):
            raise InputMismatch(
                f"expected at most {len(positional)} positional arguments "
                f"({self.describe()}), found {len(args)}"
            )
        given = {p.name: value for p, value in zip(positional, args, strict=False)}
        for name, value in kwargs.items():
            if name in given:
                raise InputMismatch(f"argument {name!r} is given twice")
            given[name] = value
        for parameter in self.parameters:
            if parameter.name in given:
                flatten(parameter.structure, given.pop(parameter.name), flat, parameter.name)
            elif next(leaves(parameter.structure), None) is not None:
                raise InputMismatch(f"argument {parameter.name!r} is missing ({self.describe()})")
        if given:
            raise InputMismatch(f"unknown argument {next(iter(given))!r} ({self.describe()})")
        return flat

    def describe(self) -> str:
        return f"the program takes {', '.join(p.name for p in self.parameters) or 'nothing'}"
