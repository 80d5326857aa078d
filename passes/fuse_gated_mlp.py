"""act(x gateᵀ) * (x upᵀ) -> gated_linear(x, gate, up): one pass over x, one result in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from infopt.codegen.kernels.linear import gated_linear
from infopt.compiler.graph import Node, Stage
from infopt.compiler.pipeline import PassContext
from infopt.compiler.rewrite import Match, Rule

_NAMES = {
    "aten.silu.default": "silu",
    "aten.relu.default": "relu",
    "aten.sigmoid.default": "sigmoid",
    "aten.tanh.default": "tanh",
}


@dataclass(frozen=True)
class FuseGatedMlp(Rule):
    """act(x gateᵀ + b) * (x upᵀ + c) -> gated_linear(x, gate, up, b, c)

    act is silu (Llama), gelu in both forms (Gemma, T5), relu, sigmoid or tanh.
    """

    name: ClassVar[str] = "fuse-gated-mlp"
    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)

    def pattern(self, o: Any, x: Any, gate: Any, up: Any, gate_bias: Any, up_bias: Any) -> Any:
        # gate and up as the two halves of one product (Phi-3)
        whole = [o.linear(x, gate), o.linear(x, gate, gate_bias)]
        kinds = [o.silu, o.relu, o.sigmoid, o.tanh]
        kinds += [lambda y, a=a: o.gelu(y, approximate=a) for a in ("none", "tanh")]
        forms = []
        for y in whole:
            halves = [
                o.slice(y, o.any(f"dim{i}"), o.any(f"start{i}"), o.any(f"end{i}")) for i in (0, 1)
            ]
            forms += [o.mul(act(halves[0]), halves[1]) for act in kinds]
        for biases in ((), (gate_bias, up_bias)):
            first = o.linear(x, gate, *biases[:1])
            second = o.linear(x, up, *biases[1:])
            forms += [o.mul(act(first), second) for act in kinds]
        return forms

    def legal(self, m: Match, ctx: PassContext) -> str | None:
        if m.up is None:
            return _halves_reason(m)
        if m.gate.shape != m.up.shape:
            return f"gate is {m.gate.type} and up {m.up.type}"
        return None

    def rewrite(
        self,
        o: Any,
        m: Match,
        x: Node,
        gate: Node,
        up: Node,
        gate_bias: Node | None,
        up_bias: Node | None,
    ) -> Node:
        acts = [n for n in m.nodes if n.op.name in _NAMES or n.op.name == "aten.gelu.default"]
        act = acts[0]
        if act.op.name == "aten.gelu.default":
            name = "gelu" if act.attr("approximate") == "none" else "gelu_tanh"
        else:
            name = _NAMES[act.op.name]
        if up is None:
            first = m.start0 or 0
            gate, up, gate_bias, up_bias = _halves(o, gate, gate_bias, first)
        return o.call(gated_linear, x, gate, up, gate_bias, up_bias, activation=name)


def _halves_reason(m: Match) -> str | None:
    rows = m.gate.shape[0]
    if not isinstance(rows, int) or rows % 2:
        return f"the product has {rows} features, expected an even number"
    product = next(n for n in m.nodes if n.op.name == "aten.linear.default")
    rank = product.tensor_type.rank
    places = []
    for i in ("0", "1"):
        if m.bound["dim" + i] % rank != rank - 1:
            return f"a slice along dim {m.bound['dim' + i]}, expected the last"
        places.append(slice(m.bound["start" + i], m.bound["end" + i]).indices(rows)[:2])
    halves = [(0, rows // 2), (rows // 2, rows)]
    return None if sorted(places) == halves else f"slices {places}, expected the halves {halves}"


def _halves(o: Any, weight: Node, bias: Node | None, first: int) -> tuple:
    """(gate, up, gate bias, up bias): rows of one weight, read where they lie."""
    middle = weight.shape[0] // 2
    order = [(0, middle), (middle, weight.shape[0])]
    if first:
        order.reverse()
    weights = [o.slice(weight, 0, *place) for place in order]
    biases = [None if bias is None else o.slice(bias, 0, *place) for place in order]
    return (*weights, *biases)
