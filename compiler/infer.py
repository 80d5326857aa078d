"""Types come from references: an op's reference is run on fake tensors, once per distinct call."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import sympy
import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._sympy.value_ranges import ValueRanges

from infopt.compiler.errors import CannotInfer, DependsOnSize
from infopt.compiler.graph import Node, Type, attr_key
from infopt.compiler.ops import CONST, GETITEM, INPUT, Op, find, from_overload
from infopt.compiler.types import Dim, Size, TensorType, as_size

_serials = itertools.count(1)
_int_oo = 2**63 - 1


class Builder:
    """Makes nodes. Attributes find ops: `o.linear(x, w, bias)`, `o.gelu(x)`, `o.getitem(t, 0)`.

    One Builder belongs to one set of dims; it remembers the type of every distinct call, so a
    model with 48 equal layers infers one.
    """

    def __init__(self, dims: Iterable[Dim] = ()) -> None:
        self.dims = tuple(dims)
        self._memo: dict[Any, Type | CannotInfer] = {}
        self._lock = threading.RLock()
        self.verified: weakref.WeakSet[Node] = weakref.WeakSet()  # see verify.py
        self._fake: FakeWorld | None = None

    def __getattr__(self, name: str) -> Callable[..., Node]:
        if name.startswith("_"):
            raise AttributeError(name)
        found = overloads(name)
        return lambda *args, **attrs: self._first_that_binds(name, found, args, attrs)

    def _first_that_binds(self, name: str, ops: tuple[Op, ...], args: tuple, attrs: dict) -> Node:
        errors = []
        for candidate in ops:
            try:
                candidate.bind(args, attrs)
                if kinds_fit(candidate, args, attrs):
                    return self.call(candidate, *args, **attrs)
            except TypeError as error:
                errors.append(str(error))
        raise CannotInfer(f"no form of {name!r} takes these arguments: {'; '.join(errors) or args}")

    def input(self, name: str, type: TensorType, weight: bool = False) -> Node:
        """An input of the graph. weight: a parameter that the caller passes at every call."""
        return Node(INPUT, (), (("name", name), ("weight", weight)), type)

    def const(self, name: str, type: TensorType) -> Node:
        """A constant; its tensor is in Graph.consts under this name."""
        return Node(CONST, (), (("name", name),), type)

    def getitem(self, value: Node, index: int) -> Node:
        """One result of a node with several."""
        if isinstance(value.type, TensorType):
            raise CannotInfer(f"{value.op.name} has one result, found getitem {index}")
        result = value.type[index]
        if result is None:
            raise CannotInfer(f"result {index} of {value.op.name} is not a tensor")
        return Node(GETITEM, (value,), (("index", index),), result)

    def call(self, op: Op | torch._ops.OpOverload | str, *args: Any, **attrs: Any) -> Node:
        """The node `op(*args, **attrs)`, its type inferred. CannotInfer if that fails."""
        op = as_op(op)
        tensors, attributes = op.bind(args, attrs)
        return self.node(op, tensors, attributes)

    def in_place_of(
        self, node: Node, op: Op | torch._ops.OpOverload | str, *args: Any, **attrs: Any
    ) -> Node:
        """`call` for what will stand where `node` stood.

        Where the reference asks about a size that nothing decides, the type of the sizes seen holds
        if it is the type of `node`, which is promised for every size. CannotInfer otherwise.
        """
        try:
            return self.call(op, *args, **attrs)
        except DependsOnSize as error:
            if error.seen != node.type:
                raise
            op = as_op(op)
            return self.node(op, *op.bind(args, attrs), node.type)

    def node(
        self, op: Op, tensors: tuple, attributes: tuple, type: Type | None = None, serial: int = 0
    ) -> Node:
        """A node from bound arguments; `type` where the caller has it from torch's own run."""
        if type is None:
            type = self.infer(op, tensors, attributes)
        if not op.pure and not serial:
            serial = next(_serials)
        return Node(op, tensors, attributes, type, 0 if op.pure else serial)

    def rebuild(self, node: Node, args: tuple) -> Node:
        """The same op on other arguments, its type inferred anew where theirs changed."""
        if args == node.args:
            return node
        if node.op is GETITEM:
            return self.getitem(args[0], node.attr("index"))
        if types_of(args) == types_of(node.args):
            return self.node(node.op, args, node.attrs, node.type, node.serial)
        try:
            return self.node(node.op, args, node.attrs, None, node.serial)
        except DependsOnSize as error:
            # Sizes decided the same way when torch ran the node, under guards that the program's
            # door checks; only the strides are new.
            if shapes_of(args) != shapes_of(node.args) or error.seen is None:
                raise
            if _shapes(error.seen) != _shapes(node.type):
                raise
            return self.node(node.op, args, node.attrs, error.seen, node.serial)

    def infer(self, op: Op, tensors: tuple, attributes: tuple) -> Type:
        """The type of a bound call, from its reference. CannotInfer if the reference refuses."""
        key = (op, types_of(tensors), attr_key(attributes))
        known = self._memo.get(key)
        if known is None:
            with self._lock:
                if self._fake is None:
                    self._fake = FakeWorld(self.dims)
                try:
                    known = self._fake.run(op, tensors, dict(attributes))
                except CannotInfer as error:
                    self._fake = None  # a refused guard may have left its assumption behind
                    known = error
                except BaseException:  # so may a run that was interrupted
                    self._fake = None
                    raise
            self._memo[key] = known
        if isinstance(known, CannotInfer):
            raise known.with_traceback(None)
        return known


