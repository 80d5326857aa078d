"""Activation functions written out in arithmetic -> the op that they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from infopt.compiler.graph import Node, Stage
from infopt.compiler.pipeline import PassContext
from infopt.compiler.rewrite import Match, Rule


@dataclass(frozen=True)
class FuseActivation(Rule):
    """x / 2 * (1 + tanh(sqrt(2/π) (x + 0.044715 x³))) -> gelu(x, "tanh"), and its relatives

    gelu by erf, gelu by tanh, silu as x * sigmoid(x). Their ops keep the steps in registers.
    """

    name: ClassVar[str] = "fuse-activation"
    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)
    shared: ClassVar[bool] = False

    def pattern(self, o: Any, x: Any) -> Any:
        any_of = o.any
        cube = o.mul(o.pow(x, any_of("power")), any_of("coefficient"))
        half = o.mul(x, any_of("half"))
        inner = o.mul(o.add(x, cube), any_of("inner"))
        by_tanh = o.add(o.tanh(inner), any_of("one"))
        factor = o.add(o.mul(o.mul(x, any_of("coefficient")), x), any_of("one"))
        factored = o.add(o.tanh(o.mul(o.mul(x, any_of("inner")), factor)), any_of("one"))
        root_two = any_of("inner")
        erfs = [
            o.add(o.erf(o.div(x, root_two)), any_of("one")),
            o.add(o.erf(o.mul(x, root_two)), any_of("one")),
        ]
        forms = [o.mul(half, by_tanh), o.mul(half, factored), o.mul(x, o.sigmoid(x))]
        forms += [o.mul(half, by_erf) for by_erf in erfs]
        forms += [o.mul(o.mul(x, by), any_of("half")) for by in (by_tanh, *erfs)]
        return forms

    def legal(self, m: Match, ctx: PassContext) -> str | None:
        if not m.x.type.is_float:
            return f"x is {m.x.type}"
        expected = {"half": 0.5, "one": 1.0}
        kind = _kind(m)
        if kind == "tanh":
            expected |= {"power": 3.0, "coefficient": 0.044715, "inner": math.sqrt(2 / math.pi)}
        if kind == "none":
            divides = any(n.op.name == "aten.div.Scalar" for n in m.nodes)
            expected["inner"] = math.sqrt(2) if divides else math.sqrt(0.5)
        for name, value in expected.items():
            found = m.bound.get(name)
            if found is not None and not _close(found, value, m.x.dtype):
                return f"{name} is {found}, expected {value}"
        return None

    def rewrite(self, o: Any, m: Match, x: Node) -> Node:
        kind = _kind(m)
        return o.silu(x) if kind == "silu" else o.gelu(x, approximate=kind)


def _close(found: Any, value: float, dtype: torch.dtype) -> bool:
    """The same number but for how a program wrote it down: 0.79788456 is sqrt(2/π), not in f64."""
    digits = 1e-14 if dtype is torch.float64 else 1e-7
    return isinstance(found, int | float) and math.isclose(found, value, rel_tol=digits)


def _kind(m: Match) -> str:
    names = {n.op.name for n in m.nodes}
    if "aten.tanh.default" in names:
        return "tanh"
    return "none" if "aten.erf.default" in names else "silu"
