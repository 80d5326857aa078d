"""Ops: an op is a torch function that gives its meaning, plus the shape of its arguments.

Every aten overload is an op already (`aten("gelu.default")`); infopt's own are declared with @op.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import sympy
import torch

from infopt.compiler.errors import UnknownOp
from infopt.compiler.types import as_size

_TENSOR_TYPES = ("Tensor", "Optional[Tensor]", "List[Tensor]", "List[Optional[Tensor]]")


@dataclass(frozen=True)
class Parameter:
    """One argument of an op: a tensor (or list of tensors), or an attribute with its default."""

    name: str
    is_tensor: bool
    default: Any = inspect.Parameter.empty
    keyword: bool = False
    kind: str = ""

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


@dataclass(frozen=True, eq=False)
class Op:
    """An operation.

    name        "aten.gelu.default", or the plain name of an infopt op
    reference   the torch function that is the semantics
    parameters  its arguments in call order
    pure        same arguments, same result, nothing else happens
    """

    name: str
    reference: Callable[..., Any]
    parameters: tuple[Parameter, ...]
    pure: bool = True
    key: str = field(default="")

    def bind(self, args: tuple, kwargs: Mapping[str, Any]) -> tuple[tuple, tuple]:
        """(tensor arguments, attributes with every default filled in) of a call.

        Raises TypeError naming the op for missing, doubled or unknown arguments.
        """
        given = dict(kwargs)
        positional = [p for p in self.parameters if not p.keyword]
        if len(args) > len(positional):
            raise TypeError(f"{self.name} takes {len(positional)} arguments, found {len(args)}")
        for parameter, value in zip(positional, args, strict=False):
            if parameter.name in given:
                raise TypeError(f"{self.name} got {parameter.name!r} twice")
            given[parameter.name] = value
        tensors, attrs = [], []
        for parameter in self.parameters:
            if parameter.name in given:
                value = given.pop(parameter.name)
            elif parameter.required:
                raise TypeError(f"{self.name} needs {parameter.name!r}")
            else:
                value = parameter.default
            if parameter.is_tensor:
                tensors.append(tuple(value) if isinstance(value, list | tuple) else value)
            else:
                attrs.append((parameter.name, _attribute(value, parameter.kind)))
        if given:
            known = [p.name for p in self.parameters]
            raise TypeError(f"{self.name} has no argument {sorted(given)}, only {known}")
        return tuple(tensors), tuple(attrs)

    def call_arguments(self, tensors: tuple, attrs: Mapping[str, Any]) -> tuple[list, dict]:
        """The (positional, keyword) arguments to call the reference with."""
        positional: list[Any] = []
        keyword: dict[str, Any] = {}
        sources = iter(tensors)
        for parameter in self.parameters:
            value = next(sources) if parameter.is_tensor else attrs[parameter.name]
            if isinstance(value, tuple):
                value = list(value)
            if parameter.keyword:
                keyword[parameter.name] = value
            else:
                positional.append(value)
        return positional, keyword

    def __repr__(self) -> str:
        return f"op {self.name}"


def _attribute(value: Any, kind: str) -> Any:
    """An attribute in its normal form: lists become tuples, SymInts expressions, ints floats."""
    if isinstance(value, list | tuple):
        return tuple(_attribute(v, kind) for v in value)
    if isinstance(value, torch.SymInt | sympy.Expr):
        return as_size(value)
    if isinstance(value, torch.SymFloat | torch.SymBool):
        raise TypeError(f"an attribute that depends on data: {value}")
    if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, torch.device):
        # a program is on one device, and its graph calls that the CPU
        return torch.device("cpu") if value.type in ("cpu", "cuda") else value
    return value


_OPS: dict[str, Op] = {}


def op(
    function: Callable[..., Any] | None = None,
    *,
    pure: bool = True,
    name: str | None = None,
    kind: type[Op] = Op,
    **declared: Any,
) -> Any:
    """Declare an infopt op by its reference, a plain torch function.

    Positional parameters are tensors (annotate nothing; a default of None makes one optional),
    keyword-only ones are attributes. Returns the Op; its name is the function's name.
    kind: the class of the op, an Op with further fields, which are given by keyword.

        @op
        def linear_act(x, weight, bias=None, *, activation="none"): ...
    """
    if function is None:
        return lambda f: op(f, pure=pure, name=name, kind=kind, **declared)
    parameters = []
    for p in inspect.signature(function).parameters.values():
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise TypeError(
                f"op {function.__name__}: *{p.name} is not allowed, name every argument"
            )
        keyword = p.kind is p.KEYWORD_ONLY
        parameters.append(Parameter(p.name, not keyword, p.default, keyword))
    op_name = name or function.__name__
    try:
        source = inspect.getsource(function)
    except OSError:
        source = f"{function.__module__}.{function.__qualname__}"
    key = f"{op_name}:{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    made = kind(op_name, function, tuple(parameters), pure, key, **declared)
    known = _OPS.get(op_name)
    if known is not None and known.key != key:
        raise ValueError(f"op {op_name!r} is already declared, by {known.reference.__module__}")
    if known is not None and isinstance(known, kind):  # its module was loaded again
        return known
    _OPS[op_name] = made
    return made


@cache
def aten(name: str) -> Op:
    """The op of an aten overload, "gelu.default" or "add.Tensor". UnknownOp if there is none."""
    packet, _, overload = name.partition(".")
    try:
        return from_overload(getattr(getattr(torch.ops.aten, packet), overload or "default"))
    except AttributeError:
        raise UnknownOp(f"there is no aten operator {name!r}") from None


@cache
def from_overload(overload: torch._ops.OpOverload) -> Op:
    """The op of any torch operator overload, custom ones included."""
    parameters = []
    for a in overload._schema.arguments:
        annotation = str(a.real_type if hasattr(a, "real_type") else a.type)
        default = a.default_value if a.has_default_value() else inspect.Parameter.empty
        is_tensor = str(a.type) in _TENSOR_TYPES
        parameters.append(Parameter(a.name, is_tensor, default, a.kwarg_only, annotation))
    random = torch.Tag.nondeterministic_seeded in overload.tags
    name = str(overload)
    pure = not random and not overload._schema.is_mutable and not _has_effect(overload)
    return Op(name, overload, tuple(parameters), pure, name)


def _has_effect(overload: torch._ops.OpOverload) -> bool:
    """True for operators that return nothing: they are called for what they do (assertions)."""
    return not overload._schema.returns


def find(name: str) -> Op:
    """The op called `name`: an infopt op, else an aten overload ("add.Tensor", or "gelu" for its
    default overload). UnknownOp if neither exists."""
    if name in _OPS:
        return _OPS[name]
    if name.startswith("aten."):
        return aten(name.removeprefix("aten."))
    return aten(name)


def known_ops() -> tuple[Op, ...]:
    """infopt's own ops, by name."""
    return tuple(_OPS[n] for n in sorted(_OPS))


# The leaves of a graph, and the one way to read a result of several. Their references are what
# the interpreter does with them itself.


def _leaf(*_: Any, **__: Any) -> Any:
    raise TypeError("a leaf has no reference; the interpreter supplies its value")


INPUT = Op(
    "input", _leaf, (Parameter("name", False), Parameter("weight", False, False)), True, "input"
)
CONST = Op("const", _leaf, (Parameter("name", False),), True, "const")
GETITEM = Op(
    "getitem",
    lambda value, index: value[index],
    (Parameter("value", True), Parameter("index", False)),
    True,
    "getitem",
)
