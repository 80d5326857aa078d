"""From a program with views and in-place writes to pure values.

Every fx value belongs to a storage. A write replaces the storage's base value by a pure
expression (`select_scatter`, `slice_scatter`, inverse reshapes ...) and bumps its version; a view
read later is derived again from the new base. What has no exact pure form (overlapping memory,
as_strided, writes through expand) raises TraceDeclined, and torch runs the program itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from infopt.compiler.errors import DependsOnSize, TraceDeclined
from infopt.compiler.graph import Node
from infopt.compiler.infer import Builder
from infopt.compiler.ops import from_overload
from infopt.compiler.types import Size, TensorType

aten = torch.ops.aten


@dataclass
class Storage:
    """One piece of memory: the fx value that made it, its value now, how often it was written."""

    base: fx.Node
    value: Node
    version: int = 0
    written_by: str = ""


@dataclass
class View:
    """How an fx value is read from another one, and how a write to it changes that one.

    part: (dim, start, stop) where it is a known range of its parent
    """

    parent: fx.Node
    read: Callable[[Node], Node]
    write: Callable[[Node, Node], Node] | None
    name: str
    part: tuple[int, Size, Size] | None = None


@dataclass
class Values:
    """The current pure value of every fx node that is a tensor."""

    o: Builder
    storages: dict[int, Storage] = field(default_factory=dict)
    views: dict[fx.Node, View] = field(default_factory=dict)
    _seen: dict[fx.Node, tuple[int, Node]] = field(default_factory=dict)
    _alias: dict[int, int] = field(default_factory=dict)
    _numbers: dict[sympy.Expr, Size] = field(default_factory=dict)

    def key(self, node: fx.Node) -> int | None:
        """Identity of the memory that an fx value lives in."""
        key = storage_key(node)
        while key in self._alias:
            key = self._alias[key]
        return key

    def shares_memory(self, node: fx.Node, source: fx.Node) -> bool:
        key = self.key(node)
        return key is not None and key == self.key(source)

    def alias(self, node: fx.Node, source: fx.Node) -> None:
        """From now on these two count as one memory, although tracing gave them two."""
        mine, theirs = storage_key(node), self.key(source)
        if mine is not None and theirs is not None and mine != theirs:
            self._alias[mine] = theirs

    def storage(self, node: fx.Node) -> Storage | None:
        key = self.key(node)
        return None if key is None else self.storages.get(key)

    def define(self, node: fx.Node, value: Node) -> None:
        """A new value. One that shares memory with an older value in a way we cannot follow is
        fine until somebody writes to either; `write` checks."""
        key = self.key(node)
        if key is not None and key not in self.storages:
            self.storages[key] = Storage(node, value)
        version = self.storages[key].version if key is not None else 0
        self._seen[node] = (version, self._settled(node, value))

    def define_view(self, node: fx.Node, view: View) -> None:
        self.views[node] = view
        self._seen.pop(node, None)

    def read(self, node: fx.Node) -> Node:
        storage = self.storage(node)
        version = storage.version if storage else 0
        seen = self._seen.get(node)
        if seen is not None and seen[0] == version:
            return seen[1]
        if storage is not None and storage.base is node:
            value = storage.value
        elif node in self.views:
            value = self.views[node].read(self.read(self.views[node].parent))
        elif seen is not None:
            by = storage.written_by if storage else "?"
            raise TraceDeclined(f"{node.name} shares memory with a value that {by} writes to")
        else:
            raise TraceDeclined(f"{node.name} ({node.target}) is not a tensor value")
        value = self._settled(node, value)
        self._seen[node] = (version, value)
        return value

    def type_of(self, value: torch.Tensor) -> TensorType:
        """The type of a traced value, with a number for every size that guards have fixed.

        torch goes on to write such a size as an expression, say (s0//4)**2 where a guard says that
        this is 1: whoever reads the value would not know that it is broadcast.
        """
        type = TensorType.of(value)
        sizes = zip(value.shape, type.shape, strict=True)
        return replace(type, shape=tuple(self._number(s, n) for s, n in sizes))

    def _number(self, size: Any, known: Size) -> Size:
        if isinstance(known, int | sympy.Symbol):
            return known
        found = self._numbers.get(known)
        if found is None:
            hint = size.node.hint
            fixed = hint is not None and statically_known_true(size == hint)
            found = self._numbers[known] = int(hint) if fixed else known
        return found

    def _settled(self, node: fx.Node, value: Node) -> Node:
        """The value in the shape that `type_of` gives."""
        self.type_of(node.meta["val"])
        shape = tuple(n if isinstance(n, int) else self._numbers.get(n, n) for n in value.shape)
        if shape == value.shape:
            return value
        op = from_overload(aten.view.default)
        type = replace(value.tensor_type, shape=shape)
        return self.o.node(op, *op.bind((value, list(shape)), {}), type)

    def write(self, node: fx.Node, value: Node, by: str) -> None:
        """`node` holds `value` from now on, and so does every view of its memory."""
        storage = self.storage(node)
        if storage is None:
            raise TraceDeclined(f"{by} writes to {node.name}, whose memory is unknown")
        target = node
        while target is not storage.base:
            view = self.views.get(target)
            if view is None:
                reason = f"{by} writes to {target.name}, memory shared in an unknown way"
                raise TraceDeclined(reason)
            if view.write is None:
                raise TraceDeclined(f"{by} writes through {view.name}, which may overlap itself")
            value = view.write(self.read(view.parent), value)
            target = view.parent
        storage.value = value
        storage.version += 1
        storage.written_by = by


def storage_key(node: fx.Node) -> int | None:
    """Identity of the memory of an fx value during tracing (None where it is not a tensor)."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    return value.untyped_storage()._cdata


_SHAPE_ONLY = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.view_as.default,
    aten.reshape_as.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.detach.default,
    aten.alias.default,
    aten.contiguous.default,
    aten.to.device,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.other,
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
    aten.expand.default,
    aten.expand_as.default,
    aten.lift_fresh.default,
    aten.positive.default,
    aten.resolve_conj.default,
    aten.resolve_neg.default,
}