@lru_cache(maxsize=64)
def builder_for(dims: tuple[Dim, ...]) -> Builder:
    """The Builder that everyone shares for these dims: what one has inferred, all know."""
    return Builder(dims)


if hasattr(os, "register_at_fork"):  # a child makes its own: a lock of these may be held for ever
    os.register_at_fork(after_in_child=builder_for.cache_clear)


def as_op(op: Op | torch._ops.OpOverload | str) -> Op:
    if isinstance(op, Op):
        return op
    return find(op) if isinstance(op, str) else from_overload(op)


def types_of(args: Any) -> Any:
    """The types of nested arguments, for comparing and hashing."""
    if isinstance(args, tuple):
        return tuple(types_of(a) for a in args)
    return None if args is None else args.type


def shapes_of(args: Any) -> Any:
    """The shapes and dtypes of nested arguments."""
    if isinstance(args, tuple):
        return tuple(shapes_of(a) for a in args)
    return None if args is None else _shapes(args.type)


def _shapes(type: Type | None) -> Any:
    if isinstance(type, tuple):
        return tuple(map(_shapes, type))
    return None if type is None else (type.shape, type.dtype)


def overloads(name: str) -> tuple[Op, ...]:
    """The ops that `name` may mean: exact names first, then the overloads of an aten packet."""
    try:
        packet = getattr(torch.ops.aten, name)
        rest = [from_overload(getattr(packet, o)) for o in packet.overloads() if "out" not in o]
        rest.sort(key=lambda c: (not c.name.endswith((".default", ".Tensor")), c.name))
    except AttributeError:
        rest = []
    try:
        first: tuple[Op, ...] = (find(name),)
    except Exception:
        if not rest:
            raise
        first = ()
    return first + tuple(c for c in rest if c not in first)


def kinds_fit(op: Op, args: tuple, attrs: dict, tensor_kinds: tuple[type, ...] = (Node,)) -> bool:
    """Tensors where tensors are due, no numbers where names are: add.Tensor or add.Scalar, and no
    softmax.Dimname."""
    given = dict(attrs)
    positional = [p for p in op.parameters if not p.keyword]
    given.update({p.name: v for p, v in zip(positional, args, strict=False)})
    for p in op.parameters:
        if p.name not in given or given[p.name] is None:
            continue
        value = given[p.name]
        first = value[0] if isinstance(value, list | tuple) and value else value
        if isinstance(value, list | tuple) and not value:
            continue
        if p.is_tensor != isinstance(first, tensor_kinds):
            return False
        if p.is_tensor and p.kind and ("List" in p.kind) != isinstance(value, list | tuple):
            return False
        if "str" in p.kind and isinstance(first, int | float | sympy.Expr):
            return False
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's own log of a refused call: the caller turns it into CannotInfer."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


