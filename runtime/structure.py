"""Nested Python values as plain data: tuples, lists, dicts, named tuples, dataclasses.

A structure is a JSON value of one of these forms:

    {"leaf": 3}                          the value at position 3 of the flat list
    {"const": 1.5}                       this very scalar, str or None
    {"tuple": [..]}  {"list": [..]}      {"dict": [[key, ..], ..]}
    {"named": [[field, ..], ..], "class": "module:name"}      a named tuple
    {"record": [[field, ..], ..], "class": "module:name"}     a dataclass
    {"mapping": [[key, ..], ..], "class": "module:name"}      a dict subclass, e.g. ModelOutput

The class is used only if its module is imported already; else a `Record` stands in for it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from infopt.runtime.errors import ArtifactCorrupt, InputMismatch, PlanError

Structure = dict[str, Any]
_CONSTANTS = (type(None), bool, int, float, str)
_DEPTH = 64


@dataclass(frozen=True)
class Leaf:
    """Stands for the value at `index` of the flat list."""

    index: int


class Record(dict[Any, Any]):
    """Stands in for an output class that is not imported: items by key, position or attribute."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no {name!r}; there are {list(self)}") from None

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, (int, slice)):
            return list(self.values())[key]
        return super().__getitem__(key)

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self.values())


def describe(tree: Any) -> Structure:
    """The structure of a value in which `Leaf`s mark the places of the flat list.

    Raises PlanError for a class that has no form here.
    """
    return _describe(tree, _DEPTH)


def _describe(tree: Any, depth: int) -> Structure:
    if depth == 0:
        raise PlanError(f"a value nested deeper than {_DEPTH} cannot be described")
    if isinstance(tree, Leaf):
        return {"leaf": tree.index}
    if type(tree) in _CONSTANTS:
        if isinstance(tree, float) and not math.isfinite(tree):
            return {"const": {"float": repr(tree)}}
        return {"const": tree}
    form, items = _items(tree)
    if form in ("tuple", "list"):
        return {form: [_describe(value, depth - 1) for _, value in items]}
    found: Structure = {form: [[key, _describe(value, depth - 1)] for key, value in items]}
    if form != "dict":
        found["class"] = _class_name(tree)
    return found


def _items(tree: Any) -> tuple[str, list[tuple[Any, Any]]]:
    """The form of a container, and its (key, value) pairs."""
    if type(tree) in (tuple, list):
        return type(tree).__name__, list(enumerate(tree))
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return "named", list(zip(tree._fields, tree, strict=True))
    if isinstance(tree, dict):
        for key in tree:
            if type(key) not in (str, int, bool):
                raise PlanError(f"expected dict keys of str or int, found {type(key).__name__}")
        return "dict" if type(tree) is dict else "mapping", list(tree.items())
    if is_dataclass(tree) and not isinstance(tree, type):
        return "record", [(f.name, getattr(tree, f.name)) for f in fields(tree)]
    raise PlanError(
        "expected tensors, scalars, tuples, lists, dicts, named tuples or dataclasses, "
        f"found {_class_name(tree)}"
    )


def _class_name(value: Any) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _form(structure: Structure) -> tuple[Any, Any]:
    """The form and its content, wherever "class" stands among the keys."""
    return next(((k, v) for k, v in structure.items() if k != "class"), (None, None))


def leaves(structure: Structure) -> Iterator[int]:
    """The positions of the flat list that a structure uses."""
    for form, content in structure.items():
        if form == "leaf":
            yield content
        elif form in ("tuple", "list"):
            for child in content:
                yield from leaves(child)
        elif form not in ("const", "class"):
            for _, child in content:
                yield from leaves(child)


def paths(structure: Structure) -> dict[int, str]:
    """The name of each position, as "hidden.0"; a single one is "result"."""
    found: dict[int, str] = {}

    def walk(part: Structure, path: str) -> None:
        form, content = _form(part)
        if form == "leaf":
            found[content] = path or "result"
        elif form != "const":
            pairs = enumerate(content) if form in ("tuple", "list") else content
            for key, child in pairs:
                walk(child, f"{path}.{key}" if path else str(key))

    walk(structure, "")
    return found