# The only ones that change the number of elements. For the others it is the same by definition,
# also where the expressions of both sides cannot be shown to be equal: (n//4)**2 // (n//4) * (n//4)
_BROADCASTING = {aten.expand.default, aten.expand_as.default}


def view_of(o: Builder, node: fx.Node, parent: fx.Node, args: dict[str, Any]) -> View | None:
    """The View that an aten call makes of its first argument, or None where it is not a known one.

    args: the call's attributes by schema name.
    """
    target = node.target
    before, after = TensorType.of(parent.meta["val"]), TensorType.of(node.meta["val"])
    if target in _SHAPE_ONLY:
        same_size = target not in _BROADCASTING or _equal(before.numel, after.numel)
        return View(
            parent,
            lambda base: _reshaped(o, base, after, same_size),
            (lambda base, value: _reshaped(o, value, before, True)) if same_size else None,
            str(target),
        )
    order = _permutation(target, before.rank, args)
    if order is not None:
        inverse = [order.index(d) for d in range(len(order))]
        return View(
            parent,
            lambda base: _typed(o, aten.permute.default, (base,), (order,), after),
            lambda base, value: o.call(aten.permute.default, value, inverse),
            str(target),
        )
    if target is aten.narrow.default:
        args = {**args, "end": args["start"] + args["length"], "step": 1}
        target = aten.slice.Tensor
    if target not in _PARTS:
        return None
    scatter, names = _PARTS[target]
    where = tuple(args[name] for name in names)
    return View(
        parent,
        lambda base: _typed(o, target, (base,), where, after),
        lambda base, value: _typed(o, scatter, (base, value), where, base.tensor_type),
        str(target),
        _part(target, before, args),
    )


# Views of a part -> the op that writes a part, and the attributes that both take.
_PARTS: dict[Any, tuple[Any, tuple[str, ...]]] = {
    aten.select.int: (aten.select_scatter.default, ("dim", "index")),
    aten.slice.Tensor: (aten.slice_scatter.default, ("dim", "start", "end", "step")),
    aten.diagonal.default: (aten.diagonal_scatter.default, ("offset", "dim1", "dim2")),
}