class FakeWorld:
    """A fake-tensor mode whose symbols mirror the graph's dims."""

    def __init__(self, dims: tuple[Dim, ...]) -> None:
        self.env = ShapeEnv()
        self.mode = FakeTensorMode(shape_env=self.env, allow_non_fake_inputs=True)
        self.to_env: dict[sympy.Symbol, sympy.Expr] = {}
        self.hints: dict[sympy.Symbol, int] = {}
        for dim in dims:
            # hints of 0 and 1 would specialise; any larger stand-in keeps the size symbolic
            hint = max(dim.hint, 2)
            symbol = self.env.create_symbol(
                hint,
                source=ConstantSource(f"infopt_{dim.name}"),
                dynamic_dim=DimDynamic.DYNAMIC,
                positive=True if dim.lo > 0 else None,
            )
            if isinstance(symbol, sympy.Symbol):
                # torch's traces mean sizes of 2 or more; what a rewrite makes of a size of 1 has
                # the same shape, because every op in a graph states the shape it wants
                lo, hi = max(dim.lo, 2), max(min(dim.hi or _int_oo, _int_oo), 2)
                self.env.var_to_range[symbol] = ValueRanges(lo, hi)
                self.hints[symbol] = hint
            self.to_env[dim.symbol] = symbol
        self.from_env = {v: k for k, v in self.to_env.items() if isinstance(v, sympy.Symbol)}

    def size(self, value: Size) -> int | torch.SymInt:
        if isinstance(value, int):
            return value
        expr = value.xreplace(self.to_env)
        if expr.is_Integer:
            return int(expr)
        hint = int(expr.xreplace({s: sympy.Integer(v) for s, v in self.hints.items()}))
        return self.env.create_symintnode(expr, hint=hint)

    def fake(self, value: Any) -> Any:
        """Fake tensors for nested arguments."""
        if isinstance(value, tuple):
            return [self.fake(v) for v in value]
        if value is None:
            return None
        if not isinstance(value.type, TensorType):
            raise CannotInfer(f"{value.op.name} has several results; read one with getitem")
        return self.fake_of(value.type)

    def fake_of(self, type: Type | None) -> Any:
        """A fake tensor of a type, or a tuple of them."""
        if isinstance(type, tuple):
            return tuple(self.fake_of(t) for t in type)
        if type is None:
            return None
        shape, strides = [self.size(s) for s in type.shape], [self.size(s) for s in type.strides]
        with self.mode:
            return torch.empty_strided(shape, strides, dtype=type.dtype, device=type.device)

    def attribute(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self.attribute(v) for v in value)
        return self.size(value) if isinstance(value, sympy.Expr) else value

    def run(self, op: Op, tensors: tuple, attributes: dict[str, Any]) -> Type:
        guards = len(self.env.guards)
        attrs = {k: self.attribute(v) for k, v in attributes.items()}
        # the dispatcher in Python has the symbolic forms that some of torch's C++ lacks
        with self.mode, enable_python_dispatcher(), torch.no_grad():
            positional, keyword = op.call_arguments(tuple(self.fake(t) for t in tensors), attrs)
            try:
                with _quiet():
                    result = op.reference(*positional, **keyword)
            except Exception as error:
                described = ", ".join(map(str, _flat_types(tensors)))
                raise CannotInfer(f"{op.name}({described}) {attributes or ''}: {error}") from error
        if len(self.env.guards) > guards:
            guard = self.env.guards[-1].expr
            raise DependsOnSize(
                f"{op.name} behaves differently depending on a size: {guard}",
                self.type_of(op, result),
            )
        return self.type_of(op, result)

    def type_of(self, op: Op, result: Any) -> Type:
        if isinstance(result, FakeTensor):
            return self.tensor_type(result)
        if isinstance(result, list | tuple):
            if not all(r is None or isinstance(r, torch.Tensor) for r in result):
                raise CannotInfer(f"{op.name} returns {result!r}, expected tensors")
            return tuple(None if r is None else self.tensor_type(r) for r in result)
        if isinstance(result, torch.Tensor):
            return TensorType.of(result)
        if result is None:
            return ()
        raise CannotInfer(f"{op.name} returns {type(result).__name__}, expected a tensor")

    def tensor_type(self, tensor: torch.Tensor) -> TensorType:
        def back(size: Any) -> Size:
            value = as_size(size)
            return value if isinstance(value, int) else as_size(value.xreplace(self.from_env))

        shape = tuple(back(s) for s in tensor.shape)
        strides = tuple(back(s) for s in tensor.stride())
        return TensorType(shape, tensor.dtype, strides, tensor.device.type)


def _flat_types(args: Any) -> Iterable[Any]:
    for arg in args:
        if isinstance(arg, tuple):
            yield from _flat_types(arg)
        elif arg is not None:
            yield arg.type
