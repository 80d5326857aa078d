"""Two layers in a row without anything between, and the one layer that computes the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from infopt.compiler.graph import Node
from infopt.compiler.infer import Builder

LINEAR = "aten.linear.default"


@dataclass(frozen=True)
class Pair(ABC):
    """first = layer(x, a, inner), second = layer(first, b, bias)"""

    first: Node
    second: Node

    @property
    def x(self) -> Node:
        return self.first.args[0]  # type: ignore[return-value]

    @property
    def a(self) -> Node:
        return self.first.args[1]  # type: ignore[return-value]

    @property
    def b(self) -> Node:
        return self.second.args[1]  # type: ignore[return-value]

    @property
    def inner(self) -> Node | None:
        return self.first.args[2]  # type: ignore[return-value]

    @property
    def bias(self) -> Node | None:
        return self.second.args[2]  # type: ignore[return-value]

    @property
    def read(self) -> tuple[Node | None, ...]:
        """What the weight and the bias of one layer are computed from."""
        return (self.a, self.b, *((self.inner, self.bias) if self.inner else ()))

    def refusal(self) -> str:
        """Why no layer computes the same, "" where one does."""
        return ""

    @abstractmethod
    def weight(self, o: Builder) -> Node:
        """b a"""

    @abstractmethod
    def moved(self, o: Builder) -> Node:
        """What the second layer makes of the first one's bias."""

    def shift(self, o: Builder) -> Node | None:
        """The bias of one layer."""
        if self.inner is None:
            return self.bias
        moved = self.moved(o)
        return moved if self.bias is None else o.add(self.bias, moved)

    @abstractmethod
    def one(self, o: Builder, weight: Node, bias: Node | None) -> Node:
        """One layer with this weight and bias in the place of both."""

    @abstractmethod
    def is_beside(self, base: Node) -> bool:
        """Whether a layer reads the same x, and could take the product of both weights up."""


@dataclass(frozen=True)
class LinearPair(Pair):
    """linear(linear(x, a), b) = linear(x, b a)"""

    def weight(self, o: Builder) -> Node:
        return o.matmul(self.b, self.a)

    def moved(self, o: Builder) -> Node:
        return o.matmul(self.b, self.inner)

    def one(self, o: Builder, weight: Node, bias: Node | None) -> Node:
        return o.linear(self.x, weight, bias)

    def is_beside(self, base: Node) -> bool:
        if base.op.name != LINEAR or base.args[0] is not self.x:
            return False
        return base.args[1].tensor_type.rank == 2  # type: ignore[union-attr]


def linear_pair(node: Node) -> LinearPair | None:
    """The pair that ends with this node."""
    if node.op.name != LINEAR:
        return None
    first: Node = node.args[0]  # type: ignore[assignment]
    if first.op.name != LINEAR:
        return None
    found = LinearPair(first, node)
    return found if found.a.tensor_type.rank == found.b.tensor_type.rank == 2 else None