def _typed(o: Builder, overload: Any, tensors: tuple, attrs: tuple, type: TensorType) -> Node:
    """A call whose type is the one tracing saw where only torch's own guards could decide it."""
    try:
        return o.call(overload, *tensors, *attrs)
    except DependsOnSize:
        op = from_overload(overload)
        return o.node(op, *op.bind((*tensors, *attrs), {}), type)


def _part(target: Any, before: TensorType, args: dict[str, Any]) -> tuple[int, Size, Size] | None:
    """(dim, start, stop) of a select or slice whose place is known, counted from 0.

    args["piece"]: the slice is a piece of a split, whose expressions are places as they stand.
    """
    if target is aten.diagonal.default:
        return None
    dim = args["dim"] % before.rank
    if args.get("piece"):
        return dim, args["start"], args["end"]
    size = before.shape[dim]
    if target is aten.select.int:
        start, stop, step = args["index"], args["index"] + 1, 1
        known = isinstance(start, int) and (start >= 0 or isinstance(size, int))
        if known and start < 0:
            start, stop = start + size, stop + size
    else:
        start, stop, step = args["start"] or 0, args["end"], args["step"]
        known = isinstance(size, int) and isinstance(start, int) and isinstance(stop, int | None)
        if known and step == 1:
            start, stop, _ = slice(start, stop, 1).indices(size)
    return (dim, start, stop) if known and step == 1 else None


def disjoint(a: View | None, b: View | None) -> bool:
    """True where two views of one value surely have no element in common."""
    if a is None or b is None or a.parent is not b.parent or a.part is None or b.part is None:
        return False
    (dim, start, stop), (other, first, last) = a.part, b.part
    return dim == other and (_at_most(stop, first) or _at_most(last, start))


def _at_most(a: Size, b: Size) -> bool:
    if isinstance(a, int) and isinstance(b, int):
        return a <= b
    return a == b


def _equal(a: Size, b: Size) -> bool:
    return bool(sympy.simplify(a - b) == 0)


def _reshaped(o: Builder, value: Node, like: TensorType, same_size: bool) -> Node:
    """`value` in another shape of the same elements, or broadcast to it."""
    if value.shape == like.shape:
        return value
    overload = aten.reshape.default if same_size else aten.expand.default
    return _typed(o, overload, (value,), (list(like.shape),), like)


def _permutation(target: Any, rank: int, args: dict[str, Any]) -> list[int] | None:
    """The order of axes of a transposing view."""
    order = list(range(rank))
    if target is aten.permute.default:
        return [d % rank for d in args["dims"]] if rank else []
    if target is aten.t.default or target is aten.numpy_T.default:
        return order[::-1]
    if target in (aten.mT.default, aten.adjoint.default) and rank >= 2:
        return [*order[:-2], rank - 1, rank - 2]
    if target in (aten.transpose.int, aten.swapaxes.default, aten.swapdims.default):
        names = ("dim0", "dim1") if "dim0" in args else ("axis0", "axis1")
        if rank:
            a, b = args[names[0]] % rank, args[names[1]] % rank
            order[a], order[b] = order[b], order[a]
        return order
    if target is aten.movedim.int and rank:
        order.insert(args["destination"] % rank, order.pop(args["source"] % rank))
        return order
    return None


def pure_form(overload: torch._ops.OpOverload) -> torch._ops.OpOverload:
    """The overload that computes what an in-place one writes: add_.Tensor -> add.Tensor.

    Raises TraceDeclined where there is none, or where it draws random numbers.
    """
    name = overload._schema.name.split("::")[1]
    packet = getattr(aten, name.removesuffix("_"), None)
    if not name.endswith("_") or name.startswith("__") or packet is None:
        raise TraceDeclined(f"{overload} writes to its arguments and has no pure form")
    found = getattr(packet, overload._overloadname, None) or getattr(packet, "default", None)
    if found is None or found._schema.is_mutable:
        raise TraceDeclined(f"{overload} writes to its arguments and has no pure form")
    given = [a.name for a in overload._schema.arguments]
    if [a.name for a in found._schema.arguments] != given:
        raise TraceDeclined(f"{overload} writes to its arguments and has no pure form")
    if torch.Tag.nondeterministic_seeded in overload.tags or not from_overload(found).pure:
        raise TraceDeclined(f"{overload} fills memory with random numbers in place")
    return found
