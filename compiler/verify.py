"""What every graph must be, at every stage. Checked after tracing and after every pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sympy

from infopt.compiler.errors import CannotInfer, DependsOnSize, IllegalGraph
from infopt.compiler.graph import Graph, Node, Stage, Type, type_text
from infopt.compiler.infer import Builder, builder_for
from infopt.compiler.ops import CONST, GETITEM, INPUT
from infopt.compiler.types import TensorType

_PERMUTE = "canonical form: aten.permute.default"
_RESHAPE = "canonical form: aten.reshape.default"
_CAST = "canonical form: aten.to.dtype"

# Op -> why it may not appear once a stage is over. What canonicalize always rewrites.
GONE_AFTER: Mapping[Stage, Mapping[str, str]] = {
    Stage.NORMALIZE: {
        "aten.t.default": _PERMUTE,
        "aten.transpose.int": _PERMUTE,
        "aten.swapaxes.default": _PERMUTE,
        "aten.swapdims.default": _PERMUTE,
        "aten.movedim.int": _PERMUTE,
        "aten.numpy_T.default": _PERMUTE,
        "aten.mT.default": _PERMUTE,
        "aten.view.default": _RESHAPE,
        "aten._unsafe_view.default": _RESHAPE,
        "aten.flatten.using_ints": _RESHAPE,
        "aten.unflatten.int": _RESHAPE,
        "aten.unsqueeze.default": _RESHAPE,
        "aten.detach.default": "the value itself is meant",
        "aten.alias.default": "the value itself is meant",
        "aten.to.dtype_layout": _CAST,
        "aten.to.other": _CAST,
        "aten.type_as.default": _CAST,
        "aten._to_copy.default": _CAST,
    },
}


def verify(graph: Graph, after: str = "", deep: bool = True) -> None:
    """Raises IllegalGraph, naming the pass `after` which it was found, where an invariant fails.

    deep: also infer every type again from the op's reference and compare. Equal nodes are
    inferred once, so a model of 48 equal layers costs little more than one of a single layer, and
    nodes are immutable: one that was good after the last pass is good after this one.
    """
    builder = builder_for(graph.dims)
    fresh = [n for n in graph.nodes() if n not in builder.verified]
    try:
        _leaves(graph)
        _sizes(graph, fresh)
        _types(fresh, builder, deep)
        _results(graph)
        _grammar(graph)
    except IllegalGraph as error:
        raise IllegalGraph(f"after {after}: {error}" if after else str(error)) from None
    if deep:
        builder.verified.update(fresh)


def verify_same_interface(before: Graph, after: Graph, name: str = "") -> None:
    """Raises IllegalGraph where what callers see changed: inputs, sizes, results, updates."""
    prefix = f"after {name}: " if name else ""

    def same(what: str, a: Any, b: Any) -> None:
        if a != b:
            raise IllegalGraph(f"{prefix}{what} changed: expected {a}, found {b}")

    same("the inputs", _names(before), _names(after))
    if before.inputs != after.inputs:
        raise IllegalGraph(f"{prefix}an input was replaced by another node of the same name")
    same("the scalar inputs", before.scalars, after.scalars)
    same("the dims", before.dims, after.dims[: len(before.dims)])
    read = [d.name for d in after.dims[len(before.dims) :] if d.counts is None]
    same("the dims read from shapes", [], read)
    same("the result types", before.results, after.results)
    same("the updated inputs", [i for i, _ in before.updates], [i for i, _ in after.updates])
    same("the number of results", len(before.outputs), len(after.outputs))
    for index, (a, b) in enumerate(zip(before.outputs, after.outputs, strict=True)):
        if isinstance(a, Node) and isinstance(b, Node):
            continue
        same(f"result {index}", a, b)
    if after.stage < before.stage:
        raise IllegalGraph(f"{prefix}the stage went back from {before.stage.name}")


def _names(graph: Graph) -> list[str]:
    return [f"{n.attr('name')}: {n.type}" for n in graph.inputs]


def _leaves(graph: Graph) -> None:
    declared = set(graph.inputs)
    if len(declared) != len(graph.inputs):
        raise IllegalGraph("the same input is listed twice")
    for node in graph.inputs:
        if node.op is not INPUT:
            raise IllegalGraph(f"{node!r} is listed as an input; expected an input node")
    done: set[Node] = set()
    for node in graph.nodes():
        if node.op is INPUT and node not in declared:
            raise IllegalGraph(f"the input {node.attr('name')!r} is read but not listed")
        for source in node.inputs:
            if source not in done:
                raise IllegalGraph(f"{node!r} reads {source!r}, which does not come before it")
        done.add(node)
        if node.op is CONST:
            _constant(graph, node)


def _constant(graph: Graph, node: Node) -> None:
    name = node.attr("name")
    if name not in graph.consts:
        raise IllegalGraph(f"the constant {name!r} has no tensor; known are {sorted(graph.consts)}")
    found = TensorType.of(graph.consts[name])
    if found != node.type:
        raise IllegalGraph(f"the constant {name!r} is {found}, its node says {node.type}")


def _types(nodes: Sequence[Node], builder: Builder, deep: bool) -> None:
    for node in nodes:
        for t in _flat(node.type):
            if len(t.shape) != len(t.strides):
                raise IllegalGraph(f"{node!r}: {len(t.shape)} sizes but {len(t.strides)} strides")
        if node.op is GETITEM:
            (source,) = node.inputs
            index = node.attr("index")
            if isinstance(source.type, TensorType) or source.type[index] != node.type:
                raise IllegalGraph(f"{node!r} is not result {index} of {source!r}")
        elif deep and node.op not in (INPUT, CONST):
            _inferred(builder, node)


def _inferred(builder: Builder, node: Node) -> None:
    try:
        expected = builder.infer(node.op, node.args, node.attrs)
    except DependsOnSize:
        return  # torch's own run decided under guards that the graph's door checks
    except CannotInfer as error:
        raise IllegalGraph(f"{node!r}: its reference refuses: {error}") from error
    if not _same_type(expected, node.type):
        found = type_text(node.type)
        raise IllegalGraph(f"{node!r} says {found}, its reference gives {type_text(expected)}")


def _same_type(a: Type | None, b: Type | None) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same_type, a, b))
    if not isinstance(a, TensorType) or not isinstance(b, TensorType):
        return a == b
    if (a.dtype, a.device, a.rank) != (b.dtype, b.device, b.rank):
        return False
    if not all(map(_same_size, a.shape, b.shape)):
        return False
    free = (0, 1)  # an axis of these sizes is never stepped along
    strided = zip(a.shape, a.strides, b.strides, strict=True)
    return 0 in a.shape or all(size in free or _same_size(x, y) for size, x, y in strided)


def _same_size(a: Any, b: Any) -> bool:
    return a == b or sympy.simplify(_without_ones(a) - _without_ones(b)) == 0


def _without_ones(size: Any) -> Any:
    """n for every max(1, n): torch writes strides so; they differ only where nothing is read."""
    if not isinstance(size, sympy.Expr):
        return size
    return size.replace(_is_at_least_one, lambda e: next(n for n in e.args if n != 1))


def _is_at_least_one(e: sympy.Basic) -> bool:
    return type(e).__name__ == "Max" and len(e.args) == 2 and sympy.S.One in e.args


def _flat(type: Type | None) -> Iterator[TensorType]:
    if isinstance(type, tuple):
        for t in type:
            yield from _flat(t)
    elif type is not None:
        yield type


def _sizes(graph: Graph, nodes: Sequence[Node]) -> None:
    """Every symbol in a type, an attribute or a result is a declared dim."""
    declared = {d.symbol for d in graph.dims}

    def check(value: Any, where: object) -> None:
        if isinstance(value, tuple):
            for v in value:
                check(v, where)
        elif isinstance(value, sympy.Expr) and not value.free_symbols <= declared:
            unknown = ", ".join(sorted(map(str, value.free_symbols - declared)))
            names = ", ".join(d.name for d in graph.dims) or "none"
            raise IllegalGraph(f"{where} mentions the size {unknown}; declared are {names}")

    for node in nodes:
        for t in _flat(node.type):
            check(t.shape, node)
            check(t.strides, node)
        for _, value in node.attrs:
            check(value, node)
    for index, output in enumerate(graph.outputs):
        check(output, f"result {index}")
    check(graph.scalars, "an integer input")
    inputs = {n.attr("name") for n in graph.inputs}
    for dim in graph.dims:
        if dim.counts is not None and dim.counts not in inputs:
            raise IllegalGraph(f"the dim {dim} counts an input that is not there")


def _results(graph: Graph) -> None:
    if len(graph.results) != len(graph.outputs):
        raise IllegalGraph(f"{len(graph.outputs)} results but {len(graph.results)} result types")
    for index, (output, wanted) in enumerate(zip(graph.outputs, graph.results, strict=True)):
        if not isinstance(output, Node):
            if wanted is not None:
                raise IllegalGraph(f"result {index} is {output!r}, expected {wanted}")
            continue
        found = output.tensor_type
        if wanted is None or not _same_value(found, wanted):
            raise IllegalGraph(f"result {index} is {found}, callers expect {wanted}")
    for index, node in graph.updates:
        if not 0 <= index < len(graph.inputs):
            raise IllegalGraph(f"input {index} is updated, there are {len(graph.inputs)}")
        target = graph.inputs[index].tensor_type
        if not _same_value(node.tensor_type, target):
            raise IllegalGraph(f"input {index} is {target}, its update is {node.type}")


def _same_value(a: TensorType, b: TensorType) -> bool:
    return a.dtype == b.dtype and a.rank == b.rank and all(map(_same_size, a.shape, b.shape))


def _grammar(graph: Graph) -> None:
    gone: dict[str, str] = {}
    for stage, ops in GONE_AFTER.items():
        if graph.stage > stage:
            gone.update(ops)
    for node in graph.nodes():
        if node.op.name in gone:
            reason = gone[node.op.name]
            raise IllegalGraph(f"{node!r} may not appear in stage {graph.stage.name}: {reason}")
