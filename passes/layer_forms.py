"""The ways to compute one layer that a budget chooses from: formats of its weights, thin factors,
and factors in formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from infopt.codegen.kernels.narrow_linear import narrow_gated_linear, narrow_linear
from infopt.codegen.weight_formats.weight_format import weight_format
from infopt.compiler.budget import Budget
from infopt.compiler.graph import Graph, Node
from infopt.compiler.pipeline import PassContext
from infopt.passes.layers import is_table, weights_of
from infopt.passes.low_rank_layers import LowRankLayers
from infopt.passes.quantizing import Quantizing

# "auto": what the factors keep of the power of a layer's outputs
ENERGIES = ("energy-0.9999", "energy-0.999", "energy-0.99", "energy-0.95")
_STEP = 16  # ranks are whole vectors


@dataclass(frozen=True)
class Form:
    """One way to compute a layer.

    node   what takes its place; inner: nodes that it reads and that belong to it
    run    node as it will be computed, where later passes change it
    name   what a report calls it
    bytes  of its weights
    format, activations  of a layer in one format
    held   inputs are in the place of the format's tensors, which take long to find
    """

    node: Node
    name: str
    bytes: int
    run: Node
    inner: tuple[Node, ...] = ()
    format: str = ""
    activations: str = "none"
    held: bool = False

    def __str__(self) -> str:
        return self.name


class LayerForms:
    """The forms of the layers of one graph.

    narrows  whether what stays in f32 will be computed in bf16
    """

    def __init__(self, graph: Graph, ctx: PassContext, budget: Budget, narrows: bool) -> None:
        self.graph, self.ctx, self.budget, self.narrows = graph, ctx, budget, narrows
        smooth = bool(ctx.calibration) and ctx.target.kind == "cpu"
        self.quantizing = Quantizing(graph, ctx, smooth=smooth)
        moments = self.quantizing.moments if ctx.calibration else {}
        self.factoring = LowRankLayers(graph, ctx, moments)
        self._of_factors = Quantizing(graph, ctx, dict(moments))

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The constants made so far, by name."""
        made = (self.quantizing, self.factoring, self._of_factors)
        return {name: tensor for part in made for name, tensor in part.tensors.items()}

    def plain(self, node: Node) -> Form:
        """A layer as it is."""
        kept = self.quantizing.bytes(node, None)
        size = kept if is_table(node) else self._stored(weights_of(node))
        return Form(node, "as it is", size, self._narrowed(node))

    def formats(self, node: Node) -> list[Form] | str:
        """A layer in every format that has a kernel, those that take long to find only `held`;
        where there is none, why."""
        quantizing, reason = self.quantizing, self.quantizing.refusal(node)
        found = []
        for name in () if reason else self.budget.formats:
            for activations in ("none",) if is_table(node) else self.budget.activations:
                held = not weight_format(name).is_expression
                form = quantizing.candidate if held else quantizing.replacement
                made = form(node, name, activations)
                if isinstance(made, Node):
                    size, named = quantizing.bytes(node, name), _named(name, activations)
                    found.append(Form(made, named, size, made, (), name, activations, held))
                else:
                    reason = made
        return found or reason

    def encoded(self, node: Node, form: Form) -> Form:
        """A form that was held."""
        made = self.quantizing.replacement(node, form.format, form.activations)
        assert isinstance(made, Node), made
        return replace(form, node=made, run=made, held=False)

    def factors(self, node: Node) -> list[Form] | str:
        """A layer as two thin products of every rank that saves weights; where none does, why."""
        wanted: Sequence[float | str] = self.budget.ranks
        if self.budget.ranks == "auto":
            wanted = ENERGIES if self.ctx.calibration else ()
        if not wanted or is_table(node):
            return []
        reason = self.factoring.refusal(node)
        if reason:
            return reason
        n, k = self.factoring.shape(node)
        ranks = {-(-self.factoring.rank(node, w) // _STEP) * _STEP for w in wanted}
        thin = [r for r in sorted(ranks) if r * (n + k) < n * k]
        if not thin:
            least = min(ranks)
            return f"rank {least} does not pay: {least * (n + k)} numbers for {n * k}"
        return [self._factored(node, rank) for rank in thin]

    def _factored(self, node: Node, rank: int) -> Form:
        second = self.factoring.replacement(node, rank)
        first = second.args[0]
        assert isinstance(first, Node)
        thin = self._narrowed(first)
        size = self._stored((*weights_of(first), *weights_of(second)))
        run = self._narrowed(self._reading(second, thin))
        return Form(second, f"rank {rank}", size, run, (thin,))

    def factors_in_formats(self, form: Form) -> list[Form]:
        """Two thin products with factors in every format of 8 bits."""
        second, made = form.node, self._of_factors
        first = second.args[0]
        assert isinstance(first, Node)
        graph = self.graph
        made.graph = replace(graph, consts={**graph.consts, **self.factoring.tensors})
        seen = made.moments.get(first.args[0])  # type: ignore[arg-type]
        found = []
        for name in (f for f in self.budget.formats if weight_format(f).dense.bits == 8):
            for activations in self.budget.activations:
                thin = made.replacement(first, name, activations)
                if not isinstance(thin, Node):
                    continue
                if seen is not None:
                    a = self.factoring.tensors[str(weights_of(first)[0].attr("name"))]
                    made.moments[thin] = seen.through(a)
                both = made.replacement(self._reading(second, thin), name, activations)
                if isinstance(both, Node):
                    size = made.bytes(first, name) + made.bytes(second, name)
                    named = f"{form.name}, {_named(name, activations)}"
                    found.append(Form(both, named, size, both, (thin,)))
        return found

    def _reading(self, node: Node, x: Node) -> Node:
        return self.ctx.builder.call(node.op, x, *node.args[1:], **dict(node.attrs))

    def _stored(self, weights: Sequence[Node]) -> int:
        """Bytes of matrices in the dtype that they will have."""
        found = 0
        for weight in weights:
            size = int(weight.tensor_type.nbytes)
            narrow = self.narrows and weight.dtype == torch.float32
            found += size * torch.bfloat16.itemsize // weight.dtype.itemsize if narrow else size
        return found

    def _narrowed(self, node: Node) -> Node:
        """What a layer becomes where no format is chosen."""
        if not self.narrows or is_table(node):
            return node
        gated = node.op.name == "gated_linear"
        attrs = {k: v for k, v in node.attrs if k == "activation"}
        op = narrow_gated_linear if gated else narrow_linear
        return self.ctx.builder.call(op, *node.args, out=node.dtype, **attrs)


def surely_better(form: Form, others: Sequence[Form]) -> list[Form]:
    """Those of a layer's other forms that lose less, which is known before any is encoded."""
    bits = weight_format(form.format).dense.bits
    formats = [f for f in others if f.format and not f.inner and f.activations == form.activations]
    return [f for f in formats if weight_format(f.format).dense.bits > bits]


def _named(format: str, activations: str) -> str:
    return format + (" and int8 activations" if activations == "int8" else "")
