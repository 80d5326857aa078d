"""The content hash of Python objects: what a pass's key is made of.

It describes what would run: the byte code of functions with their defaults, closures and the
functions they call, the source text where there is one, and the values of options. So an edit of
one byte changes it, wherever the edit is in what the pass owns. What another package holds (infopt,
torch, the standard library, what is installed beside the pass) counts by its version, infopt by
its own files too.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import inspect
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable, Mapping, Set
from functools import cache
from pathlib import Path
from typing import Any

import sympy
import torch

import infopt.compiler

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), range, slice)
_NAMED = (torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size)
_OVERLOADS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
_INDUCTOR = "torch._inductor.custom_graph_pass"
_NEVER_OWN = {"infopt", "torch", "numpy", "sympy", *sys.stdlib_module_names}
# Globals of other kinds (loggers, locks, registries) are no part of what a function is.
_LOOKED_INTO = (
    *(*_PLAIN, *_NAMED, *_OVERLOADS, torch.Tensor, Mapping, list, tuple, set, frozenset),
    *(type, types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.ModuleType),
    *(enum.Enum, functools.partial),
)


@dataclasses.dataclass(frozen=True)
class Content:
    """digest: sha256 in hex; opaque: what it could not look into, empty where it saw everything."""

    digest: str
    opaque: tuple[str, ...] = ()


def content_of(*values: Any, versions: Iterable[str] = ("infopt", "torch")) -> Content:
    """The content of values together. Two that are equal in content behave equally.

    An object written in C whose state is hidden has no content: it is named in `opaque`, and
    equality then says nothing.
    """
    reader = _Reader({_package(v) for v in values} - _NEVER_OWN)
    for value in values:
        reader.value(value)
    reader.add("python", sys.version, *map(version_of, versions))
    return Content(reader.digest.hexdigest(), tuple(dict.fromkeys(reader.opaque)))


class _Reader:
    def __init__(self, own: Set[str]) -> None:
        self.own = own  # packages that are looked into although they are installed
        self.digest = hashlib.sha256()
        self.opaque: list[str] = []
        # id -> digest, and the object, so that its id stays its own
        self._known: dict[int, tuple[bytes, Any]] = {}

    def add(self, *parts: str | bytes) -> None:
        for part in parts:
            data = part.encode() if isinstance(part, str) else part
            self.digest.update(len(data).to_bytes(8, "little") + data)

    def value(self, value: Any) -> None:
        """One object, by its kind. Inside itself an object counts as "itself"."""
        if isinstance(value, _PLAIN):
            self.add(type(value).__name__, repr(value))
            return
        known = self._known.get(id(value))
        if known is None:
            outer, self.digest = self.digest, hashlib.sha256()
            self._known[id(value)] = (b"itself", value)
            self._compound(value)
            known = self._known[id(value)] = (self.digest.digest(), value)
            self.digest = outer
        self.add(known[0])

    def _compound(self, value: Any) -> None:
        if isinstance(value, _NAMED + _OVERLOADS):
            self.add(type(value).__name__, str(value))
        elif isinstance(value, torch.Tensor):
            self._tensor(value)
        elif isinstance(value, sympy.Basic):
            self.add("sympy", sympy.srepr(value))
        elif isinstance(value, Mapping):
            self.add(type(value).__name__, str(len(value)))
            for key, item in value.items():
                self.value(key)
                self.value(item)
        elif isinstance(value, list | tuple):
            self.add(type(value).__name__, str(len(value)))
            for item in value:
                self.value(item)
        elif isinstance(value, set | frozenset):
            found = [content_of(v) for v in value]
            self.add(type(value).__name__, *sorted(c.digest for c in found))
            self.opaque += [o for c in found for o in c.opaque]
        else:
            self._code(value)

    def _code(self, value: Any) -> None:
        if isinstance(value, types.ModuleType):
            self.add("module", value.__name__, version_of(value.__name__))
        elif isinstance(value, enum.Enum):
            self.add("enum", type(value).__qualname__, value.name)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.MethodType):
            self.value(value.__self__)
            self.value(value.__func__)
        elif isinstance(value, functools.partial):
            self.value((value.func, value.args, value.keywords))
        elif isinstance(value, types.BuiltinFunctionType | types.MethodDescriptorType):
            self.add("builtin", value.__qualname__, version_of(_package(value)))
        elif isinstance(value, types.CodeType):
            self._bytecode(value)
        else:
            self._object(value)

    def _by_version(self, value: Any) -> bool:
        name = _package(value)
        made_by_exec = name == "builtins" and isinstance(value, types.FunctionType)
        return bool(name) and not made_by_exec and name not in self.own and _is_installed(name)

    def _tensor(self, tensor: torch.Tensor) -> None:
        self.add("tensor", str(tensor.dtype), str(tuple(tensor.shape)), str(tensor.device))
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
        if not plain or tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided:
            self.opaque.append(f"a {type(tensor).__name__} on {tensor.device.type}")
            return
        held = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        held = torch.view_as_real(held).reshape(-1) if held.is_complex() else held
        self.add(held.view(torch.uint8).numpy().tobytes() if held.numel() else b"")

    def _class(self, cls: type) -> None:
        """A class of the user: source, functions and attributes; of a package: its name."""
        self.add("class", cls.__module__, cls.__qualname__)
        for base in cls.__mro__:
            if self._by_version(base):
                self.add(base.__module__, base.__qualname__, version_of(_package(base)))
                continue
            self.add(_source(base))
            for name, item in vars(base).items():
                if name in _MADE_BY_PYTHON:
                    continue
                self.add(name)
                self.value(_unwrapped(item))

    def _function(self, function: types.FunctionType) -> None:
        if self._by_version(function):
            self.add(function.__module__, function.__qualname__, version_of(_package(function)))
            return
        self.add("function", function.__qualname__, _source(function))
        self.value(function.__defaults__)
        self.value(function.__kwdefaults__)
        for cell in function.__closure__ or ():
            try:
                self.value(cell.cell_contents)
            except ValueError:  # named before it is bound, as a recursive function in a function
                self.add("empty cell")
        self._bytecode(function.__code__)
        for name in _globals_of(function.__code__):
            if name in function.__globals__:
                self._global(name, function.__globals__[name])

    def _bytecode(self, code: types.CodeType) -> None:
        self.add("code", code.co_name, code.co_code)
        self.value((code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars))
        for const in code.co_consts:
            self.value(const)

    def _global(self, name: str, value: Any) -> None:
        """What a function finds in its module: code and plain data; other objects by their type."""
        self.add("global", name)
        known = len(self.opaque)
        if isinstance(value, _LOOKED_INTO):
            self.value(value)
        else:
            self.add(type(value).__module__, type(value).__qualname__)
        del self.opaque[known:]

    def _object(self, value: Any) -> None:
        """An instance: its class and its attributes, or the identity it declares itself."""
        if any(c.__module__ == _INDUCTOR for c in type(value).__mro__):  # it knows its own content
            identity = value.uuid()
            if identity is not None:
                self.add("uuid", type(value).__qualname__, repr(identity))
                return
            self.opaque.append(f"{type(value).__qualname__}, whose uuid() is None")
            return
        self._class(type(value))
        state = getattr(value, "__dict__", None)
        slots = [s for c in type(value).__mro__ for s in vars(c).get("__slots__", ())]
        if state is None and not slots:
            if any("__slots__" in vars(c) for c in type(value).__mro__):
                return  # a Python class without any state
            self.opaque.append(f"a {type(value).__module__}.{type(value).__qualname__}")
            return
        for name, item in sorted((state or {}).items()):
            self.add(name)
            self.value(item)
        for name in slots:
            if isinstance(name, str) and name not in ("__dict__", "__weakref__"):
                self.add(name)
                self.value(getattr(value, name, None))


# What the interpreter puts into classes: derived from the rest, or different in every run.
_MADE_BY_PYTHON = {
    *("__module__", "__qualname__", "__doc__", "__annotations__", "__dict__", "__weakref__"),
    *("__dataclass_fields__", "__dataclass_params__", "__match_args__"),
    *("__abstractmethods__", "_abc_impl", "__firstlineno__", "__static_attributes__"),
    "__slotnames__",  # by copy and pickle
}


def _unwrapped(item: Any) -> Any:
    """The functions inside a class attribute."""
    if isinstance(item, staticmethod | classmethod):
        return item.__func__
    if isinstance(item, property):
        return (item.fget, item.fset, item.fdel)
    if isinstance(item, functools.cached_property):
        return item.func
    if isinstance(item, types.GetSetDescriptorType | types.MemberDescriptorType):
        return item.__name__
    return item


def _globals_of(code: types.CodeType) -> list[str]:
    """Names that the code, or code inside it, may look up in its module."""
    names = list(code.co_names)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            names += _globals_of(const)
    return list(dict.fromkeys(names))


def _source(value: Callable[..., Any] | type) -> str:
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):  # made by exec or type(): the byte code says it all
        return ""


def _package(value: Any) -> str:
    return (getattr(value, "__module__", None) or "").partition(".")[0]


@cache
def _is_installed(name: str) -> bool:
    """True for infopt, the standard library and what lies in site-packages, this environment's or
    one that it shares."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if file is None:
        return name in sys.stdlib_module_names
    places = sysconfig.get_paths()
    shared = not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)
    return (
        name == "infopt"
        or shared
        or any(Path(file).is_relative_to(places[p]) for p in ("stdlib", "purelib", "platlib"))
    )


@cache
def version_of(name: str) -> str:
    """A package's name with its version; infopt's with a digest of its own files."""
    top = name.partition(".")[0]
    if top == "infopt":
        return f"{name} {_own_files()}"
    return " ".join([name, *filter(None, [str(getattr(sys.modules.get(top), "__version__", ""))])])


@cache
def _own_files() -> str:
    """A digest of the Python files of the compiler and what lies beside it."""
    digest = hashlib.sha256(infopt.__version__.encode())
    root = Path(infopt.compiler.__path__[0]).resolve().parent
    for folder in ("compiler", "codegen", "passes", "runtime"):
        for file in sorted((root / folder).rglob("*.py")):
            digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]
