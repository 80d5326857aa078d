"""conv_transpose(x, w) of stride s -> s convolutions of stride 1 as one, results in turn."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch

from infopt.compiler.errors import CannotInfer
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.interpret import interpret
from infopt.compiler.ops import CONST
from infopt.compiler.pipeline import Pass, PassContext
from infopt.passes.new_constants import new_constant

TRANSPOSED = {"aten.conv_transpose1d.default": 1, "aten.conv_transpose2d.input": 2}


@dataclass(frozen=True)
class SplitTransposed(Pass):
    """conv_transpose(x, w) of stride s -> interleave(conv(x, w_0), ..., conv(x, w_(s-1)))

    Place o = u s + r of the result, before padding is cropped, sums x[u - t] w[r + t s]: for every
    phase r a plain convolution of stride 1 whose kernel is each s-th tap, last tap first (sub-pixel
    convolution, Shi et al., 2016). The phases are further features of one convolution, which there
    are kernels for; missing taps are zeros.
    Declines weights that are no constants, dilation, padding that is wider than the kernel, and
    kernels of which half the taps would be such zeros.
    """

    name: ClassVar[str] = "split-transposed"
    stage: ClassVar[Stage] = Stage.NORMALIZE
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        changes: dict[Node, Node] = {}
        made = _Constants(graph, ctx)
        for node in graph.nodes():
            axes = TRANSPOSED.get(node.op.name)
            if axes is None:
                continue
            reason = _reason_against(node, axes)
            if reason is None:
                try:
                    changes[node] = _split(ctx.builder, node, axes, made)
                except CannotInfer as error:
                    reason = str(error)
            ctx.site(node, reason is None, reason or "")
        return ctx.exchange(graph, changes).with_consts(made.tensors) if changes else graph


class _Constants:
    """Weights in another order: computed once, and again when weights are exchanged."""

    def __init__(self, graph: Graph, ctx: PassContext) -> None:
        self.graph, self.ctx = graph, ctx
        self.tensors: dict[str, torch.Tensor] = {}

    def held(self, source: Node, expression: Node) -> Node:
        """The value of an expression of the constant `source` as a constant."""
        name = f"{source.attr('name')}_phases"
        with torch.no_grad():
            value = interpret(Graph((), (expression,), self.graph.consts), [])[0]
        made = new_constant(self.ctx.builder, name, value, self.graph, self.tensors)
        self.ctx.derive(str(made.attr("name")), expression)
        return made


def _window(node: Node, axes: int) -> list[tuple[int, int, int, int]]:
    """(kernel, stride, padding, output padding) of every axis."""
    kernel = node.args[1].shape[2:]  # type: ignore[union-attr]
    each = [_each(node.attr(n), axes) for n in ("stride", "padding", "output_padding")]
    return list(zip(map(int, kernel), *each, strict=True))


def _each(value: Any, axes: int) -> list[int]:
    values = list(value) if isinstance(value, tuple | list) else [value]
    return values * axes if len(values) == 1 else values


def _reason_against(node: Node, axes: int) -> str | None:
    x, weight, bias = node.args
    if x.tensor_type.rank != axes + 2:  # type: ignore[union-attr]
        return f"x is {x.type}, expected a batch"  # type: ignore[union-attr]
    if weight.op is not CONST or (bias is not None and bias.op is not CONST):  # type: ignore[union-attr]
        return "the weight is no constant: its phases would be made at every call"
    if set(_each(node.attr("dilation"), axes)) != {1}:
        return f"dilation {node.attr('dilation')}"
    taps = made = 1
    for kernel, stride, padding, _ in _window(node, axes):
        if padding >= kernel:
            return f"padding {padding} crops more than a kernel of {kernel}"
        taps *= kernel
        made *= -(-kernel // stride) * stride
    if made >= 2 * taps:
        return f"{made} taps for {taps}: half of them would be zeros"
    return None


def _split(o: Builder, node: Node, axes: int, made: _Constants) -> Node:
    x, weight, bias = node.args
    groups, window = node.attr("groups"), _window(node, axes)
    before, behind, strides, counts, whole = [], [], [], [], []
    for kernel, stride, padding, extra in window:
        count = -(-kernel // stride)
        before.append(count - 1 - padding // stride)
        behind.append((kernel + extra - 1 - padding) // stride)
        strides.append(stride)
        counts.append(count)
        whole += [0, count * stride - kernel]
    features = int(weight.shape[1]) * groups  # type: ignore[union-attr]
    each = int(weight.shape[0]) // groups  # type: ignore[union-attr]  # channels of a group
    # w [C, O / g, K..] -> [O, C / g, T s ..] -> by phase and last tap first [O s .., C / g, T ..]
    kernel_axes = range(2, 2 + axes)
    w: Any = o.call("aten.pad.default", weight, _reversed_pairs(whole)) if any(whole) else weight
    sizes = [c * s for c, s in zip(counts, strides, strict=True)]
    w = o.reshape(w, [groups, each, features // groups, *sizes])
    w = o.permute(w, [0, 2, 1, *[a + 1 for a in kernel_axes]])
    split = [n for c, s in zip(counts, strides, strict=True) for n in (c, s)]
    w = o.reshape(w, [features, each, *split])
    w = o.call("aten.flip.default", w, [2 + 2 * a for a in range(axes)])
    phases, taps = [3 + 2 * a for a in range(axes)], [2 + 2 * a for a in range(axes)]
    w = o.permute(w, [0, *phases, 1, *taps])
    count = prod(strides)
    w = made.held(weight, o.reshape(w, [features * count, each, *counts]))
    b: Any = bias
    if bias is not None:
        b = o.call("aten.expand.default", o.reshape(bias, [features, 1]), [features, count])
        b = made.held(bias, o.reshape(b, [features * count]))
    around = [n for pair in zip(before, behind, strict=True) for n in pair]
    sides = tuple(before)
    if before != behind:
        x, sides = o.call("aten.pad.default", x, _reversed_pairs(around)), (0,) * axes
    y = o.call(
        f"aten.conv{axes}d.default",
        *(x, w, b),
        stride=(1,) * axes,
        padding=sides,
        dilation=(1,) * axes,
        groups=groups,
    )
    batch, lengths = y.shape[0], y.shape[2:]
    y = o.reshape(y, [batch, features, *strides, *lengths])
    turns = [n for a in range(axes) for n in (2 + axes + a, 2 + a)]
    y = o.permute(y, [0, 1, *turns])
    y = o.reshape(y, [batch, features, *[n * s for n, s in zip(lengths, strides, strict=True)]])
    for axis, (_, stride, cropped, _) in enumerate(window):
        start, length = cropped % stride, node.shape[2 + axis]
        if start or y.shape[2 + axis] != length:
            y = o.call(
                "aten.slice.Tensor", y, dim=2 + axis, start=start, end=start + length, step=1
            )
    return y


def _reversed_pairs(around: list[int]) -> tuple[int, ...]:
    """(before, behind) of every axis as torch's pad has them: the last axis first."""
    pairs = list(zip(around[::2], around[1::2], strict=True))
    return tuple(n for pair in reversed(pairs) for n in pair)
