"""linear, conv, attention in f32 -> the same with bf16 products: what compute="bf16" permits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from infopt.codegen.kernels.conv import is_depthwise
from infopt.codegen.kernels.narrow_conv import narrow_conv
from infopt.codegen.kernels.narrow_linear import narrow_gated_linear, narrow_linear
from infopt.compiler.accuracy import Accuracy, Bounded
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.ops import CONST
from infopt.compiler.pipeline import Pass, PassContext
from infopt.compiler.types import TensorType
from infopt.passes.fold_batch_norm import CONVOLUTIONS

BF16, F32 = torch.bfloat16, torch.float32
_VIEWS = {
    "aten.reshape.default",
    "aten.permute.default",
    "aten.expand.default",
    "aten.slice.Tensor",
    "aten.select.int",
}
_LINEARS = {"aten.linear.default", "linear_act", "gated_linear"}
_QUANTIZED = {"quantized_linear": 4, "quantized_gated_linear": 7}  # where their biases begin
_CONVOLUTIONS = CONVOLUTIONS | {"conv_act"}
_ATTENTION = ("attention", "ragged_attention")
_LOWEST = torch.finfo(BF16).min


@dataclass(frozen=True)
class NarrowCompute(Pass):
    """linear(x, w) in f32 -> sum in f32 of bf16(x) bf16(w); attention in bf16 with f32 softmax

    Convolutions as linear layers. Norms, residual sums, softmax and every reduction stay in f32. A
    value between two such ops is kept in bf16, because the next one would round it anyway. Constant
    weights are rounded once; weights that are inputs are rounded as they are read, so no second
    copy of them exists. Declines f64, f16, what is bf16 already, and depthwise convolutions.

    limit  how far results may move. Behind activations in bytes a change of 2^-9 can move a code by
           one, so there it is the limit of such activations themselves
    """

    name: ClassVar[str] = "narrow-compute"
    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[str, ...]] = ("fuse-linear-epilogue", "fuse-conv-epilogue")

    limit: float = 0.05

    @property
    def accuracy(self) -> Accuracy:  # type: ignore[override]
        return Bounded("rms_rel", self.limit)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        return _Narrowing(graph, ctx).run()


class _Narrowing:
    """One run: `wide` and `narrow` hold the f32 and the bf16 form of every value that has one."""

    def __init__(self, graph: Graph, ctx: PassContext) -> None:
        self.graph, self.ctx, self.o = graph, ctx, ctx.builder
        self.wide: dict[Node, Node] = {}
        self.narrow: dict[Node, Node] = {}
        self.consts: dict[str, torch.Tensor] = {}

    def run(self) -> Graph:
        for node in self.graph.nodes():
            if node.op.name in _LINEARS and self.is_f32(node) and self.ctx.admits(node):
                self.linear(node)
            elif node.op.name in _QUANTIZED and self.is_f32(node) and self.ctx.admits(node):
                self.quantized(node)
            elif node.op.name in _CONVOLUTIONS and self.is_dense(node) and self.ctx.admits(node):
                self.convolution(node)
            elif node.op.name in _ATTENTION and self.is_f32(node) and self.ctx.admits(node):
                self.attention(node)
            elif node.op.name in _VIEWS and node.args[0] in self.narrow:
                self.narrow[node] = self.o.rebuild(node, (self.narrow[node.args[0]],))
            else:
                args = self.images(node.args)
                self.wide[node] = self.o.rebuild(node, args) if node.args else node
        return self.graph.with_roots(_Images(self)).with_consts(self.consts)

    def is_f32(self, node: Node) -> bool:
        rest = node.args[_QUANTIZED.get(node.op.name, 1) :]
        read = [n for n in (node.args[0], *rest) if isinstance(n, Node)]
        kinds = {n.dtype for n in read if n.tensor_type.is_float}
        if kinds == {F32} and node.dtype == F32:
            return True
        self.ctx.site(node, False, f"it computes in {', '.join(sorted(map(str, kinds)))}")
        return False

    def is_dense(self, node: Node) -> bool:
        """An f32 convolution that sums over channels."""
        if not self.is_f32(node):
            return False
        if not _is_dense(node):
            self.ctx.site(node, False, "it is depthwise: it reads more than it multiplies")
        return _is_dense(node)

    def images(self, args: Any) -> Any:
        if isinstance(args, tuple):
            return tuple(self.images(a) for a in args)
        return None if args is None else self.as_wide(args)

    def as_wide(self, node: Node) -> Node:
        if node not in self.wide:
            self.wide[node] = _cast(self.o, self.narrow[node], F32)
        return self.wide[node]

    def as_narrow(self, node: Node) -> Node:
        if node not in self.narrow:
            self.narrow[node] = _cast(self.o, self.wide[node], BF16)
        return self.narrow[node]

    def operand(self, node: Node) -> Node:
        """bf16 where that form exists; otherwise f32, which the kernel rounds as it reads."""
        return self.narrow.get(node) or self.as_wide(node)

    def weight(self, node: Node) -> Node:
        """A constant, or a view of one, rounded now; anything else as it is."""
        if node in self.narrow:
            return self.narrow[node]
        if node.op is CONST:
            name = f"{node.attr('name')}_bf16"
            self.consts[name] = self.graph.consts[node.attr("name")].to(BF16)
            self.narrow[node] = self.o.const(name, TensorType.of(self.consts[name]))
            self.ctx.derive(name, _cast(self.o, node, BF16))
        elif node.op.name in _VIEWS and self.weight(node.args[0]).dtype == BF16:  # type: ignore[arg-type]
            self.narrow[node] = self.o.rebuild(node, (self.narrow[node.args[0]],))  # type: ignore[index]
        else:
            return self.as_wide(node)
        return self.narrow[node]

    def linear(self, node: Node) -> None:
        out = BF16 if self.read_narrow(node) else F32
        name = node.op.name
        attrs: dict[str, Any] = {"out": out}
        if name != "aten.linear.default":
            attrs["activation"] = node.attr("activation")
        count = 3 if name == "gated_linear" else 2
        x, *weights = node.args[:count]
        args = [self.operand(x), *(self.weight(w) for w in weights)]  # type: ignore[arg-type]
        args += [self.images(a) for a in node.args[count:]]
        op = narrow_gated_linear if name == "gated_linear" else narrow_linear
        made = self.o.call(op, *args, **attrs)
        (self.narrow if out is BF16 else self.wide)[node] = made
        self.ctx.site(node, True)

    def convolution(self, node: Node) -> None:
        """As a linear layer; what is added to it stays in f32, and so does the sum."""
        x, weight, *rest = node.args
        scale, shift, residual = rest if node.op.name == "conv_act" else (None, rest[0], None)
        out = BF16 if residual is None and self.read_narrow(node) else F32
        operands = (self.operand(x), self.weight(weight))  # type: ignore[arg-type]
        args = (*operands, *self.images((scale, shift, residual)))
        made = self.o.call(narrow_conv, *args, **dict(node.attrs), out=out)
        (self.narrow if out is BF16 else self.wide)[node] = made
        self.ctx.site(node, True)

    def quantized(self, node: Node) -> None:
        """What is stored in few bits stays; what it is multiplied with may be bf16."""
        if node.attr("activations") == "bf16":
            self.wide[node] = self.o.rebuild(node, self.images(node.args))
            return
        out = BF16 if self.read_narrow(node) else F32
        attrs = dict(node.attrs) | {"out": out}
        if node.attr("activations") == "none":
            attrs["activations"] = "bf16"
        x, *rest = node.args
        given = self.operand(x) if _takes_narrow(node) else self.as_wide(x)  # type: ignore[arg-type]
        args = (given, *self.images(tuple(rest)))
        (self.narrow if out is BF16 else self.wide)[node] = self.o.call(node.op, *args, **attrs)
        self.ctx.site(node, True)

    def attention(self, node: Node) -> None:
        q, k, v, mask = node.args  # of ragged attention the starts, integers
        mask = None if mask is None else self.as_wide(mask)  # type: ignore[arg-type]
        if mask is not None and mask.dtype == F32:
            mask = self.narrow_mask(mask)
        operands = [self.as_narrow(a) for a in (q, k, v)]  # type: ignore[arg-type]
        self.narrow[node] = self.o.call(node.op, *operands, mask, **dict(node.attrs))
        self.ctx.site(node, True)

    def narrow_mask(self, mask: Node) -> Node:
        """In bf16, where the lowest f32 would become -inf and a masked row NaN."""
        clamped = self.o.clamp_min(mask, _LOWEST)
        return _cast(self.o, self.o.where(self.o.isinf(mask), mask, clamped), BF16)

    def read_narrow(self, node: Node) -> bool:
        """True where nobody reads the value but ops that would round it to bf16 themselves."""
        if self.graph.is_output(node):
            return False
        for user in self.graph.users(node):
            if user.op.name in _VIEWS:
                if not self.read_narrow(user):
                    return False
            elif user.op.name in _LINEARS or user.op.name in _QUANTIZED or _is_dense(user):
                if user.args[0] is not node or node in user.args[1:] or not _takes_narrow(user):
                    return False
            elif user.op.name not in _ATTENTION or node is user.args[3]:
                return False
        return bool(self.graph.users(node))


def _takes_narrow(node: Node) -> bool:
    """False for rows that are rounded by somebody else's formula, whose codes are for f32."""
    return dict(node.attrs).get("activations", "none") in ("none", "bf16", "int8", "int8-static")


def _is_dense(node: Node) -> bool:
    if node.op.name not in _CONVOLUTIONS:
        return False
    return not is_depthwise(node.args[1].tensor_type, node.attr("groups"))  # type: ignore[union-attr]


class _Images(dict):
    """The f32 image of any old node, made when asked for."""

    def __init__(self, narrowing: _Narrowing) -> None:
        super().__init__()
        self.narrowing = narrowing

    def __missing__(self, node: Node) -> Node:
        return self.narrowing.as_wide(node)


def _cast(o: Builder, node: Node, dtype: torch.dtype) -> Node:
    return o.call(torch.ops.aten.to.dtype, node, dtype)
