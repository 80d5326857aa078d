"""Views as metadata: what an op that moves no data does to a layout.

A layout is where a tensor's elements lie inside a buffer. `view` gives the layout of a node from
the layout of what it reads, or None where data must move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import sympy
import torch
from torch.utils._sympy.functions import Where

from infopt.codegen.sizes import Sizes, product, same, same_stride
from infopt.compiler.graph import Node
from infopt.compiler.types import Size, TensorType, contiguous_strides


@dataclass(frozen=True, slots=True)
class Layout:
    """offset (from the buffer's start) and strides in elements."""

    offset: Size
    shape: tuple[Size, ...]
    strides: tuple[Size, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, type: TensorType) -> Layout:
        return cls(0, type.shape, type.strides, type.dtype)

    def has_strides(self, strides: Sequence[Size]) -> bool:
        """True where the strides matter and are these."""
        if self.strides == tuple(strides) or 0 in self.shape:
            return True
        pairs = zip(self.shape, self.strides, strides, strict=True)
        return all(n == 1 or same_stride(a, b) for n, a, b in pairs)

    @property
    def is_contiguous(self) -> bool:
        return self.has_strides(contiguous_strides(self.shape))

    @property
    def type(self) -> TensorType:
        return TensorType(self.shape, self.dtype, self.strides)


ViewOf = Callable[[Node, Layout, Sizes], "Layout | None"]
_VIEWS: dict[str, ViewOf] = {}
_PIECES: dict[str, Callable[[Node, int, Layout, Sizes], Layout | None]] = {}


def view(node: Node, source: Layout, sizes: Sizes) -> Layout | None:
    """The layout of `node` over the memory of its first argument, None where it is no view."""
    found = _VIEWS.get(node.op.name)
    return None if found is None else found(node, source, sizes)


def piece(parent: Node, index: int, source: Layout, sizes: Sizes) -> Layout | None:
    """The layout of result `index` of an op like split over its argument's memory."""
    found = _PIECES.get(parent.op.name)
    return None if found is None else found(parent, index, source, sizes)


def is_view_op(node: Node) -> bool:
    """True for ops that are metadata for every layout or for some."""
    return node.op.name in _VIEWS


def gives_pieces(node: Node) -> bool:
    return node.op.name in _PIECES


def _register(*names: str) -> Callable[[ViewOf], ViewOf]:
    def add(function: ViewOf) -> ViewOf:
        for name in names:
            _VIEWS[f"aten.{name}"] = function
        return function

    return add


@_register(
    "alias.default",
    "detach.default",
    "lift_fresh.default",
    "positive.default",
    "resolve_conj.default",
    "resolve_neg.default",
    "dropout.default",
    "feature_dropout.default",
    "alpha_dropout.default",
    "feature_alpha_dropout.default",
)
def _identity(node: Node, source: Layout, sizes: Sizes) -> Layout | None:
    if "dropout" in node.op.name and node.attr("train"):
        return None
    return source


@_register(
    "to.dtype",
    "to.dtype_layout",
    "to.device",
    "to.other",
    "type_as.default",
    "contiguous.default",
    "_to_copy.default",
    "clone.default",
)
def _same_values(node: Node, source: Layout, sizes: Sizes) -> Layout | None:
    wanted = node.tensor_type
    if wanted.dtype != source.dtype or node.op.name in (
        "aten._to_copy.default",
        "aten.clone.default",
    ):
        return None
    attrs = dict(node.attrs)
    if attrs.get("copy") or not source.has_strides(wanted.strides):
        return None
    return source


@_register(
    "permute.default",
    "t.default",
    "transpose.int",
    "swapaxes.default",
    "swapdims.default",
    "mT.default",
    "numpy_T.default",
    "movedim.int",
    "adjoint.default",
)
def _permuted(node: Node, source: Layout, sizes: Sizes) -> Layout | None:
    order = permutation(node, len(source.shape))
    shape = tuple([source.shape[d] for d in order])
    return replace(source, shape=shape, strides=tuple([source.strides[d] for d in order]))


def permutation(node: Node, rank: int) -> list[int]:
    """The order of axes that a transposing op gives."""
    name, attrs, order = node.op.name, dict(node.attrs), list(range(rank))
    if name == "aten.permute.default":
        return [d % rank for d in attrs["dims"]] if rank else []
    if name in ("aten.t.default", "aten.numpy_T.default"):
        return order[::-1]
    if name in ("aten.mT.default", "aten.adjoint.default"):
        return [*order[:-2], rank - 1, rank - 2]
    if not rank:
        return []
    if name == "aten.movedim.int":
        order.insert(attrs["destination"] % rank, order.pop(attrs["source"] % rank))
        return order
    a, b = (d % rank for d in attrs.values())
    order[a], order[b] = order[b], order[a]
    return order


@_register("expand.default", "expand_as.default", "broadcast_to.default")
def _expanded(node: Node, source: Layout, sizes: Sizes) -> Layout | None:
    shape = node.shape
    new = len(shape) - len(source.shape)
    strides: list[Size] = [0] * new
    for size, old, stride in zip(shape[new:], source.shape, source.strides, strict=True):
        strides.append(0 if old == 1 and size != 1 else stride)
    return replace(source, shape=shape, strides=tuple(strides))


@_register("unsqueeze.default")
def _unsqueezed(node: Node, source: Layout, sizes: Sizes) -> Layout | None:
    rank = len(node.shape)
    d = node.attr("dim") % rank
    step = source.shape[d] * source.strides[d] if d < rank - 1 else 1
    strides = (*source.strides[:d], step, *source.strides[d:])
    return replace(source, shape=node.shape, strides=strides)


@_register("squeeze.default", "squeeze.dim", "squeeze.dims")
def _squeezed(node: Node, source: Layout, sizes: Sizes) -> Layout | None:
    rank, attrs = len(source.shape), dict(node.attrs)
    dims = attrs.get("dim", tuple(range(rank)))
    chosen = {d % rank for d in (dims if isinstance(dims, tuple) else (dims,))} if rank else set()
    kept = [d for d in range(rank) if not (d in chosen and source.shape[d] == 1)]
    shape = tuple([source.shape[d] for d in kept])
    return replace(source, shape=shape, strides=tuple([source.strides[d] for d in kept]))


def cut(source: Layout, d: int, start: Size, length: Size, step: Size) -> Layout:
    """`length` indices of dimension d from `start` on, each `step` further."""
    shape = (*source.shape[:d], length, *source.shape[d + 1 :])
    stride = source.strides[d]
    strides = (*source.strides[:d], stride * step, *source.strides[d + 1 :])
    offset = source.offset if start == 0 else source.offset + start * stride
    return replace(source, offset=offset, shape=shape, strides=strides)


def first(start: Size | None, size: Size) -> Size:
    """Where a slice begins: a negative start counts from the end, and it stays inside."""
    if start is None or start == 0:
        return 0
    if isinstance(start, int) and isinstance(size, int):
        return min(max(start + size if start < 0 else start, 0), size)
    if isinstance(start, int):
        return sympy.Max(size + start, 0) if start < 0 else sympy.Min(start, size)
    if same(start, size):
        return start
    if start.is_nonnegative:
        return sympy.Min(start, size)
    return Where(sympy.Lt(start, 0), sympy.Max(size + start, 0), sympy.Min(start, size))


@_register("slice.Tensor")
def _sliced(node: Node, source: Layout, sizes: Sizes) -> Layout | None:
    d = node.attr("dim") % len(source.shape)
    start = first(node.attr("start"), source.shape[d])
    return cut(source, d, start, node.shape[d], node.attr("step"))


@_register("narrow.default")
def _narrowed(node: Node, source: Layout, sizes: Sizes) -> Layout | None:
    d = node.attr("dim") % len(source.shape)
    start = first(node.attr("start"), source.shape[d])
    return cut(source, d, start, node.shape[d], 1)


@_register("select.int")
def _selected(node: Node, source: Layout, sizes: Sizes) -> Layout | None:
    d, index = node.attr("dim") % len(source.shape), node.attr("index")
    return pick(source, d, index)


def pick(source: Layout, d: int, index: Size) -> Layout:
    """One index of dimension d, negative ones counted from the end."""
    if isinstance(index, int):
        index = index + source.shape[d] if index < 0 else index
    elif not index.is_nonnegative:
        index = Where(sympy.Lt(index, 0), source.shape[d] + index, index)
    row = cut(source, d, index, 1, 1)
    shape = (*row.shape[:d], *row.shape[d + 1 :])
    return replace(row, shape=shape, strides=(*row.strides[:d], *row.strides[d + 1 :]))


@_register("diagonal.default")
def _diagonal(node: Node, source: Layout, sizes: Sizes) -> Layout | None:
    rank, shift = len(source.shape), node.attr("offset")
    a, b = node.attr("dim1") % rank, node.attr("dim2") % rank
    move = shift * source.strides[b] if shift >= 0 else -shift * source.strides[a]
    kept = [d for d in range(rank) if d not in (a, b)]
    strides = (*[source.strides[d] for d in kept], source.strides[a] + source.strides[b])
    # an empty diagonal may begin anywhere: keep its offset inside
    offset = source.offset if 0 in node.shape else source.offset + move
    return replace(source, offset=offset, shape=node.shape, strides=strides)


@_register("unfold.default")
def _unfolded(node: Node, source: Layout, sizes: Sizes) -> Layout | None:
    if not source.shape:
        return replace(source, shape=node.shape, strides=(1,))
    d = node.attr("dimension") % len(source.shape)
    stride = source.strides[d]
    strides = (*source.strides[:d], stride * node.attr("step"), *source.strides[d + 1 :], stride)
    return replace(source, shape=node.shape, strides=strides)


@_register("view.dtype")
def _retyped(node: Node, source: Layout, sizes: Sizes) -> Layout | None:
    wanted = node.dtype
    if wanted.itemsize != source.dtype.itemsize:
        return None
    return replace(source, dtype=wanted)


@_register(
    "view.default",
    "_unsafe_view.default",
    "reshape.default",
    "_reshape_alias.default",
    "view_as.default",
    "reshape_as.default",
    "flatten.using_ints",
    "unflatten.int",
    "ravel.default",
)
def _reshaped(node: Node, source: Layout, sizes: Sizes) -> Layout | None:
    if node.shape == source.shape:
        return source
    strides = viewed_strides(source, node.shape, sizes)
    return None if strides is None else replace(source, shape=node.shape, strides=strides)


def viewed_strides(source: Layout, shape: Sequence[Size], sizes: Sizes) -> tuple[Size, ...] | None:
    """The strides that give `source` another shape without moving data, None where none do."""
    if 0 in source.shape or 0 in shape:
        return contiguous_strides(shape)
    old = [(n, s) for n, s in zip(source.shape, source.strides, strict=True) if n != 1]
    strides: list[Size] = []
    j = len(shape) - 1
    last: Size = old[-1][1] if old else 1
    while old:
        # one block: neighbouring old dims that lie without gaps, and as many new ones
        n, base = old.pop()
        have, want, end = n, 1, j
        while True:
            while (
                j >= 0 and (want == 1 or not _reached(want, have, sizes)) and not same(want, have)
            ):
                want = product((want, shape[j]))
                j -= 1
            if same(want, have):
                break
            if not old or not same_stride(old[-1][1], base * have):
                return None
            have = product((have, old.pop()[0]))
        step = base
        for d in range(end, j, -1):
            strides.append(step)
            step = step * shape[d]
        last = step
    for d in range(j, -1, -1):
        if shape[d] != 1:
            return None
        strides.append(last)
    return tuple(reversed(strides))


def _reached(want: Size, have: Size, sizes: Sizes) -> bool:
    return sizes.hint(want) >= sizes.hint(have)


def _register_pieces(*names: str) -> Callable:
    def add(function: Callable) -> Callable:
        for name in names:
            _PIECES[f"aten.{name}"] = function
        return function

    return add


@_register_pieces(
    "split.Tensor",
    "split.sizes",
    "split_with_sizes.default",
    "chunk.default",
    "tensor_split.sections",
    "unsafe_chunk.default",
    "unsafe_split.Tensor",
)
def _split(parent: Node, index: int, source: Layout, sizes: Sizes) -> Layout | None:
    d = parent.attr("dim") % len(source.shape)
    lengths = [t.shape[d] for t in parent.type]  # type: ignore[union-attr]
    return cut(source, d, sum(lengths[:index], 0), lengths[index], 1)


@_register_pieces("unbind.int")
def _unbind(parent: Node, index: int, source: Layout, sizes: Sizes) -> Layout | None:
    return pick(source, parent.attr("dim") % len(source.shape), index)
