"""batch_norm(conv(x, w, b)) -> conv(x, w) * scale + shift, with the statistics of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from infopt.codegen.kernels.conv import conv_act
from infopt.codegen.kernels.rows import FLOATS
from infopt.compiler.errors import CannotInfer
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.pipeline import Pass, PassContext
from infopt.passes.epilogue import only_reader

CONVOLUTIONS = {
    f"aten.{name}" for name in ("conv1d.default", "conv2d.default", "conv1d.padding")
} | {"aten.conv2d.padding"}


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """batch_norm(y, weight, bias, mean, var) -> y * scale + shift

    scale = weight / sqrt(var + eps), shift = bias - mean * scale, in f32 (Ioffe & Szegedy, 2015).
    Behind a convolution they become its epilogue; the weights stay as they are, so that weights
    which are inputs are read at every call, and bf16 weights are not rounded once more. Elsewhere
    they are one multiplication and one addition. Declines statistics of the batch itself.
    """

    name: ClassVar[str] = "fold-batch-norm"
    stage: ClassVar[Stage] = Stage.NORMALIZE
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        changes: dict[Node, Node] = {}
        for node in graph.nodes():
            if node.op.name != "aten.batch_norm.default":
                continue
            reason = _reason_against(node)
            if reason is None:
                try:
                    changes[node] = _folded(graph, ctx.builder, node)
                except CannotInfer as error:
                    reason = str(error)
            ctx.site(node, reason is None, reason or "")
        return ctx.exchange(graph, changes) if changes else graph


def _reason_against(node: Node) -> str | None:
    x, _, _, mean, var = node.args
    if node.attr("training") or mean is None or var is None:
        return "it normalises by the statistics of the batch"
    if not x.tensor_type.is_float:  # type: ignore[union-attr]
        return f"x is {x.type}"  # type: ignore[union-attr]
    return None


def _folded(graph: Graph, o: Builder, node: Node) -> Node:
    x, *affine = node.args
    assert isinstance(x, Node)
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    weight, bias, mean, var = (None if v is None else _cast(o, v, dtype) for v in affine)
    assert mean is not None and var is not None
    scale = o.rsqrt(o.add(var, node.attr("eps")))
    if weight is not None:
        scale = o.mul(weight, scale)
    if x.op.name in CONVOLUTIONS and x.dtype in FLOATS and only_reader(graph, x) is node:
        inputs, kernel, given = x.args
        if given is not None:
            mean = o.sub(mean, _cast(o, given, dtype))
        shift = _shift(o, scale, mean, bias)
        return o.in_place_of(node, conv_act, inputs, kernel, scale, shift, **dict(x.attrs))
    shape = [-1, *[1] * (x.tensor_type.rank - 2)]
    y = o.mul(_cast(o, x, dtype), o.reshape(scale, shape))
    y = o.add(y, o.reshape(_shift(o, scale, mean, bias), shape))
    return _cast(o, y, node.dtype)


def _shift(o: Builder, scale: Node, mean: Node, bias: Node | None) -> Node:
    moved = o.neg(o.mul(mean, scale))
    return moved if bias is None else o.add(bias, moved)


def _cast(o: Builder, node: Node, dtype: torch.dtype) -> Node:
    return node if node.dtype == dtype else o.call(torch.ops.aten.to.dtype, node, dtype)
