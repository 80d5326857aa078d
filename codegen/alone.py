"""One node as a graph of its own, at the sizes seen in tracing: to measure it, or to weigh it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.types import Dim, TensorType, contiguous_strides, substitute


def alone(
    node: Node, dims: Sequence[Dim], inner: Collection[Node] = ()
) -> tuple[Graph, Mapping[Node, Node]]:
    """The graph, and for each operand of the node, in the order of the graph's inputs, its input.

    inner: operands that are computed in the graph too. Inputs are contiguous.
    """
    hints = {d.symbol: d.hint for d in dims}
    o = Builder()
    leaves: dict[Node, Node] = {}

    def leaf(arg: Any) -> Any:
        if not isinstance(arg, Node):
            return tuple(map(leaf, arg)) if isinstance(arg, tuple) else arg
        if arg not in leaves and arg in inner:
            leaves[arg] = call(arg)
        elif arg not in leaves:
            shape = tuple(substitute(s, hints) for s in arg.shape)
            kind = TensorType(shape, arg.dtype, contiguous_strides(shape))
            leaves[arg] = o.input(f"x{len(leaves)}", kind)
        return leaves[arg]

    def call(node: Node) -> Node:
        attrs = tuple((name, fixed(value)) for name, value in node.attrs)
        return o.node(node.op, tuple(map(leaf, node.args)), attrs)

    def fixed(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(fixed, value))
        return substitute(value, hints) if hasattr(value, "free_symbols") else value

    made = call(node)
    operands = {arg: n for arg, n in leaves.items() if arg not in inner}
    results = [made]
    if isinstance(made.type, tuple):
        results = [o.getitem(made, i) for i, t in enumerate(made.type) if t is not None]
    return Graph(tuple(operands.values()), tuple(results), stage=Stage.LAYOUT), operands


def random_operand(t: TensorType) -> torch.Tensor:
    """A tensor of this type on the CPU; integers are indices that any table has, or bytes."""
    shape = [int(s) for s in t.shape]
    if t.is_float:
        return torch.randn(shape).to(t.dtype)
    if t.dtype in (torch.int64, torch.int32):
        return torch.zeros(shape, dtype=t.dtype)
    return torch.randint(0, 127, shape).to(t.dtype)
