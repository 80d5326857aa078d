"""One way to write each thing: views are permute and reshape, casts are to.dtype, products linear.

Patterns of later passes rely on these forms, and verify.GONE_AFTER holds them to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import sympy
import torch

from infopt.compiler.alias import is_view, owners_of_results
from infopt.compiler.errors import CannotInfer, DependsOnSize
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.ops import CONST, aten
from infopt.compiler.pipeline import Pass, PassContext
from infopt.compiler.types import dtype_name

Simplify = Callable[["_Work", Node], "Node | None"]
_FORMS: dict[str, Simplify] = {}
_LOSSLESS = {
    torch.bool: "u8 i8 i16 i32 i64 f16 bf16 f32 f64",
    torch.uint8: "i16 i32 i64 f16 bf16 f32 f64",
    torch.int8: "i16 i32 i64 f16 bf16 f32 f64",
    torch.int16: "i32 i64 f32 f64",
    torch.int32: "i64 f64",
    torch.float16: "f32 f64",
    torch.bfloat16: "f32 f64",
    torch.float32: "f64",
}
_READS_MEMORY = ("aten.as_strided.default", "aten.view.dtype", "aten.as_strided_scatter.default")


def _form(*names: str) -> Callable[[Simplify], Simplify]:
    def declare(f: Simplify) -> Simplify:
        _FORMS.update({f"aten.{n}": f for n in names})
        return f

    return declare


@dataclass(frozen=True)
class Canonicalize(Pass):
    """x.t().t() -> x, x.view(s).view(t) -> x.reshape(t), addmm(b, x, w.t()) -> linear(x, w, b)"""

    name: ClassVar[str] = "canonicalize"
    stage: ClassVar[Stage] = Stage.NORMALIZE

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        work = _Work(graph, ctx)
        new: dict[Node, Node] = {}

        def moved(arg: Any) -> Any:
            if isinstance(arg, tuple):
                return tuple(moved(a) for a in arg)
            return None if arg is None else new[arg]

        for node in graph.nodes():
            made = work.rebuilt(node, moved(node.args)) if node.args else node
            new[node] = work.simplify(made, node in work.kept)
            work.readers[new[node]] = work.readers.get(new[node], 0) + graph.use_count(node)
        return graph.with_roots(new)


class _Work:
    """One run: the builder, how often each new value is read, and the copies that must stay."""

    def __init__(self, graph: Graph, ctx: PassContext) -> None:
        self.o: Builder = ctx.builder
        self.ctx = ctx
        self.readers: dict[Node, int] = {}
        self.keeping = False  # the node at hand owns memory that callers see
        self.kept = owners_of_results(graph)
        for node in graph.nodes():
            if node.op.name in _READS_MEMORY:
                self.kept.update(node.inputs)

    def rebuilt(self, node: Node, args: tuple) -> Node:
        """The node on simpler arguments, which are equal to its own: so it keeps its type where
        only torch's guards could tell that their sizes are equal, too.
        """
        try:
            return self.o.rebuild(node, args)
        except DependsOnSize:
            return self.o.node(node.op, args, node.attrs, node.type, node.serial)

    def simplify(self, node: Node, kept: bool = False) -> Node:
        """The canonical form of a node whose inputs are canonical."""
        self.keeping = kept
        while (form := _FORMS.get(node.op.name)) is not None:
            if kept and form in _DROPS_A_COPY:
                return node
            try:
                made = form(self, node)
            except CannotInfer as error:
                self.ctx.site(node, False, str(error))
                return node
            if made is None or made is node or not self.ctx.admits(node):
                return node
            self.ctx.site(node, True)
            node = made
        return node

    def permute(self, x: Node, dims: list[int]) -> Node:
        return self.simplify(self.o.call("aten.permute.default", x, dims))

    def reshape(self, x: Node, like: Node) -> Node:
        """x in the shape of `like`; where torch's guards decided that it is a view, as it did."""
        try:
            return self.o.call("aten.reshape.default", x, list(like.shape))
        except CannotInfer:
            return self.o.node(aten("reshape.default"), (x,), (("shape", like.shape),), like.type)

    def cast(self, x: Node, dtype: torch.dtype) -> Node:
        return self.o.call("aten.to.dtype", x, dtype)


