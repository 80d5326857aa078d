"""Which ops treat the parts of an axis apart, so that they can be run slice by slice.

Two kinds of axis are known. "rows": all dimensions but the last, as one; ops that look along the
last dimension only leave rows apart (MLPs, norms, scores over a vocabulary). "batch": the first
dimension; attention and convolutions leave it apart too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy

from infopt.codegen import pointwise
from infopt.compiler.graph import Node

ROWS, BATCH = "rows", "batch"
# The tensors of an op that have the axis; all its others are read whole by every slice.
_LAST_DIM = {
    "aten.linear.default": ("input",),
    "linear_act": ("x", "residual"),
    "gated_linear": ("x",),
    "narrow_linear": ("x", "residual"),
    "narrow_gated_linear": ("x",),
    "linear_chain": ("x", "residual"),
    "narrow_linear_chain": ("x", "residual"),
    "group_sparse_linear": ("x", "residual"),
    "quantized_linear": ("x", "residual"),
    "quantized_gated_linear": ("x",),
    "aten.layer_norm.default": ("input",),
    "rms_norm": ("x",),
}
_FIRST_DIM = {
    "attention": ("q", "k", "v"),
    "low_rank_attention": ("q", "k", "v"),
    "adapter_linear": ("y", "x", "slots"),
    "aten.embedding.default": ("indices",),
    "embedding_norm": ("ids",),
    "aten.conv1d.default": ("input",),
    "aten.conv2d.default": ("input",),
    "conv_act": ("x", "residual"),
    "narrow_conv": ("x", "residual"),
    "aten.group_norm.default": ("input",),
    "aten.max_pool2d.default": ("self",),
    "aten.avg_pool2d.default": ("self",),
    "aten.upsample_nearest2d.vec": ("input",),
}
# Tensors that have the axis where their sizes say so, and are repeated along it otherwise.
_MASKS = {"attn_mask", "mask"}  # as large as the result, or broadcast to it
_IF_THERE = {*_MASKS, "ids1", "ids2"}
_CASTS = {"aten.to.dtype", "aten.clone.default", "aten.contiguous.default"}
_SOFTMAX = {"aten.softmax.int", "aten._softmax.default", "aten.log_softmax.int"}
RESHAPES = {"aten.reshape.default", "aten.view.default", "aten._unsafe_view.default"}
_ALONG = {"aten.select.int", "aten.slice.Tensor", "aten.cat.default", "aten.unsqueeze.default"}
_REDUCTIONS = {"aten.sum.dim_IntList", "aten.mean.dim", "aten.amax.default", "aten.amin.default"}


@dataclass(frozen=True)
class Axis:
    """An axis of `count` parts: "rows" of tensors [..., width], or of a "batch", which may be an
    open size."""

    kind: str
    count: Any

    def sizes(self, value: Node, parts: int) -> tuple[int, ...]:
        """The shape of so many parts of a value that has the axis."""
        shape: tuple[Any, ...] = value.shape
        if self.kind == ROWS:
            return (parts, shape[-1])
        return (shape[0] // self.count * parts, *shape[1:])

    def holds(self, value: Node) -> bool:
        """Whether a value could have the axis, by its sizes."""
        if isinstance(self.count, sympy.Symbol):
            return value.tensor_type.rank > 0 and self._leads(value.shape)
        if not value.tensor_type.is_static or value.tensor_type.rank < 1:
            return False
        shape: tuple[Any, ...] = value.shape
        if self.kind == BATCH:
            return shape[0] % self.count == 0 and shape[0] > 0
        rows = 1
        for size in shape[:-1]:
            rows *= size
        return len(shape) > 1 and rows == self.count

    def _leads(self, shape: tuple[Any, ...]) -> bool:
        """Whether an open count is a factor of the first size, and in no other one."""
        sizes = [sympy.sympify(n) for n in shape]
        each = sizes[0] / self.count
        rest = (each, *sizes[1:])
        return not any(self.count in n.free_symbols for n in rest) and sympy.denom(each) == 1


def cut_operands(node: Node, axis: Axis) -> set[Node] | None:
    """The operands to be cut along the axis so that parts of the result come from their parts
    alone; None where the op mixes parts, or is not known not to."""
    if node.serial or isinstance(node.type, tuple) or not axis.holds(node):
        return None
    attrs = dict(node.attrs)
    if attrs.get("activations") == "packed" or attrs.get("out_step"):
        return None  # in memory such rows are no tensor that could be cut
    found = _rows(node) if axis.kind == ROWS else _batch(node)
    if not found or not all(axis.holds(n) for n in found):
        return None
    return found


def part_attrs(node: Node, axis: Axis, parts: int) -> tuple[tuple[str, Any], ...]:
    """The attributes of the op on so many parts."""
    attrs = dict(node.attrs)
    name = node.op.name
    if name in RESHAPES:
        attrs["size" if "size" in attrs else "shape"] = axis.sizes(node, parts)
    elif name == "aten.expand.default":
        attrs["size"] = axis.sizes(node, parts)
    elif name in _SOFTMAX and axis.kind == ROWS:
        attrs["dim"] = 1
    return tuple(attrs.items())


def _named(node: Node, names: tuple[str, ...]) -> set[Node]:
    found = set()
    for parameter, arg in zip(_tensors(node), node.args, strict=True):
        if parameter in names and isinstance(arg, Node):
            found.add(arg)
    return found


def _tensors(node: Node) -> list[str]:
    return [p.name for p in node.op.parameters if p.is_tensor]


def _clashes(node: Node, cut: set[Node]) -> bool:
    """True where one value would be read both cut and whole."""
    names = _LAST_DIM.get(node.op.name) or _FIRST_DIM.get(node.op.name, ())
    rest = [
        a for p, a in zip(_tensors(node), node.args, strict=True) if p not in (*names, *_IF_THERE)
    ]
    return any(a in cut for a in rest if isinstance(a, Node))


def _rows(node: Node) -> set[Node] | None:
    name, rank = node.op.name, node.tensor_type.rank
    if name in _LAST_DIM:
        if name == "aten.layer_norm.default" and len(node.attr("normalized_shape")) != 1:
            return None
        cut = _named(node, _LAST_DIM[name])
        return None if _clashes(node, cut) else cut
    if name in _SOFTMAX:
        return set(node.inputs) if node.attr("dim") % rank == rank - 1 else None
    if name in _CASTS:
        return set(node.inputs)
    if pointwise.find(node) is None:
        return None
    cut = {a for a in node.inputs if a.shape[:-1] == node.shape[:-1]}
    return cut if all(a in cut or a.tensor_type.rank <= 1 for a in node.inputs) else None


def _batch(node: Node) -> set[Node] | None:
    name, rank = node.op.name, node.tensor_type.rank
    source = next(node.inputs, None)
    known = _LAST_DIM.get(name) or _FIRST_DIM.get(name)
    if known:
        if name == "aten.layer_norm.default" and len(node.attr("normalized_shape")) >= rank:
            return None
        cut = _named(node, known)
        if name == "embedding_norm" and node.args[0].tensor_type.rank < 2:  # type: ignore[union-attr]
            return None  # a table without ids would have a row for each
        for parameter, arg in zip(_tensors(node), node.args, strict=True):
            if parameter in _IF_THERE and isinstance(arg, Node):
                full = rank if parameter in _MASKS else max(n.tensor_type.rank for n in cut)
                if arg.tensor_type.rank == full and arg.shape[0] == node.shape[0]:
                    cut.add(arg)
        return None if rank < 2 or _clashes(node, cut) else cut
    if source is None or source.tensor_type.rank == 0:
        return None
    if name in _CASTS or name in RESHAPES:
        return {source}
    if name == "aten.permute.default":
        return {source} if node.attr("dims")[0] == 0 else None
    if name == "aten.transpose.int":
        return {source} if all(node.attr(d) % rank for d in ("dim0", "dim1")) else None
    if name == "aten.expand.default":
        same = source.tensor_type.rank == rank and source.shape[0] == node.shape[0]
        return {source} if same else None
    if name in _SOFTMAX or name in _ALONG:
        along = max(rank, source.tensor_type.rank)
        return set(node.inputs) if node.attr("dim") % along else None
    if name in _REDUCTIONS:
        dims = node.attr("dim")
        kept = dims and all(d % source.tensor_type.rank for d in dims)
        return {source} if kept else None
    if pointwise.find(node) is None:
        return None
    cut = {a for a in node.inputs if a.tensor_type.rank == rank and a.shape[0] == node.shape[0]}
    rest = [a for a in node.inputs if a not in cut]
    return cut if all(a.tensor_type.rank < rank or a.shape[0] == 1 for a in rest) else None
