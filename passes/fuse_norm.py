"""Written-out norms -> their ops: x / sqrt(mean(x²) + eps) * w is rms_norm(x, w)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from infopt.codegen.kernels.rms_norm import rms_norm
from infopt.compiler.errors import CannotInfer
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.pipeline import Pass, PassContext

_MUL = "aten.mul.Tensor"
_CAST = "aten.to.dtype"


class _Declined(Exception):
    """The reason why a mean of squares is not part of a norm."""


@dataclass(frozen=True)
class FuseNorm(Pass):
    """x / sqrt(mean(x²) + eps) * (w + offset) -> rms_norm(x, w)

    Also (x - mean(x)) / sqrt(mean((x - mean(x))²) + eps) * w + b -> layer_norm(x, w, b), with the
    detour through float32 that models of half precision take, and the cast back before the weight
    (Llama), after it (Gemma) or not at all.
    """

    name: ClassVar[str] = "fuse-norm"
    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        changes: dict[Node, Node] = {}
        reader = _Reader(graph, ctx.builder)
        for node in graph.nodes():
            if node.op.name != "aten.mean.dim" or _squared(_only_input(node)) is None:
                continue
            try:
                root, made = reader.read(node)
                if (root.shape, root.dtype) != (made.shape, made.dtype):
                    raise _Declined(f"the norm would be {made.type}, expected {root.type}")
                changes[root] = made
            except (_Declined, CannotInfer) as reason:
                ctx.site(node, False, str(reason))
            else:
                ctx.site(root, True)
        return ctx.exchange(graph, changes) if changes else graph


def _only_input(node: Node) -> Node:
    return next(node.inputs)


def _squared(node: Node) -> Node | None:
    """x of x², however it is written."""
    name = node.op.name
    if name == "aten.pow.Tensor_Scalar" and node.attr("exponent") == 2:
        return _only_input(node)
    if name == "aten.square.default":
        return _only_input(node)
    if name == _MUL and node.args[0] is node.args[1]:
        return _only_input(node)
    return None


class _Reader:
    def __init__(self, graph: Graph, o: Builder) -> None:
        self.graph, self.o = graph, o

    def read(self, mean: Node) -> tuple[Node, Node]:
        """(root, replacement) of the norm that this mean of squares belongs to."""
        x = _squared(_only_input(mean))
        assert x is not None
        self.over_last(mean, x)
        shifted = self.after(mean, "aten.add.Scalar")
        eps = shifted.attr("other")
        if not isinstance(eps, int | float) or shifted.attr("alpha") != 1:
            raise _Declined(f"eps is {eps}")
        normed = self.divided(x, shifted)
        centered = self.centered(x)
        if centered is not None:
            if x.shape[-1] == 1:
                raise _Declined("rows of one value: they are 0, torch's op leaves a rounding error")
            return self.layer_norm(centered, normed, float(eps))
        return self.rms_norm(x, normed, float(eps))

    def over_last(self, mean: Node, x: Node) -> None:
        rank = x.tensor_type.rank
        dims = mean.attr("dim")
        if dims is None or [d % rank for d in dims] != [rank - 1] or not mean.attr("keepdim"):
            raise _Declined(f"the mean is over {dims}, expected the last dim, kept")
        if mean.dtype != x.dtype:
            raise _Declined(f"the mean of {x.dtype} is {mean.dtype}")

    def after(self, node: Node, *ops: str) -> Node:
        """The only reader of a value, which must be one of these ops."""
        users = self.graph.users(node)
        if len(users) != 1 or self.graph.is_output(node):
            raise _Declined(f"{node!r} is read {len(users)} times or is a result")
        if users[0].op.name not in ops:
            raise _Declined(
                f"{users[0].op.name} follows {node.op.name}, expected {' or '.join(ops)}"
            )
        return users[0]

    def divided(self, x: Node, shifted: Node) -> Node:
        """x * rsqrt(m) or x / sqrt(m); x may still be in the narrow dtype it was squared from."""
        root = self.after(
            shifted, "aten.rsqrt.default", "aten.sqrt.default", "aten.pow.Tensor_Scalar"
        )
        if root.op.name == "aten.pow.Tensor_Scalar" and root.attr("exponent") != -0.5:
            raise _Declined(f"the mean of squares to the power {root.attr('exponent')}")
        divides = root.op.name == "aten.sqrt.default"
        made = self.after(root, "aten.div.Tensor" if divides else _MUL)
        a, b = made.args
        other = a if b is root else b
        if divides and b is not root:
            raise _Declined("the root is divided, not divided by")
        if other is not x and not (x.op.name == _CAST and other is _only_input(x)):
            raise _Declined("another value than the squared one is normalized")
        return made

    def centered(self, x: Node) -> Node | None:
        """y where x = y - mean(y)."""
        if x.op.name != "aten.sub.Tensor" or x.attr("alpha") != 1:
            return None
        y, mean = x.args
        if mean.op.name != "aten.mean.dim" or _only_input(mean) is not y:
            return None
        self.over_last(mean, y)
        return y

    def rms_norm(self, x: Node, normed: Node, eps: float) -> tuple[Node, Node]:
        source = _only_input(x) if x.op.name == _CAST and x.dtype == torch.float32 else x
        root, cast_first = normed, False
        narrow = self.single(root, _CAST)
        if narrow is not None and narrow.dtype == source.dtype:
            root, cast_first = narrow, True
        weight, offset = None, 0.0
        scaled = self.single(root, _MUL)
        if scaled is not None:
            found = self.weight(scaled, root, source)
            if found is not None:
                weight, offset = found
                root = scaled
        if not cast_first:
            narrow = self.single(root, _CAST)
            if narrow is not None and narrow.dtype == source.dtype:
                root = narrow
        made = self.o.call(rms_norm, source, weight, eps=eps, offset=offset, cast_first=cast_first)
        return root, made

    def single(self, node: Node, op: str) -> Node | None:
        users = self.graph.users(node)
        fits = len(users) == 1 and users[0].op.name == op and not self.graph.is_output(node)
        return users[0] if fits else None

    def weight(self, scaled: Node, value: Node, source: Node) -> tuple[Node, float] | None:
        """(w, offset) where `scaled` is value * (w + offset) with w over the last dim."""
        a, b = scaled.args
        weight, offset = (a if b is value else b), 0.0
        if weight.op.name == "aten.add.Scalar" and weight.attr("alpha") == 1:
            offset, weight = float(weight.attr("other")), _only_input(weight)
        if weight.op.name == _CAST and weight.tensor_type.is_float:
            weight = _only_input(weight)
        if weight.shape != source.shape[-1:] or scaled.shape != value.shape:
            return None
        return weight, offset

    def layer_norm(self, y: Node, normed: Node, eps: float) -> tuple[Node, Node]:
        weight = bias = None
        root = normed
        scaled = self.single(root, _MUL)
        if scaled is not None:
            found = self.weight(scaled, root, y)
            if found is not None and found[1] == 0.0 and found[0].dtype == y.dtype:
                weight, root = found[0], scaled
                added = self.single(root, "aten.add.Tensor")
                if added is not None and added.attr("alpha") == 1:
                    a, b = added.args
                    other = a if b is root else b
                    if other.shape == y.shape[-1:] and other.dtype == y.dtype:
                        bias, root = other, added
        last = list(y.shape[-1:])
        made = self.o.call("aten.layer_norm.default", y, last, weight, bias, eps)
        return root, made
