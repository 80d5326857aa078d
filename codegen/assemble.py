"""Ops that put tensors together, as copies into parts of one result: cat, stack, pad, repeat ..."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from infopt.codegen import views
from infopt.codegen.expression import C_TYPES
from infopt.codegen.sizes import Sizes
from infopt.codegen.views import Layout
from infopt.compiler.graph import Node
from infopt.compiler.types import Size, TensorType


@dataclass(frozen=True)
class Part:
    """What to write into a layout: a source, its layout possibly expanded, or one number."""

    target: Layout
    source: Node | None
    fill: object = None
    expanded: Callable[[Layout], Layout] | None = None


# Every element of the result is of one operand: its parts may be written in any order.
DISJOINT = {f"aten.{name}.default" for name in ("cat", "concat", "concatenate", "stack")}

Parts = Callable[[Node, Layout, Sizes], "list[Part] | None"]
_TABLE: dict[str, Parts] = {}


def parts(node: Node, out: Layout, sizes: Sizes) -> list[Part] | None:
    """The copies that make the node's value in `out`, in order; None where it takes more."""
    found = _TABLE.get(node.op.name)
    return None if found is None else found(node, out, sizes)


def can_assemble(node: Node) -> bool:
    """True where `parts` gives an answer: the node is copies of its operands."""
    if node.op.name not in _TABLE or not isinstance(node.type, TensorType):
        return False
    types = [node.type, *(a.type for a in node.inputs)]
    if any(not isinstance(t, TensorType) or t.dtype not in C_TYPES for t in types):
        return False
    sizes = Sizes({}, {})
    return parts(node, Layout.of(TensorType.dense(node.shape, node.dtype)), sizes) is not None


def _assembled(*names: str) -> Callable[[Parts], Parts]:
    def add(function: Parts) -> Parts:
        for name in names:
            _TABLE[f"aten.{name}"] = function
        return function

    return add


@_assembled("cat.default", "concat.default", "concatenate.default")
def _cat(node: Node, out: Layout, sizes: Sizes) -> list[Part] | None:
    d, start, made = node.attr("dim") % len(out.shape), 0, []
    for source in node.inputs:
        if source.shape == (0,) and len(out.shape) != 1:
            continue  # torch ignores these
        length = source.shape[d]
        made.append(Part(views.cut(out, d, start, length, 1), source))
        start = start + length  # type: ignore[assignment]
    return made


@_assembled("stack.default")
def _stack(node: Node, out: Layout, sizes: Sizes) -> list[Part] | None:
    d = node.attr("dim") % len(out.shape)
    made = []
    for i, source in enumerate(node.inputs):
        made.append(Part(views.pick(out, d, i), source))
    return made


@_assembled("slice_scatter.default")
def _slice_scatter(node: Node, out: Layout, sizes: Sizes) -> list[Part] | None:
    whole, source = node.args
    assert isinstance(whole, Node) and isinstance(source, Node)
    d = node.attr("dim") % len(out.shape)
    start = views.first(node.attr("start"), out.shape[d])
    target = views.cut(out, d, start, source.shape[d], node.attr("step"))
    return [Part(out, whole), Part(target, source)]


@_assembled("select_scatter.default")
def _select_scatter(node: Node, out: Layout, sizes: Sizes) -> list[Part] | None:
    whole, source = node.args
    assert isinstance(whole, Node) and isinstance(source, Node)
    target = views.pick(out, node.attr("dim") % len(out.shape), node.attr("index"))
    return [Part(out, whole), Part(target, source)]


@_assembled("constant_pad_nd.default", "pad.default")
def _pad(node: Node, out: Layout, sizes: Sizes) -> list[Part] | None:
    attrs = dict(node.attrs)
    (source,) = node.inputs
    value = attrs.get("value")
    if attrs.get("mode", "constant") != "constant":
        return None
    target, pads = out, attrs["pad"]
    for i in range(len(pads) // 2):
        d = len(out.shape) - 1 - i
        before, after = pads[2 * i], pads[2 * i + 1]
        if not all(isinstance(p, int) and p >= 0 for p in (before, after)):
            return None
        target = views.cut(target, d, before, source.shape[d], 1)
    return [Part(out, None, 0 if value is None else value), Part(target, source)]


@_assembled("repeat.default")
def _repeat(node: Node, out: Layout, sizes: Sizes) -> list[Part] | None:
    (source,) = node.inputs
    counts = node.attr("repeats")
    new = len(counts) - len(source.shape)
    old = (*(1,) * new, *source.shape)
    shape: list[Size] = []
    strides: list[Size] = []
    for count, n, stride in zip(counts, old, out.strides, strict=True):
        shape += [count, n]
        strides += [stride * n, stride]
    target = replace(out, shape=tuple(shape), strides=tuple(strides))

    def expanded(layout: Layout) -> Layout:
        moves: list[Size] = [0] * (2 * new)
        for stride in layout.strides:
            moves += [0, stride]
        return replace(layout, shape=target.shape, strides=tuple(moves))

    return [Part(target, source, expanded=expanded)]


@_assembled("repeat_interleave.self_int")
def _repeat_interleave(node: Node, out: Layout, sizes: Sizes) -> list[Part] | None:
    (source,) = node.inputs
    count, dim = node.attr("repeats"), node.attr("dim")
    if dim is None or not source.shape:
        return None
    d = dim % len(out.shape)
    n, stride = source.shape[d], out.strides[d]

    def with_copies(layout: Layout, outer: Size, inner: Size) -> Layout:
        shape = (*layout.shape[:d], n, count, *layout.shape[d + 1 :])
        return replace(
            layout,
            shape=shape,
            strides=(*layout.strides[:d], outer, inner, *layout.strides[d + 1 :]),
        )

    target = with_copies(out, stride * count, stride)
    return [Part(target, source, expanded=lambda x: with_copies(x, x.strides[d], 0))]


@_assembled("flip.default")
def _flip(node: Node, out: Layout, sizes: Sizes) -> list[Part] | None:
    (source,) = node.inputs
    dims = {d % len(out.shape) for d in node.attr("dims")} if out.shape else set()

    def backwards(layout: Layout) -> Layout:
        for d in dims:
            stride = layout.strides[d]
            strides = (*layout.strides[:d], -stride, *layout.strides[d + 1 :])
            offset = layout.offset + (layout.shape[d] - 1) * stride
            layout = replace(layout, offset=offset, strides=strides)
        return layout

    return [Part(out, source, expanded=backwards)]