def _source(node: Node) -> Node:
    return next(node.inputs)


# Transposing views: permute with dims from 0 up; two in a row are one.


@_form("t.default", "numpy_T.default")
def _reverse(w: _Work, node: Node) -> Node:
    x = _source(node)
    return w.permute(x, list(range(x.tensor_type.rank))[::-1])


@_form("mT.default")
def _transpose_last(w: _Work, node: Node) -> Node:
    x = _source(node)
    rank = x.tensor_type.rank
    return w.permute(x, [*range(rank - 2), rank - 1, rank - 2])


@_form("transpose.int", "swapaxes.default", "swapdims.default")
def _transpose(w: _Work, node: Node) -> Node:
    x = _source(node)
    rank = x.tensor_type.rank
    if rank == 0:
        return x
    a, b = (value % rank for _, value in node.attrs)
    order = list(range(rank))
    order[a], order[b] = order[b], order[a]
    return w.permute(x, order)


@_form("movedim.int")
def _movedim(w: _Work, node: Node) -> Node:
    x = _source(node)
    rank = x.tensor_type.rank
    if rank == 0:
        return x
    order = list(range(rank))
    order.insert(node.attr("destination") % rank, order.pop(node.attr("source") % rank))
    return w.permute(x, order)


@_form("permute.default")
def _permute(w: _Work, node: Node) -> Node | None:
    x = _source(node)
    order = [d % x.tensor_type.rank for d in node.attr("dims")]
    if order == list(range(len(order))):
        return x
    if x.op.name == "aten.permute.default":
        inner = x.attr("dims")
        return w.permute(_source(x), [inner[d] for d in order])
    return None if list(node.attr("dims")) == order else w.permute(x, order)


# Views of shape: reshape to an explicit shape.


@_form(
    "view.default", "_unsafe_view.default", "flatten.using_ints", "unflatten.int",
    "unsqueeze.default", "squeeze.default", "squeeze.dim", "squeeze.dims",
    "reshape_as.default", "view_as.default",
)  # fmt: skip
def _shape_only(w: _Work, node: Node) -> Node:
    return w.reshape(_source(node), node)


@_form("reshape.default")
def _reshape(w: _Work, node: Node) -> Node | None:
    x = _source(node)
    if node.shape == x.shape:
        return x
    merges = x.op.name == "aten.reshape.default" and (is_view(x) or w.readers.get(x, 0) <= 1)
    copies = x.op.name in ("aten.contiguous.default", "aten.clone.default") and x not in w.kept
    if (merges or copies) and not (x in w.kept and not is_view(x)):
        return w.reshape(_source(x), node)
    if x.op.name == "aten.linear.default" and w.readers.get(x, 0) <= 1:
        rows = _with_rows_as_in(x, node)
        if rows is not None:
            return w.o.call("aten.linear.default", rows, *x.args[1:])
    return None if node.attr("shape") == node.shape else w.reshape(x, node)


def _with_rows_as_in(linear: Node, node: Node) -> Node | None:
    """The input of a linear before its rows were flattened, where `node` only undoes that."""
    flat = _source(linear)
    if flat.op.name != "aten.reshape.default":
        return None
    rows = _source(flat)
    same_rows = rows.shape[:-1] == node.shape[:-1] and rows.shape[-1] == flat.shape[-1]
    return rows if same_rows and node.shape[-1] == linear.shape[-1] else None


@_form("expand.default", "expand_as.default", "broadcast_to.default")
def _expand(w: _Work, node: Node) -> Node | None:
    x = _source(node)
    if node.shape == x.shape:
        return x
    if node.op.name == "aten.expand.default" and node.attr("size") == node.shape:
        return None
    return w.o.call("aten.expand.default", x, list(node.shape))


@_form("slice.Tensor")
def _whole_slice(w: _Work, node: Node) -> Node | None:
    return _source(node) if node.shape == _source(node).shape else None


