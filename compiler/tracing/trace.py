"""From an fx.GraphModule of aten ops to a Graph.

The module comes from make_fx before dispatch (torch.compile) or from torch.export; both keep
linear, attention and norms whole and both carry fake values in node.meta["val"]. Whatever cannot
become a pure graph exactly raises TraceDeclined with the reason: then torch runs it.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import sympy
import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import guard_scalar

from infopt.compiler.errors import CannotInfer, DependsOnSize, TraceDeclined
from infopt.compiler.graph import Graph, Node, Output, Type
from infopt.compiler.infer import builder_for
from infopt.compiler.ops import Op, from_overload
from infopt.compiler.tracing.broadcast_strides import misses_strides
from infopt.compiler.tracing.dims import dims_of
from infopt.compiler.tracing.functionalize import Values, disjoint, pure_form, view_of
from infopt.compiler.tracing.refusals import check_call, check_tensor, tensors_of
from infopt.compiler.tracing.results import IDENTITY_IN_EVAL, Results
from infopt.compiler.types import TensorType, as_size

aten = torch.ops.aten

_DROPPED = {
    torch._C._set_grad_enabled,
    aten.sym_constrain_range_for_size.default,
    aten.sym_constrain_range.default,
    aten._assert_tensor_metadata.default,  # dtype and device are checked at the door of a call
}
_SCALAR_FORM = {
    "Tensor": "Scalar",
    "Tensor_Tensor": "Tensor_Scalar",
    "Tensor_mode": "Scalar_mode",
    "default": "Scalar",
}


def from_fx(module: fx.GraphModule, weights: Collection[int] = (), guard: bool = False) -> Graph:
    """The Graph of a module whose placeholders are tensors and integers.

    weights: indices of placeholders that are parameters or buffers of the model.
    guard: a float that torch left symbolic (an epsilon, a scale) may be fixed at the value seen,
    because the caller's guards are still open and will check it; only dynamo's are.
    Raises TraceDeclined with the reason where the program is not a pure tensor program.
    """
    try:
        return _Tracer(module, frozenset(weights), guard).run()
    except CannotInfer as error:
        raise TraceDeclined(str(error)) from error


class _Tracer:
    def __init__(self, module: fx.GraphModule, weights: frozenset[int], guard: bool) -> None:
        self.module = module
        self.guard = guard
        self.weights = weights
        self.dims = dims_of(module)
        self.o = builder_for(self.dims)
        self.values = Values(self.o)
        self.plain: dict[fx.Node, Any] = {}
        self.inputs: list[Node] = []
        self.input_nodes: list[fx.Node] = []
        self.scalars: list[Any] = []
        self.consts: dict[str, torch.Tensor] = {}
        self.devices: dict[torch.device, str] = {}  # and the first thing that is there

    def run(self) -> Graph:
        for index, node in enumerate(self.module.graph.nodes):
            if node.op == "placeholder":
                self.placeholder(index, node)
            elif node.op == "get_attr":
                self.attribute(node)
            elif node.op == "call_function":
                self.call(node)
            elif node.op == "output":
                self.check_one_device()
                return self.finish(node)
            else:
                raise TraceDeclined(f"{node.op} {node.target} is not an operator call")
        raise TraceDeclined("the program has no output")

    def placeholder(self, index: int, node: fx.Node) -> None:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            check_tensor(node.name, value)
            self.devices.setdefault(value.device, f"input {node.name}")
            made = self.o.input(node.name, TensorType.of(value), index in self.weights)
            self.inputs.append(made)
            self.input_nodes.append(node)
            self.values.define(node, made)
        elif isinstance(value, torch.SymInt) or (type(value) is int and node.users):
            self.scalars.append(as_size(value))
            self.plain[node] = as_size(value)
        elif node.users:
            raise TraceDeclined(
                f"input {node.name} is a {type(value).__name__}, not a tensor or size"
            )

    def attribute(self, node: fx.Node) -> None:
        value = operator.attrgetter(str(node.target))(self.module)
        if not isinstance(value, torch.Tensor):
            raise TraceDeclined(
                f"{node.target} is a {type(value).__name__}: control flow or a script"
            )
        check_tensor(str(node.target), value)
        self.devices.setdefault(value.device, str(node.target))
        name = f"c_{node.target}".replace(".", "_")
        self.consts[name] = value.detach()
        node.meta.setdefault("val", value)
        self.values.define(node, self.o.const(name, TensorType.of(value)))

    def call(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if node.target in _DROPPED:
            return
        if isinstance(value, torch.SymInt | int) and not isinstance(value, bool):
            self.plain[node] = as_size(value)
            if any(s.name.startswith("u") for s in sympy.sympify(self.plain[node]).free_symbols):
                raise TraceDeclined(f"{node.name} is a size that depends on data")
            return
        if (
            isinstance(value, torch.SymFloat | torch.SymBool | float | bool)
            or node.target is aten.item.default
        ):
            self.plain[node] = value  # declined where it is read
            return
        if node.target is operator.getitem:
            self.getitem(node)
            return
        if not isinstance(node.target, torch._ops.OpOverload):
            raise TraceDeclined(
                f"{getattr(node.target, '__name__', node.target)} is not an operator"
            )
        if node.target is aten.lift_fresh_copy.default:  # torch.tensor(...) in a forward
            self.values.define(node, self.o.clone(self.look_up(node.args[0])))
        elif node.target is aten.detach_.default:  # writes nothing
            self.same_as(node, node.args[0])  # type: ignore[arg-type]
        elif node.target._schema.is_mutable:
            self.mutate(node)
        else:
            self.operate(node)

    def getitem(self, node: fx.Node) -> None:
        source, index = node.args
        assert isinstance(source, fx.Node)
        piece = self.plain_pieces(source, index)
        if piece is not None:
            self.define_view(node, *piece)
            return
        self.values.define(node, self.o.getitem(self.multiple[source], index))  # type: ignore[arg-type]

    @property
    def multiple(self) -> dict[fx.Node, Node]:
        return self.__dict__.setdefault("_multiple", {})

    def plain_pieces(self, source: fx.Node, index: Any) -> tuple | None:
        """A piece of unbind/split/chunk as the select or slice of the whole that it is."""
        if source.target not in (
            aten.unbind.int,
            aten.split.Tensor,
            aten.split_with_sizes.default,
            aten.split.sizes,
            aten.chunk.default,
            aten.tensor_split.sections,
        ):
            return None
        arguments = self.arguments(source)[1]
        parent = source.args[0]
        assert isinstance(parent, fx.Node)
        dim = arguments["dim"]
        if source.target is aten.unbind.int:
            return aten.select.int, parent, {"dim": dim, "index": index}
        sizes = [as_size(v.shape[dim]) for v in source.meta["val"]]
        start = sum(sizes[:index], 0)
        where = {"dim": dim, "start": start, "end": start + sizes[index], "step": 1}
        where["piece"] = True
        return aten.slice.Tensor, parent, where

    def define_view(self, node: fx.Node, target: Any, parent: fx.Node, where: dict) -> None:
        stand_in = fx.Node(node.graph, node.name, "call_function", target, (parent,), {})
        stand_in.meta["val"] = node.meta["val"]
        view = view_of(self.o, stand_in, parent, where)
        assert view is not None
        self.values.define_view(node, view)
        self.values.read(node)

    def arguments(self, node: fx.Node) -> tuple[tuple, dict[str, Any]]:
        """(tensors as nodes, attributes by name) of a call; numbers stay in tensor places."""
        op = from_overload(node.target)  # type: ignore[arg-type]
        tensors, attrs = op.bind(self.look_up(node.args), self.look_up(dict(node.kwargs)))
        return tensors, dict(attrs)

    def look_up(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            if value in self.plain:
                plain = self.plain[value]
                if isinstance(plain, torch.SymFloat | torch.SymBool) and self.guard:
                    return guard_scalar(plain)
                if isinstance(plain, torch.SymFloat | torch.SymBool):
                    raise TraceDeclined(f"{value.name} is a number that depends on data or a float")
                return plain
            return self.multiple[value] if value in self.multiple else self.values.read(value)
        if isinstance(value, list | tuple):
            return tuple(self.look_up(v) for v in value)
        if isinstance(value, dict):
            return {k: self.look_up(v) for k, v in value.items()}
        return value

    def operate(self, node: fx.Node) -> None:
        overload = node.target
        self.check_call(node)
        if any(
            isinstance(v, torch.Tensor) and v.is_complex() for v in tensors_of(node.meta.get("val"))
        ):
            raise TraceDeclined(f"{overload} makes complex numbers")
        op = from_overload(overload)  # type: ignore[arg-type]
        if not op.pure and not overload._schema.returns:  # type: ignore[union-attr]
            raise TraceDeclined(f"{overload} is run for its effect")
        try:
            tensors, attrs = self.arguments(node)
        except TypeError as error:
            raise TraceDeclined(f"{overload}: {error}") from error
        first = node.args[0] if node.args else None
        if overload in IDENTITY_IN_EVAL and not attrs[IDENTITY_IN_EVAL[overload]]:  # type: ignore[index]
            self.values.alias(node, first)  # type: ignore[arg-type]
        if isinstance(first, fx.Node) and self.values.shares_memory(node, first):
            view = view_of(self.o, node, first, attrs)
            if view is not None:
                self.values.define_view(node, view)
                self.values.read(node)
                return
        made = self.make(node, op, tensors, attrs)
        if isinstance(made.type, TensorType):
            self.values.define(node, made)
        else:
            self.multiple[node] = made

    def make(self, node: fx.Node, op: Op, tensors: tuple, attrs: dict[str, Any]) -> Node:
        """The node of a call. A number in a tensor's place selects the Scalar overload."""
        meta = node.meta.get("val")
        type: Type | None = None
        if isinstance(meta, torch.Tensor):
            type = TensorType.of(meta)
        elif isinstance(meta, list | tuple):
            type = tuple(None if m is None else TensorType.of(m) for m in meta)
        if any(isinstance(v, int | float | complex | sympy.Expr) for v in tensors):
            return self.with_scalar(node, tensors, attrs, type)
        if isinstance(type, TensorType):
            operands = [t.tensor_type for t in tensors if isinstance(t, Node)]
            if misses_strides(node.target, operands, type):
                raise TraceDeclined(f"{node.target}: torch's rule for its strides is wrong here")
        attributes = tuple(attrs.items())
        if isinstance(meta, torch.Tensor) and self.values.type_of(meta) != type:
            try:  # the operands' types say a number where torch's still say an expression
                return self.o.node(op, tensors, attributes)
            except DependsOnSize:
                pass
        return self.o.node(op, tensors, attributes, type)

    def with_scalar(
        self, node: fx.Node, tensors: tuple, attrs: dict[str, Any], type: Type | None = None
    ) -> Node:
        """A call with a number in a tensor's place; type: as traced, None to infer it."""
        overload = node.target
        packet = overload._overloadpacket  # type: ignore[union-attr]
        form = _SCALAR_FORM.get(overload._overloadname)  # type: ignore[union-attr]
        found = getattr(packet, form, None) if form else None
        if found is None or not isinstance(tensors[0], Node):
            raise TraceDeclined(f"{overload} takes a number where a tensor is expected")
        try:
            scalar = from_overload(found)
            return self.o.node(scalar, *scalar.bind(tensors, attrs), type)
        except DependsOnSize:
            raise
        except (CannotInfer, TypeError) as error:
            raise TraceDeclined(f"{overload} with a number: {error}") from error

    def mutate(self, node: fx.Node) -> None:
        overload = node.target
        self.check_call(node)
        written = [
            a.name
            for a in overload._schema.arguments  # type: ignore[union-attr]
            if a.alias_info is not None and a.alias_info.is_write
        ]
        target = node.args[0] if node.args else None
        if len(written) != 1 or not isinstance(target, fx.Node):
            raise TraceDeclined(f"{overload} writes to {', '.join(written)}")
        self.check_no_overlap(node, target)
        found = aten.copy.default if overload is aten.copy_.default else pure_form(overload)  # type: ignore[arg-type]
        tensors, attrs = self.arguments(node)
        old = tensors[0]
        try:
            value = self.functional(node, found, tensors, attrs)
        except (CannotInfer, TypeError) as error:
            raise TraceDeclined(f"{overload}: {error}") from error
        if value.dtype != old.dtype:
            value = self.o.call(aten.to.dtype, value, old.dtype)
        if value.shape != old.shape:
            raise TraceDeclined(f"{overload} changes the shape of what it writes to")
        self.values.write(target, value, str(overload))
        self.same_as(node, target)

    def same_as(self, node: fx.Node, target: fx.Node) -> None:
        """An op in place hands back what it was given."""
        same = _call(node, aten.alias.default, target)
        self.values.define_view(node, view_of(self.o, same, target, {}))  # type: ignore[arg-type]

    def functional(self, node: fx.Node, found: Any, tensors: tuple, attrs: dict) -> Node:
        if found is aten.copy.default:
            source = tensors[1]
            if not isinstance(source, Node):
                return self.o.call(aten.full_like.default, tensors[0], source)
            value = source
            if value.dtype != tensors[0].dtype:
                value = self.o.call(aten.to.dtype, value, tensors[0].dtype)
            if value.shape != tensors[0].shape:
                value = self.o.call(aten.expand.default, value, list(tensors[0].shape))
            return value
        try:
            return self.pure_call(node, found, tensors, attrs)
        except DependsOnSize as error:
            # what is written keeps its shape, where only torch's guards could tell it
            target: Any = node.target
            if torch.Tag.inplace_view in target.tags or not isinstance(error.seen, TensorType):
                raise
            kept = replace(tensors[0].tensor_type, dtype=error.seen.dtype)
            return self.pure_call(node, found, tensors, attrs, kept)

    def pure_call(
        self, node: fx.Node, found: Any, tensors: tuple, attrs: dict, type: Type | None = None
    ) -> Node:
        if any(isinstance(v, int | float | sympy.Expr) for v in tensors):
            return self.with_scalar(_call(node, found, *node.args), tensors, attrs, type)
        return self.o.node(from_overload(found), tensors, tuple(attrs.items()), type)

    def check_call(self, node: fx.Node) -> None:
        check_call(node, self.input_nodes)
        for value in tensors_of(node.meta.get("val")):
            self.devices.setdefault(value.device, f"the result of {node.target}")

    def check_one_device(self) -> None:
        if len(self.devices) > 1:
            found = ", ".join(f"{what} on {where}" for where, what in self.devices.items())
            raise TraceDeclined(f"tensors of several devices: {found}")

    def check_no_overlap(self, node: fx.Node, target: fx.Node) -> None:
        """In-place reads of the same memory through another view are order-dependent in torch."""
        for other in node.all_input_nodes:
            if other is not target and self.values.shares_memory(other, target):
                if disjoint(self.values.views.get(other), self.values.views.get(target)):
                    continue
                a, b = other.meta["val"], target.meta["val"]
                if self.values.read(other) is not self.values.read(target) or a.shape != b.shape:
                    raise TraceDeclined(f"{node.target} reads and writes overlapping memory")

    def finish(self, node: fx.Node) -> Graph:
        flat = node.args[0]
        flat = list(flat) if isinstance(flat, list | tuple) else [flat]
        seen = Results(self.values, self.plain, self.input_nodes, self.inputs)
        updates = seen.updates()
        outputs: list[Output] = []
        results: list[TensorType | None] = []
        for item in flat:
            if seen.is_tensor(item):
                outputs.append(seen.value(item, updates))
                results.append(self.values.type_of(item.meta["val"]))
            else:
                outputs.append(self.look_up(item))
                results.append(None)
        graph = Graph(
            tuple(self.inputs),
            tuple(outputs),
            self.consts,
            self.dims,
            tuple(updates),
            results=tuple(results),
            scalars=tuple(self.scalars),
            memory=seen.memory(flat),
            offsets=tuple(map(seen.offset, flat)),
        )
        return graph.with_consts({})


def _call(node: fx.Node, target: Any, *args: Any) -> fx.Node:
    """A stand-in for a call that the program does not contain."""
    made = fx.Node(node.graph, node.name, "call_function", target, tuple(args), {})
    made.meta.update(node.meta)
    return made
