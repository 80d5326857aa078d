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
        forms = []
        for biases in ((), (gate_bias, up_bias)):
            first = o.linear(x, gate, *biases[:1])
            second = o.linear(x, up, *biases[1:])
            kinds = [o.silu, o.relu, o.sigmoid, o.tanh]
            forms += [o.mul(act(first), second) for act in kinds]
            forms += [o.mul(o.gelu(first, approximate=a), second) for a in ("none", "tanh")]
        return forms

    def legal(self, m: Match, ctx: PassContext) -> str | None:
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
        return o.call(gated_linear, x, gate, up, gate_bias, up_bias, activation=name)