def _piece(w: _Work, node: Node) -> Node | None:
    """One result of meshgrid or broadcast_tensors: its own input, broadcast."""
    whole, index = _source(node), node.attr("index")
    if not whole.op.name.startswith(("aten.meshgrid.", "aten.broadcast_tensors.")):
        return None
    (parts,) = whole.args
    assert isinstance(parts, tuple) and isinstance(parts[index], Node)
    x = parts[index]
    if whole.op.name.startswith("aten.meshgrid."):
        dim = index
        if dict(whole.attrs).get("indexing") == "xy" and len(parts) > 1 and index < 2:
            dim = 1 - index
        shape = [n if d == dim else 1 for d, n in enumerate(node.shape)]
        x = w.simplify(w.o.call("aten.reshape.default", x, shape))
    return x if x.shape == node.shape else w.o.call("aten.expand.default", x, list(node.shape))


_FORMS["getitem"] = _piece


@_form("cat.default")
def _cat(w: _Work, node: Node) -> Node | None:
    """Parts without elements are left out, also torch's [0] of any rank; one part is itself."""
    (parts,) = node.args
    assert isinstance(parts, tuple)
    rank = node.tensor_type.rank
    dim = node.attr("dim") % rank
    full = [p for p in parts if p is not None and p.shape != (0,) and p.shape[dim] != 0]
    if len(full) == len(parts) or not full or any(p.tensor_type.rank != rank for p in full):
        return full[0] if len(parts) == 1 and full else None
    if any(p.dtype != node.dtype for p in full):
        return None
    return full[0] if len(full) == 1 else w.o.call("aten.cat.default", full, node.attr("dim"))


# Values that are their input.


@_form("alias.default", "detach.default", "lift_fresh.default", "positive.default")
def _same(w: _Work, node: Node) -> Node:
    return _source(node)


@_form("dropout.default", "feature_dropout.default", "alpha_dropout.default")
def _dropout(w: _Work, node: Node) -> Node | None:
    return None if node.attr("train") else _source(node)


@_form("clone.default")
def _clone(w: _Work, node: Node) -> Node | None:
    x, memory = _source(node), node.attr("memory_format")
    if memory is torch.contiguous_format and not x.tensor_type.is_contiguous:
        return w.o.call("aten.contiguous.default", x)
    return x if memory in (None, torch.preserve_format, torch.contiguous_format) else None


@_form("contiguous.default")
def _contiguous(w: _Work, node: Node) -> Node | None:
    x = _source(node)
    plain = node.attr("memory_format") in (torch.contiguous_format, 0)  # schemas default to 0
    return x if plain and x.tensor_type.is_contiguous else None


# Casts: one op; none where the dtype is the same; no detour through a wider dtype.


@_form(
    "to.dtype", "to.dtype_layout", "to.device", "to.other", "_to_copy.default", "type_as.default"
)
def _cast(w: _Work, node: Node) -> Node | None:
    x = _source(node)
    attrs = dict(node.attrs)
    dense = (None, torch.preserve_format, torch.contiguous_format)
    device = attrs.get("device")
    if attrs.get("memory_format") not in dense or (device is not None and device.type != "cpu"):
        return None
    if node.dtype == x.dtype:
        return w.o.call("aten.clone.default", x) if w.keeping else x
    if (
        not w.keeping
        and x.op.name == "aten.to.dtype"
        and _detour(_source(x).dtype, x.dtype, node.dtype)
    ):
        first = _source(x)
        return first if first.dtype == node.dtype else w.cast(first, node.dtype)
    made = w.cast(x, node.dtype)
    return None if made is node else made


def _detour(start: torch.dtype, middle: torch.dtype, end: torch.dtype) -> bool:
    """True where start -> middle -> end gives what start -> end gives."""
    lossless = dtype_name(middle) in _LOSSLESS.get(start, "").split()
    return lossless and (end == start or end.is_floating_point)


# Arithmetic.


@_form("__and__.Tensor", "__or__.Tensor", "__xor__.Tensor")
def _bitwise(w: _Work, node: Node) -> Node:
    word = node.op.name.split(".")[1].strip("_")
    return w.o.call(f"aten.bitwise_{word}.Tensor", *node.args)


