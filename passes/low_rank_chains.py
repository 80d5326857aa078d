"""Where products of thin factors stand one behind another: pairs, MLPs of them, and their gates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from infopt.codegen.kernels.chain_calls import MOST
from infopt.codegen.kernels.linear_chain import linear_chain, narrow_linear_chain
from infopt.compiler.graph import Graph, Node
from infopt.compiler.infer import Builder

_PRODUCTS = ("aten.linear.default", "linear_act", "narrow_linear")
_GATES = ("gated_linear", "narrow_gated_linear")
_MUL = "aten.mul.Tensor"


@dataclass(frozen=True)
class Chain:
    """Products one behind another.

    products  first to last; the second may be a gate, with what it multiplies in the same node
    beside    the two products that make what the gate multiplies, where that has its own factors
    multiply  the op that multiplies both then
    """

    products: tuple[Node, ...]
    beside: tuple[Node, ...] = ()
    multiply: Node | None = None

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All that one op would replace, the last one last."""
        first, then = self.products[:2], self.products[2:]
        multiply = () if self.multiply is None else (self.multiply,)
        return (*first, *self.beside, *multiply, *then)

    @property
    def x(self) -> Node:
        return self.products[0].args[0]  # type: ignore[return-value]

    def as_one(self, o: Builder) -> Node:
        last, second = self.nodes[-1], self.products[1]
        weights = [n.args[1] for n in self.products]
        biases = [n.args[3 if is_gate(n) else 2] for n in self.products]
        up: tuple[Any, ...] = (None, None, None)
        if is_gate(second):
            up = (None, second.args[2], second.args[4])
        elif self.beside:
            up = (self.beside[0].args[1], *self.beside[1].args[1:3])
        absent = [None] * (MOST - len(weights))
        args = (self.x, *weights, *absent, *biases, *absent, residual_of(self.products[-1]), *up)
        functions = tuple(dict(n.attrs).get("activation", "none") for n in self.products)
        if _is_narrow(second):
            return o.call(narrow_linear_chain, *args, functions=functions, out=last.dtype)
        return o.call(linear_chain, *args, functions=functions)


def chains(graph: Graph, node: Node) -> Iterator[Chain]:
    """The products that end with this node, the longer chain first."""
    if is_thin_pair(node) and not is_gate(node):
        first: Node = node.args[0]  # type: ignore[assignment]
        hidden = first.args[0]
        before = _pair(hidden) if isinstance(hidden, Node) else None
        if before is not None and graph.use_count(hidden) == 1 and not graph.is_output(hidden):
            same = _is_narrow(before.products[1]) == _is_narrow(node)
            if same and residual_of(before.products[1]) is None:
                products = (*before.products, first, node)
                yield Chain(products, before.beside, before.multiply)
    pair = _pair(node)
    if pair is not None:
        yield pair


def _pair(node: Node) -> Chain | None:
    """The two products that end with this node, and those beside them."""
    if is_thin_pair(node):
        return Chain((node.args[0], node))  # type: ignore[arg-type]
    if node.op.name != _MUL:
        return None
    for gate, up in (node.args, node.args[::-1]):
        pairs = isinstance(gate, Node) and isinstance(up, Node)
        if not pairs or not (is_thin_pair(gate) and is_thin_pair(up)):  # type: ignore[arg-type]
            return None
        first, read = gate.args[0], up.args[0]  # type: ignore[union-attr]
        if is_gate(gate) or is_gate(up) or first.args[0] is not read.args[0]:  # type: ignore
            return None
        if not gate.shape == up.shape == node.shape:  # type: ignore[union-attr]
            return None
        if _is_narrow(gate) == _is_narrow(up) and _is_plain(up) and _is_plain(read, bias=False):  # type: ignore
            return Chain((first, gate), (read, up), node)  # type: ignore[arg-type]
    return None


def is_thin_pair(node: Node) -> bool:
    """True where a layer reads another one, and both hold fewer numbers than one would."""
    if node.op.name not in (*_PRODUCTS, *_GATES):
        return False
    first = node.args[0]
    if not isinstance(first, Node) or first.op.name not in _PRODUCTS:
        return False
    if _is_narrow(first) != _is_narrow(node):
        return False
    shapes = [n.args[1].shape for n in (first, node)]  # type: ignore[union-attr]
    if any(len(s) != 2 or not all(isinstance(n, int) for n in s) for s in shapes):
        return False
    (rank, k), (n, _) = shapes
    n = 2 * n if is_gate(node) else n  # type: ignore[operator]
    return rank * (n + k) < n * k  # type: ignore[operator]


def is_gate(node: Node) -> bool:
    return node.op.name in _GATES


def residual_of(node: Node) -> Any:
    return node.args[3] if node.op.name in _PRODUCTS and len(node.args) > 3 else None


def _is_narrow(node: Node) -> bool:
    return node.op.name.startswith("narrow_")


def _is_plain(node: Node, bias: bool = True) -> bool:
    """Whether nothing follows a product but a bias, where that is allowed."""
    ends = dict(node.attrs).get("activation", "none") == "none" and residual_of(node) is None
    return ends and (bias or node.args[2] is None)
