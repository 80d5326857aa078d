"""Masks built from positions -> what they are: all true, a view of the given mask, or causal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from infopt.compiler.errors import CannotInfer
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.pipeline import Pass, PassContext
from infopt.compiler.types import Size

_VIEWS = ("aten.reshape.default", "aten.expand.default", "aten.permute.default")
_ONES = ("aten.ones.default", "aten.new_ones.default", "aten.ones_like.default")


@dataclass(frozen=True)
class SimplifyMasks(Pass):
    """mask & (positions >= 0) -> mask, and mask[rows, columns] -> mask where those are all of them

    Programs that handle every kind of mask build one by index arithmetic; for a padding mask that
    is the mask itself, and reading it there costs nothing.
    """

    name: ClassVar[str] = "simplify-masks"
    stage: ClassVar[Stage] = Stage.NORMALIZE
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        def simplified(node: Node, args: tuple) -> Node:
            made = ctx.builder.rebuild(node, args) if node.args else node
            try:
                better = _simplified(made, ctx.builder, graph)
            except CannotInfer as error:
                ctx.site(made, False, str(error))
                return made
            if better is None or graph.is_output(node) or not ctx.admits(node):
                return made
            ctx.site(made, True)
            return better

        return graph.map(simplified)


def _simplified(node: Node, o: Builder, graph: Graph) -> Node | None:
    if node.op.name == "aten.bitwise_and.Tensor" and node.dtype == torch.bool:
        a, b = node.args
        assert isinstance(a, Node) and isinstance(b, Node)
        for known, other in ((a, b), (b, a)):
            if all_true(known, graph):
                return other if other.shape == node.shape else o.expand(other, list(node.shape))
    if node.op.name == "aten.index.Tensor":
        return _whole_index(node, o, graph)
    return None


def all_true(node: Node, graph: Graph) -> bool:
    """True where every element of a bool value is surely true."""
    if node.dtype != torch.bool:
        return False
    while node.op.name in _VIEWS:
        node = next(node.inputs)
    name = node.op.name
    if name in _ONES:
        return True
    if name == "aten.full.default":
        return node.attr("fill_value") is True
    if name == "const":
        return bool(graph.consts[node.attr("name")].all())
    if name == "aten.bitwise_and.Tensor":
        return all(all_true(n, graph) for n in node.inputs)
    if name == "aten.eq.Tensor":
        a, b = (uniform(n, graph) for n in node.inputs)
        return a is not None and a == b
    if name == "aten.ge.Scalar":
        low = node.attr("other")
        return (
            isinstance(low, int | float)
            and low <= 0
            and counted(next(node.inputs), graph) is not None
        )
    return False


def uniform(node: Node, graph: Graph) -> int | None:
    """The integer (True is 1) that all elements of a value surely are; None: not known.

    Programs for several texts in a row number them by counting where positions do not follow each
    other: cumsum(diff(positions) != 1), which is 0 where the positions are counted from 0.
    """
    while node.op.name in _VIEWS:
        node = next(node.inputs)
    name = node.op.name
    if name == "aten.diff.default":
        return 1 if _counts_up(node, graph) else None
    if name in ("aten.ne.Scalar", "aten.eq.Scalar"):
        value, other = uniform(next(node.inputs), graph), node.attr("other")
        if value is None or not isinstance(other, int):
            return None
        return int((value == other) == (".eq." in name))
    if name == "aten.cumsum.default":
        return 0 if uniform(next(node.inputs), graph) == 0 else None
    return None


def _counts_up(node: Node, graph: Graph) -> bool:
    """diff(x, x[0] - 1) of an x that counts from 0 along the last dim."""
    x, before, after = node.args
    if not isinstance(x, Node) or not isinstance(before, Node) or after is not None:
        return False
    last = x.tensor_type.rank - 1
    if node.attr("n") != 1 or node.attr("dim") not in (-1, last):
        return False
    found = counted(x, graph)
    if found is None or found[0] != last or before.op.name != "aten.sub.Scalar":
        return False
    first = next(before.inputs)
    if before.attr("other") != 1 or before.attr("alpha") != 1:
        return False
    if first.op.name != "aten.slice.Tensor" or next(first.inputs) is not x:
        return False
    place = (first.attr("start"), first.attr("end"), first.attr("step"))
    return first.attr("dim") in (-1, last) and place == (0, 1, 1)


def counted(node: Node, graph: Graph) -> tuple[int | None, Size] | None:
    """(dim, n) of a value that is 0, 1 .. n - 1 along one dim and the same along all others.

    dim is None for a single 0. None where the value is something else.
    """
    shape = node.shape
    while node.op.name == "aten.reshape.default":
        inner = next(node.inputs)
        if [s for s in inner.shape if s != 1] != [s for s in node.shape if s != 1]:
            return None
        node = inner
    wide = [i for i, s in enumerate(shape) if s != 1]
    if node.op.name == "const":
        tensor = graph.consts[node.attr("name")]
        whole = tensor.dtype in (torch.int64, torch.int32) and len(wide) <= 1
        if not whole or not torch.equal(
            tensor.flatten(), torch.arange(tensor.numel(), dtype=tensor.dtype)
        ):
            return None
        return (wide[0] if wide else None), tensor.numel()
    if not _from_zero(node) or node.tensor_type.rank != 1 or len(wide) > 1:
        return None
    return (wide[0] if wide else None), node.shape[0]


def _from_zero(node: Node) -> bool:
    """An arange of integers from 0 in steps of 1."""
    name = node.op.name
    if not name.startswith("aten.arange.") or node.tensor_type.is_float:
        return False
    attrs = dict(node.attrs)
    return attrs.get("start", 0) == 0 and attrs.get("step", 1) == 1


def _whole_index(node: Node, o: Builder, graph: Graph) -> Node | None:
    """x[i, j ..] where the indices count through all of x, each along a dim of its own."""
    x, indices = node.args
    if (
        not isinstance(x, Node)
        or not isinstance(indices, tuple)
        or len(indices) != x.tensor_type.rank
    ):
        return None
    dims = []
    for size, index in zip(x.shape, indices, strict=True):
        found = counted(index, graph) if index is not None else None
        if found is None or found[1] != size or index is None:
            return None
        # aligned from the right, as broadcasting does
        missing = node.tensor_type.rank - index.tensor_type.rank
        dims.append(-1 if found[0] is None else found[0] + missing)
    placed = [d for d in dims if d >= 0]
    if len(set(placed)) != len(placed):
        return None
    order = sorted(range(len(dims)), key=lambda i: dims[i])
    ordered = x if order == list(range(len(order))) else o.permute(x, order)
    return o.reshape(ordered, list(node.shape))
