"""A convolution as a narrow one and a product of channels: its weight is a matrix [N, C k k]."""

from __future__ import annotations

from math import prod
from typing import Any

from infopt.codegen.kernels.conv import conv_act
from infopt.compiler.graph import Node
from infopt.compiler.infer import Builder
from infopt.passes.fold_batch_norm import CONVOLUTIONS

_WINDOW = ("stride", "padding", "dilation", "groups")


def is_convolution(node: Node) -> bool:
    return node.op.name in CONVOLUTIONS or node.op is conv_act


def factor_shapes(weight: Node, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the narrow convolution's weight and of the second one's."""
    features, *window = weight.shape
    return (rank, *window), (features, rank, *[1] * (len(window) - 1))  # type: ignore[return-value, arg-type]


def factored(o: Builder, node: Node, a: Node, b: Node) -> Node:
    """What follows `node` follows the second one: norm, activation, residual."""
    attrs: dict[str, Any] = dict(node.attrs)
    x, _, *rest = node.args
    first = o.call(node.op, x, a, None, **{name: attrs[name] for name in _WINDOW})
    if node.op is not conv_act:
        return o.call(f"aten.conv{b.tensor_type.rank - 2}d.default", first, b, *rest)
    ends = {name: value for name, value in attrs.items() if name not in _WINDOW}
    return o.call(conv_act, first, b, *rest, **ends)


def is_second_convolution(node: Node) -> bool:
    """True where a convolution reads a plain one, on each axis one of them has a single tap, and
    both hold fewer numbers than one would."""
    first = node.args[0]
    if not isinstance(first, Node) or not is_convolution(first):
        return False
    plain = all(a is None for a in first.args[2:])
    if not plain or dict(first.attrs).get("activation", "none") != "none":
        return False
    a, b = first.args[1].shape, node.args[1].shape  # type: ignore[union-attr]
    if not all(isinstance(n, int) for n in (*a, *b)):
        return False
    if any(i > 1 and j > 1 for i, j in zip(a[2:], b[2:], strict=True)):  # type: ignore[operator]
        return False
    one = (b[0], *a[1:], *b[2:])
    return prod(a) + prod(b) < prod(one)  # type: ignore[arg-type]
