"""Frozen dataclasses as strict JSON: unknown, missing, duplicate and mistyped fields are errors."""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar

from infopt.runtime.errors import PlanError

T = TypeVar("T")
Decoder = Callable[[Any, str], Any]


def freeze(value: Any) -> Any:
    """A JSON value with tuples for lists; a non-finite float becomes {"float": "inf"}."""
    if isinstance(value, (list, tuple)):
        return tuple(freeze(v) for v in value)
    if isinstance(value, Mapping):
        return {k: freeze(v) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return value


def load_json(text: str) -> Any:
    """json.loads without duplicate keys, NaN or bottomless nesting. Raises PlanError."""
    try:
        return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"expected JSON text, found: {error}") from None


def write_json(record: Any, version: int) -> str:
    """{"format": version, <the record's fields>} as one line."""
    return json.dumps({"format": version, **_encode(record)}, separators=(",", ":"))


def read_json(text: str, cls: Callable[..., T], version: int) -> T:
    """The record `write_json` wrote. Raises PlanError naming the place, expected and found."""
    value, name = load_json(text), getattr(cls, "__name__", "record")
    if not isinstance(value, dict):
        raise PlanError(f"{name}: expected a JSON object, found {_show(value)}")
    found = value.pop("format", None)
    if found != version or isinstance(found, bool):
        raise PlanError(f"{name}.format: expected {version}, found {_show(found)}")
    return _decoder(cls)(value, name)


def _encode(value: Any) -> Any:
    if is_dataclass(value):
        pairs = [(f, getattr(value, f.name)) for f in fields(value)]
        return {f.name: _encode(v) for f, v in pairs if not (v is None and f.default is None)}
    if isinstance(value, (list, tuple)):
        return [_encode(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _encode(v) for k, v in value.items()}
    return freeze(value)


@cache
def _decoder(hint: Any) -> Decoder:
    """A function (json value, place) -> checked Python value for a type hint."""
    if hint is Any:
        return lambda value, place: freeze(value)
    if hint in (int, str, bool, float):
        return _scalar(hint)
    if is_dataclass(hint):
        return _dataclass(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return _tuple(args)
    if origin in (types.UnionType, typing.Union):
        return _union(args)
    if origin is Mapping:
        return _mapping(args[1])
    raise TypeError(f"no JSON form for {hint}")


def _scalar(hint: type) -> Decoder:
    def decode(value: Any, place: str) -> Any:
        if type(value) is hint:
            return value
        if hint is float and value in ({"float": "inf"}, {"float": "-inf"}, {"float": "nan"}):
            return float(value["float"])
        raise PlanError(f"{place}: expected {hint.__name__}, found {_show(value)}")

    return decode


def _dataclass(cls: Any) -> Decoder:
    hints = typing.get_type_hints(cls)
    parts = [(f.name, _decoder(hints[f.name]), _is_required(f)) for f in fields(cls)]
    names = {f.name for f in fields(cls)}

    def decode(value: Any, place: str) -> Any:
        if not isinstance(value, dict):
            raise PlanError(f"{place}: expected an object ({cls.__name__}), found {_show(value)}")
        if not value.keys() <= names:
            extra = sorted(value.keys() - names)
            raise PlanError(f"{place}: unknown field {extra[0]!r}, expected {sorted(names)}")
        found = {}
        for name, read, required in parts:
            if name in value:
                found[name] = read(value[name], f"{place}.{name}")
            elif required:
                raise PlanError(f"{place}: field {name!r} is missing")
        return cls(**found)

    return decode


def _is_required(f: Any) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


def _tuple(args: tuple[Any, ...]) -> Decoder:
    if len(args) == 2 and args[1] is Ellipsis:
        read = _decoder(args[0])

        def decode(value: Any, place: str) -> Any:
            if not isinstance(value, list):
                raise PlanError(f"{place}: expected a list, found {_show(value)}")
            return tuple([read(v, f"{place}[{i}]") for i, v in enumerate(value)])

        return decode
    reads = [_decoder(a) for a in args]

    def decode_fixed(value: Any, place: str) -> Any:
        if not isinstance(value, list) or len(value) != len(reads):
            raise PlanError(f"{place}: expected a list of {len(reads)}, found {_show(value)}")
        pairs = enumerate(zip(reads, value, strict=True))
        return tuple([read(v, f"{place}[{i}]") for i, (read, v) in pairs])

    return decode_fixed


def _union(args: tuple[Any, ...]) -> Decoder:
    """Scalars are told apart by their type, records by their required and known fields."""
    records: list[Any] = [a for a in args if is_dataclass(a)]
    scalars = tuple(a for a in args if a in (int, str, bool, float))
    others = [_decoder(a) for a in args if typing.get_origin(a) is not None]
    known = [
        ({f.name for f in fields(a)}, {f.name for f in fields(a) if _is_required(f)}, _decoder(a))
        for a in records
    ]
    floats = _scalar(float)

    def decode(value: Any, place: str) -> Any:
        if value is None and types.NoneType in args:
            return None
        if type(value) in scalars:
            return value
        if isinstance(value, dict):
            for names, required, read in known:
                if required <= value.keys() <= names:
                    return read(value, place)
            if float in scalars:
                return floats(value, place)
        elif others:
            return others[0](value, place)
        expected = " or ".join(getattr(a, "__name__", str(a)) for a in args)
        raise PlanError(f"{place}: expected {expected}, found {_show(value)}")

    return decode


def _mapping(hint: Any) -> Decoder:
    read = _decoder(hint)

    def decode(value: Any, place: str) -> Any:
        if not isinstance(value, dict):
            raise PlanError(f"{place}: expected an object, found {_show(value)}")
        return {k: read(v, f"{place}.{k}") for k, v in value.items()}

    return decode


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [k for k, _ in pairs]
        raise ValueError(f"the key {next(k for k in names if names.count(k) > 1)!r} twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"the number {name}")


def _show(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
