"""linear(x, constant weight) -> group_sparse_linear(x, the groups of weights that stay)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from infopt.codegen.group_sparsity import GroupForm, fitted, largest
from infopt.codegen.kernel import find_emitter
from infopt.codegen.kernels.group_sparse_linear import group_form, group_sparse_linear
from infopt.codegen.kernels.linear import FEW
from infopt.codegen.weight_formats.rounding import Moments
from infopt.compiler.accuracy import Accuracy, Bounded, Exact
from infopt.compiler.cost import compute_dtype, cost_of, node_seconds, seconds
from infopt.compiler.errors import BadOption
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.pipeline import Pass, PassContext
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType, hint
from infopt.passes.layers import (
    LINEARS,
    foreign_reader,
    label_of,
    moments_of,
    names_of,
    source_of,
    value_of,
    weights_of,
)
from infopt.passes.new_constants import new_constant

ZEROS = "zeros"
# How many times as long a kept weight takes as one of a dense layer; python -m benchmarks groups.
_PANELS, _FEW = 1.1, 1.4
_GATHERED = 1.5  # on a GPU; assumed, none has measured it


@dataclass(frozen=True)
class SparsifyGroups(Pass):
    """linear(x, w) -> group_sparse_linear(x, groups of w): of small groups of weights a share goes

    A group is some neighbouring rows times one or a few columns, as the target's kernel takes them
    (`group_form`); every block of rows keeps as many groups, of columns of its own. A group's worth
    is the squares of its weights, with calibration inputs each times the mean square of what it
    multiplies (Wanda, Sun et al., 2024); then those that stay are fitted to the results seen, and
    what is left of the mean goes into the bias.

    share  of the groups of a layer that goes, or "zeros": of those that are zero as many as every
           block has, so that finite results stay
    limit  how far results may move
    """

    name: ClassVar[str] = "sparsify-groups"
    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[str, ...]] = ("fuse-linear-epilogue",)

    share: float | str = 0.5
    limit: float = 0.5

    def __post_init__(self) -> None:
        wrong = isinstance(self.share, bool) or not isinstance(self.share, int | float)
        if self.share != ZEROS and (wrong or not 0 < self.share < 1):  # type: ignore[operator]
            raise BadOption(
                f"group_sparsity: expected a share between 0 and 1 or {ZEROS!r}, "
                f"found {self.share!r}"
            )

    @property
    def accuracy(self) -> Accuracy:  # type: ignore[override]
        return Exact() if self.share == ZEROS else Bounded("rms_rel", self.limit)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        sparse = _Layers(graph, ctx, self.share)
        chosen: dict[Node, float] = {}
        for node in graph.nodes():
            if node.op.name not in LINEARS:
                continue
            reason, gain = sparse.judged(node)
            if reason or gain is None:
                ctx.site(label_of(node), False, reason, gain)
            else:
                chosen[node] = gain
        seen: dict[Node, Moments] = {}
        if ctx.calibration and self.share != ZEROS:
            seen = moments_of(graph, ctx, chosen)
        changes = {}
        for node, gain in chosen.items():
            changes[node] = sparse.replacement(node, seen.get(node.args[0]))  # type: ignore[arg-type]
            ctx.site(label_of(node), True, sparse.described(node), gain)
        return ctx.exchange(graph, changes).with_consts(sparse.tensors) if changes else graph


class _Layers:
    """The layers of one graph that change.

    tensors  the constants made so far, by name
    """

    def __init__(self, graph: Graph, ctx: PassContext, share: float | str) -> None:
        self.graph, self.ctx, self.o, self.share = graph, ctx, ctx.builder, share
        self.tensors: dict[str, torch.Tensor] = {}

    def judged(self, node: Node) -> tuple[str, float | None]:
        """Why a layer stays as it is, "" where it changes, and the seconds that that saves."""
        if reason := _refusal(self.graph, node):
            return reason, None
        if all(self._kept(w) == self._form(node).counts(*_shape(w))[1] for w in weights_of(node)):
            return "no group of every block is zero", None
        made = self._layer(node, [self._types(node, w) for w in weights_of(node)], _biases(node))
        if made.type != node.type:
            return f"it would give {made.type}, expected {node.type}", None
        for part in _parts(made):
            emitter, missing = find_emitter(part, self.ctx.target)
            if emitter is None and part.op is group_sparse_linear:
                return missing, None
        target, dims = self.ctx.target, self.graph.dims
        before = node_seconds(node, target, dims)
        after = sum(_seconds(part, target, self.graph) for part in _parts(made))
        if after >= before:
            told = f"{after * 1e6:.4g} us with {self.described(node)}, {before * 1e6:.4g} us"
            return f"does not pay: {told} as it is", before - after
        return "", before - after

    def described(self, node: Node) -> str:
        """What is kept of a layer."""
        form, weights = self._form(node), weights_of(node)
        kept = " and ".join(str(self._kept(w)) for w in weights)
        groups = form.counts(*_shape(weights[0]))[1]
        return f"{kept} of {groups} groups of {form.rows} x {form.width}"

    def replacement(self, node: Node, seen: Moments | None) -> Node:
        """The layer with its groups, which are among `tensors` then."""
        form, parts, biases = self._form(node), [], _biases(node)
        spread = None if seen is None else seen.sum.diagonal()
        for i, (name, node_of) in enumerate(zip(names_of(node), weights_of(node), strict=True)):
            weight = value_of(self.graph, node_of).detach()
            columns = largest(form.scores(weight, spread), self._kept(node_of))
            if seen is not None:
                fit, shift = fitted(weight, columns, form, seen)
                biases[i] = self._shifted(name, biases[i], shift.to(weight.dtype))
                weight = fit.to(weight.dtype)
            values = self._const(f"{name}_groups", form.packed(weight, columns))
            parts.append((values, self._const(f"{name}_columns", columns)))
        return self._layer(node, parts, biases)

    def _kept(self, weight: Node) -> int:
        """How many groups every block of a weight keeps."""
        form = group_form(self.ctx.target, weight.dtype)
        groups = form.counts(*_shape(weight))[1]
        if isinstance(self.share, str):
            scores = form.scores(value_of(self.graph, weight).detach())
            return max(1, int((scores != 0).sum(1).max()))  # NaN is not zero
        return max(1, groups - round(self.share * groups))

    def _form(self, node: Node) -> GroupForm:
        return group_form(self.ctx.target, node.dtype)

    def _types(self, node: Node, weight: Node) -> tuple[Node, Node]:
        """Constants without values, to ask what a layer would cost."""
        form, kept = self._form(node), self._kept(weight)
        blocks = form.counts(*_shape(weight))[0]
        values = TensorType.dense((blocks, kept, form.rows, form.width), weight.dtype)
        columns = TensorType.dense((blocks, kept), torch.int32)
        return self.o.const("values", values), self.o.const("columns", columns)

    def _layer(self, node: Node, parts: list[tuple[Node, Node]], biases: list[Any]) -> Node:
        """The products, and of a gated layer their product."""
        x, residual = node.args[0], None
        if len(parts) == 1 and len(node.args) > 3:
            residual = node.args[3]
        activation = dict(node.attrs).get("activation", "none")
        made: list[Node] = []
        for weight, groups, bias in zip(weights_of(node), parts, biases, strict=True):
            given = {"features": weight.shape[0], "activation": "none" if made else activation}
            made.append(self.o.call(group_sparse_linear, x, *groups, bias, residual, **given))
        return made[0] if len(made) == 1 else self.o.mul(*made)

    def _shifted(self, name: str, bias: Any, shift: torch.Tensor) -> Node:
        if bias is not None and source_of(bias) is None:
            return self.o.add(bias, self._const(f"{name}_shift", shift))
        if bias is not None:
            shift = (value_of(self.graph, bias).detach().float() + shift).to(shift.dtype)
        return self._const(f"{name}_shifted_bias", shift)

    def _const(self, name: str, tensor: torch.Tensor) -> Node:
        return new_constant(self.o, name, tensor, self.graph, self.tensors)


def _refusal(graph: Graph, node: Node) -> str:
    """Why a layer cannot be cut at all, "" where it can."""
    if not names_of(node):
        return "its weight is not a constant"
    x = node.args[0]
    for weight in weights_of(node):
        if weight.dtype != x.dtype or weight.tensor_type.rank != 2:  # type: ignore[union-attr]
            return f"its weight is {weight.type} and what it reads {x.type}"  # type: ignore[union-attr]
    return foreign_reader(graph, node)


def _biases(node: Node) -> list[Any]:
    count = LINEARS[node.op.name]
    given = node.args[1 + count : 1 + 2 * count]
    return [*given, *[None] * (count - len(given))]


def _shape(weight: Node) -> tuple[int, int]:
    n, k = weight.shape
    return int(n), int(k)  # type: ignore[arg-type]


def _parts(made: Node) -> list[Node]:
    """The nodes that a layer became."""
    return [made] if made.op is group_sparse_linear else [*made.inputs, made]


def _seconds(node: Node, target: Target, graph: Graph) -> float:
    """The estimate for one node, kept weights counted as what reading them here and there takes."""
    if node.op is not group_sparse_linear:
        return node_seconds(node, target, graph.dims)
    x: Any = node.args[0]
    rows = hint(x.tensor_type.numel, graph.dims) // x.shape[-1]
    slower = _GATHERED if target.kind == "gpu" else _FEW if rows <= FEW else _PANELS
    cost, vectors = cost_of(node), 1.0
    if target.level == "amx" and compute_dtype(node) is torch.bfloat16:
        vectors = target.peak_of("bf16") / (2 * target.peak_of("f32"))  # tiles take whole rows
    flops = int(hint(cost.flops, graph.dims) * slower * vectors)
    traffic = int(hint(cost.bytes, graph.dims) * (slower if rows <= FEW else 1))
    return seconds(replace(cost, flops=flops, bytes=traffic), target, node)