@_form("logical_and.default", "logical_or.default", "logical_xor.default", "logical_not.default")
def _logical(w: _Work, node: Node) -> Node | None:
    if any(n.dtype != torch.bool for n in node.inputs):
        return None
    word = node.op.name.split("_")[1].split(".")[0]
    overload = "default" if word == "not" else "Tensor"
    return w.o.call(f"aten.bitwise_{word}.{overload}", *node.args)


@_form("rsub.Tensor")
def _rsub(w: _Work, node: Node) -> Node:
    a, b = node.args
    return w.o.call("aten.sub.Tensor", b, a, alpha=node.attr("alpha"))


@_form("add.Scalar")
def _add_zero(w: _Work, node: Node) -> Node | None:
    """Integers only: -0.0 + 0.0 is 0.0."""
    zero = node.attr("other") == 0 and not isinstance(node.attr("other"), sympy.Expr)
    same = node.dtype == _source(node).dtype and not node.tensor_type.is_float
    return _source(node) if zero and same else None


@_form("sub.Scalar")
def _sub_zero(w: _Work, node: Node) -> Node | None:
    other = node.attr("other")
    zero = isinstance(other, int | float) and other == 0 and math.copysign(1.0, other) > 0
    return _source(node) if zero and node.dtype == _source(node).dtype else None


@_form("mul.Scalar")
def _mul_one(w: _Work, node: Node) -> Node | None:
    one = isinstance(node.attr("other"), int | float) and node.attr("other") == 1
    return _source(node) if one and node.dtype == _source(node).dtype else None


@_form("div.Scalar")
def _div(w: _Work, node: Node) -> Node | None:
    """By a power of two it is a multiplication, exactly."""
    x, by = _source(node), node.attr("other")
    if not isinstance(by, int | float) or not x.tensor_type.is_float:
        return None
    if by == 1:
        return x
    exact = math.isfinite(by) and by != 0 and abs(math.frexp(by)[0]) == 0.5
    if not exact or not 2**-14 <= abs(by) <= 2**14:
        return None
    return w.o.call("aten.mul.Scalar", x, 1.0 / by)


@_form("softmax.int", "log_softmax.int", "_softmax.default")
def _softmax(w: _Work, node: Node) -> Node | None:
    """The last dimension is -1."""
    x, dim = _source(node), node.attr("dim")
    if node.op.name == "aten._softmax.default":
        return None if node.attr("half_to_float") else w.o.call("aten.softmax.int", x, dim)
    if dim < 0 or x.tensor_type.rank == 0:
        return None
    return w.o.call(node.op, x, dim - x.tensor_type.rank, dtype=node.attr("dtype"))


# Products with a transposed matrix: linear, which reads the matrix as it lies in memory.


@_form("addmm.default")
def _addmm(w: _Work, node: Node) -> Node | None:
    bias, x, matrix = node.args
    assert isinstance(bias, Node) and isinstance(x, Node) and isinstance(matrix, Node)
    if bias.tensor_type.rank != 1 or node.attr("beta") != 1 or node.attr("alpha") != 1:
        return None
    weight = _transposed(w, matrix)
    if weight is None or bias.shape[0] != weight.shape[0]:
        return None
    return w.o.call("aten.linear.default", x, weight, bias)


@_form("mm.default", "matmul.default")
def _matmul(w: _Work, node: Node) -> Node | None:
    x, matrix = node.args
    assert isinstance(x, Node) and isinstance(matrix, Node)
    weight = _transposed(w, matrix) if x.tensor_type.rank >= 2 else None
    if weight is None:
        return None
    return w.o.call("aten.linear.default", x, weight)


def _transposed(w: _Work, matrix: Node) -> Node | None:
    """w where the matrix is w transposed and w lies row-major in memory, as parameters do.

    A constant matrix is brought into that form: constant folding does it once.
    """
    if matrix.op is CONST and matrix.tensor_type.rank == 2:
        return w.o.call("aten.contiguous.default", w.permute(matrix, [1, 0]))
    if matrix.op.name != "aten.permute.default" or matrix.attr("dims") != (1, 0):
        return None
    weight = _source(matrix)
    return weight if weight.tensor_type.is_contiguous else None


_DROPS_A_COPY = {_clone, _contiguous, _reshape, _cat}