def check(structure: Any, place: str, depth: int = _DEPTH) -> None:
    """Raises ArtifactCorrupt unless `structure`, read by `read_json`, has one of these forms."""
    bad = ArtifactCorrupt(f"{place}: expected a structure, found {str(structure)[:60]}")
    if not isinstance(structure, dict) or depth == 0:
        raise bad
    form, content = _form(structure)
    named = form in ("named", "record", "mapping")
    if set(structure) != ({form, "class"} if named else {form}):
        raise bad
    if form == "leaf":
        if type(content) is not int or content < 0:
            raise bad
    elif form == "const":
        if content not in ({"float": "inf"}, {"float": "-inf"}, {"float": "nan"}) and (
            type(content) not in _CONSTANTS
        ):
            raise bad
    elif form in ("tuple", "list") and isinstance(content, tuple):
        for i, child in enumerate(content):
            check(child, f"{place}[{i}]", depth - 1)
    elif (named or form == "dict") and isinstance(content, tuple):
        if named and not isinstance(structure["class"], str):
            raise bad
        for pair in content:
            if not isinstance(pair, tuple) or len(pair) != 2 or type(pair[0]) not in (str, int):
                raise bad
            check(pair[1], f"{place}.{pair[0]}", depth - 1)
    else:
        raise bad


def builder(structure: Structure) -> Callable[[Sequence[Any]], Any]:
    """A function from the flat list to the nested value, with the work done beforehand."""
    form, content = _form(structure)
    if form == "leaf":
        return lambda flat: flat[content]
    if form == "const":
        value = float(content["float"]) if isinstance(content, dict) else content
        return lambda flat: value
    if form in ("tuple", "list"):
        parts = [builder(child) for child in content]
        if form == "tuple":
            return lambda flat: tuple([part(flat) for part in parts])
        return lambda flat: [part(flat) for part in parts]
    pairs = [(key, builder(child)) for key, child in content]
    if form == "dict":
        return lambda flat: {key: part(flat) for key, part in pairs}
    names = [key for key, _ in pairs]

    def build(flat: Sequence[Any]) -> Any:
        values = [part(flat) for _, part in pairs]
        cls = _imported(structure["class"])
        if cls is None:
            return Record(zip(names, values, strict=True))
        if form == "named":
            return cls(*values)
        return cls(**dict(zip(names, values, strict=True)))

    return build


def _imported(name: str) -> Any:
    """The class `module:name` if its module is imported and it is a class of values, else None."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    is_value = isinstance(found, type) and (
        is_dataclass(found) or issubclass(found, dict) or hasattr(found, "_fields")
    )
    return found if is_value else None


def flatten(structure: Structure, tree: Any, flat: list[Any], place: str) -> None:
    """Put the values of `tree` into `flat`. Raises InputMismatch where it is built otherwise."""
    form, content = _form(structure)
    if form == "leaf":
        flat[content] = tree
        return
    if form == "const":
        value = float(content["float"]) if isinstance(content, dict) else content
        if type(tree) is not type(value) or (tree != value and tree == tree):
            raise InputMismatch(
                f"{place}: expected {value!r}, which is part of the program, found {_show(tree)}"
            )
        return
    try:
        found, items = _items(tree)
    except PlanError as error:
        raise InputMismatch(f"{place}: {error}") from None
    if form in ("tuple", "list"):
        expected = list(enumerate(content))
    else:
        expected = content
    keys, wanted = dict(items), [key for key, _ in expected]
    if found != form or set(keys) != set(wanted):
        raise InputMismatch(
            f"{place}: expected a {form} of {wanted}, found a {found} of {list(keys)}"
        )
    for key, child in expected:
        flatten(child, keys[key], flat, f"{place}[{key!r}]")


def _show(value: Any) -> str:
    return repr(value) if type(value) in _CONSTANTS else f"a {type(value).__name__}"
