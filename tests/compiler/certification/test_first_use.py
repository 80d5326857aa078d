"""A user's wrong pass is refused where it is first used, by both front doors, and only there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import infopt
from infopt.compiler.certification import first_use
from infopt.compiler.certification.certify import NotCertified
from infopt.compiler.report import Report
from infopt.compiler.settings import Settings


class SwapsOperands(infopt.Rule):
    """x - y -> y - x"""

    name, always = "swaps-operands", True
    stage = infopt.Stage.FUSE

    def pattern(self, o, x, y):
        return o.sub(x, y)

    def rewrite(self, o, x, y):
        return o.add(y, o.neg(x))


class Right(infopt.Rule):
    """x + x -> 2 x"""

    name, always = "right", True

    def pattern(self, o, x):
        return o.add(x, x)

    def legal(self, m, ctx):
        return None if m.x.type.is_float else "not floating point"

    def rewrite(self, o, x):
        return o.mul(x, 2.0)


class FailsOnIntegers(infopt.Rule):
    """relu(x) -> clamp(x, 0.0), which is another dtype for integers: the pipeline refuses that"""

    name, always = "fails-on-integers", True

    def pattern(self, o, x):
        return o.relu(x)

    def rewrite(self, o, x):
        return o.clamp(x, 0.0)


class NeverHere(infopt.Pass):
    """Leaves every program as it is."""

    name = "never-here"

    def run(self, graph, ctx):
        return graph


def without_relu(module):
    for node in module.graph.nodes:
        if node.target is torch.ops.aten.relu.default:
            node.replace_all_uses_with(node.args[0])
    module.graph.eliminate_dead_code()


X = torch.randn(3, 8)
NET = nn.Sequential(nn.Linear(8, 8), nn.Tanh()).eval()


def test_infopt_compile_refuses_a_wrong_pass() -> None:
    with pytest.raises(NotCertified, match="pass swaps-operands ") as caught:
        infopt.compile(NET, (X,), passes=infopt.default_passes(add=[SwapsOperands()]))
    assert "counterexample" in str(caught.value)


def test_torch_compile_refuses_it_too() -> None:
    torch._dynamo.reset()
    passes = infopt.default_passes(add=[SwapsOperands()])
    fast = torch.compile(NET, backend="infopt", options={"passes": passes})
    with torch.no_grad(), pytest.raises(Exception, match="swaps-operands"):
        fast(X)


def test_wrong_fx_functions_are_refused() -> None:
    with pytest.raises(NotCertified, match="pass fx-without-relu promises"):
        infopt.compile(NET, (X,), passes=[infopt.FxPass(without_relu)])


def test_the_setting_leaves_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFOPT_CERTIFY", "0")
    made = infopt.compile(NET, (X,), passes=infopt.default_passes(add=[SwapsOperands()]))
    assert made(X).shape == (3, 8)


def test_each_content_is_certified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    certify = first_use.certify

    def counting(p, *args, **kwargs):
        seen.append(p.name)
        return certify(p, *args, **kwargs)

    monkeypatch.setattr(first_use, "certify", counting)
    monkeypatch.setattr(first_use, "_known", {})
    report = Report()
    for _ in range(2):
        first_use.certify_new([*infopt.default_passes(), Right(), NeverHere()], Settings(), report)
    assert seen == ["right", "never-here"]
    assert [n.partition(":")[0] for n in report.notes] == [
        "pass never-here could not be certified"
    ] * 2


def test_loud_failures_on_graphs_of_other_kinds_are_only_noted() -> None:
    made = infopt.compile(
        nn.ReLU().eval(), (X,), passes=infopt.default_passes(add=[FailsOnIntegers()])
    )
    assert torch.equal(made(X), X.relu())
    (note,) = [n for n in made.report.notes if "fails-on-integers" in n]
    assert "generated graphs: failed: fails-on-integers.rewrite gives f32" in note
    assert made.report.find("fails-on-integers").applied


def test_skipped_passes_are_not_certified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_use, "_known", {})
    first_use.certify_new([SwapsOperands()], Settings(skip=frozenset({"swaps-operands"})), Report())
    first_use.certify_new([SwapsOperands()], Settings(certify=False), Report())
    assert not first_use._known
