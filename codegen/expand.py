"""An op without a kernel as the aten calls of its reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from infopt.codegen.sizes import LoweringDeclined
from infopt.compiler.errors import TraceDeclined
from infopt.compiler.graph import Graph, Node, Output, flatten_nodes
from infopt.compiler.infer import FakeWorld, types_of
from infopt.compiler.ops import CONST, GETITEM, INPUT
from infopt.compiler.tracing.trace import from_fx
from infopt.compiler.types import TensorType


def is_infopt_op(node: Node) -> bool:
    """True for an op that is declared by infopt or a user, not one of torch's."""
    known = isinstance(node.op.reference, torch._ops.OpOverload)
    return not known and node.op not in (INPUT, CONST, GETITEM)


def expand(graph: Graph, keep: Callable[[Node], bool]) -> Graph:
    """The graph with each infopt op that `keep` refuses replaced by its reference's calls."""
    if not any(is_infopt_op(n) and not keep(n) for n in graph.nodes()):
        return graph
    expander = _Expander(graph)

    def visit(node: Node, args: tuple) -> Node:
        if node.op is GETITEM and args[0] in expander.several:
            return expander.several[args[0]][node.attr("index")]
        if is_infopt_op(node) and not keep(node):
            return expander.calls(node, args)
        return (
            node if args == node.args else Node(node.op, args, node.attrs, node.type, node.serial)
        )

    return graph.map(visit)


class _Expander:
    def __init__(self, graph: Graph) -> None:
        self.dims = graph.dims
        self.traced: dict[Any, tuple[Graph, dict]] = {}
        self.several: dict[Node, tuple[Node, ...]] = {}  # results of an op that has more than one

    def calls(self, node: Node, args: tuple) -> Node:
        key = (node.op, types_of(args), repr(node.attrs))
        if key not in self.traced:
            self.traced[key] = self.trace(node, args)
        results = _splice(*self.traced[key], list(flatten_nodes(args)))
        if isinstance(node.type, TensorType):
            return results[0]
        # this node only stands for all results: nobody but their getitems reads it
        stand_in = Node(node.op, args, node.attrs, node.type, node.serial)
        self.several[stand_in] = results
        return stand_in

    def trace(self, node: Node, args: tuple) -> tuple[Graph, dict]:
        """The reference's program on tensors of these types, and its size symbols' meaning."""
        world = FakeWorld(self.dims)
        attrs = {k: world.attribute(v) for k, v in node.attrs}

        def call(*tensors: torch.Tensor) -> Any:
            source = iter(tensors)
            positional, keyword = node.op.call_arguments(_refill(args, source), attrs)
            return node.op.reference(*positional, **keyword)

        try:
            with world.mode, torch.no_grad():
                fakes = [world.fake(a) for a in flatten_nodes(args)]
                module = make_fx(call, pre_dispatch=True, _allow_non_fake_inputs=True)(*fakes)
            module.graph.eliminate_dead_code()  # torch.promote_types leaves a call behind
            return from_fx(module), world.from_env
        except TraceDeclined as error:
            reason = str(error)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        raise LoweringDeclined(
            f"{node.op.name} has no kernel here, and its reference cannot be traced: {reason}"
        )


def _splice(program: Graph, symbols: dict, inputs: list[Node]) -> tuple[Node, ...]:
    """The program's results with its inputs replaced by these nodes."""
    if program.consts or program.updates:
        raise LoweringDeclined("a reference makes a constant tensor or writes to its arguments")
    new: dict[Node, Node] = dict(zip(program.inputs, inputs, strict=True))

    def moved(arg: Any) -> Any:
        if isinstance(arg, tuple):
            return tuple(moved(a) for a in arg)
        return None if arg is None else new[arg]

    for node in program.nodes():
        if node not in new:
            type, attrs = _renamed(node.type, symbols), _renamed(node.attrs, symbols)
            new[node] = Node(node.op, moved(node.args), attrs, type, node.serial)
    return tuple(_result(o, new) for o in program.outputs)


def _result(output: Output, new: dict[Node, Node]) -> Node:
    if not isinstance(output, Node):
        raise LoweringDeclined(f"a reference returns {output!r}, expected a tensor")
    return new[output]


def _renamed(value: Any, symbols: dict) -> Any:
    """The same type or attributes in the graph's own dims."""
    if not symbols:
        return value
    if isinstance(value, tuple):
        return tuple(_renamed(v, symbols) for v in value)
    if isinstance(value, TensorType):
        shape, strides = _renamed(value.shape, symbols), _renamed(value.strides, symbols)
        return TensorType(shape, value.dtype, strides, value.device)
    return value.xreplace(symbols) if isinstance(value, sympy.Expr) else value


def _refill(args: tuple, source: Any) -> tuple:
    return tuple(
        _refill(a, source) if isinstance(a, tuple) else None if a is None else next(source)
        for a in args
    )
