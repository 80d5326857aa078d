"""Bisection names the wrong pass, wherever it stands, and the wrong site of it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import infopt
from infopt.compiler.bisection import _first
from infopt.compiler.pipeline import Pass
from infopt.compiler.rewrite import Rule
from infopt.compiler.testing import bisect, graph_of


def right(number: int, stage: infopt.Stage) -> Pass:
    """A user's pass that does something harmless: swaps the operands of sums."""

    class Right(Pass):
        """x -> x"""

        def run(self, graph, ctx):
            old = [n for n in graph.nodes() if n.op.name == "aten.add.Tensor" and n.args[0].shape]
            o = ctx.builder
            return ctx.exchange(graph, {n: o.add(n.args[1], n.args[0]) for n in old})

    Right.name, Right.stage = f"right-{number}", stage
    return Right()


class OneWrong(Pass):
    """add(x, y) -> add(y, x), but sub(x, y) where the width is 24"""

    name = "one-wrong"

    def run(self, graph, ctx):
        o, changes = ctx.builder, {}
        for n in graph.nodes():
            if n.op.name == "aten.add.Tensor":
                a, b = n.args
                changes[n] = o.sub(a, b) if n.shape[-1] == 24 else o.add(b, a)
        return ctx.exchange(graph, changes)


class WrongRule(Rule):
    """tanh(x) -> sigmoid(x) where the width is 24, else (tanh(x) 1)"""

    name, always = "wrong-rule", True

    def pattern(self, o, x):
        return o.tanh(x)

    def legal(self, m, ctx):
        users = m.graph.users(m.root)
        return "done" if any("mul" in u.op.name for u in users) else None

    def rewrite(self, o, x, m):
        return o.sigmoid(x) if x.shape[-1] == 24 else o.mul(m.root, 1.0)


class Net(nn.Module):
    """Sums and tanh at widths 8, 24 and 16, one wrong place among five."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 24), nn.Linear(24, 16)

    def forward(self, x):
        y = torch.tanh(x + torch.sin(x)) + x
        u = torch.tanh(2 * torch.tanh(self.up(y)))
        z = self.down(torch.sin(u) + torch.cos(u))
        return torch.tanh(z + torch.cos(z)) + z


@pytest.fixture
def net() -> nn.Module:
    return Net().eval()


def many(wrong: Pass, where: int) -> tuple[Pass, ...]:
    """A pipeline of 25: infopt's, users' harmless ones, and the wrong one at a place of its own."""
    defaults = infopt.default_passes()
    fill = [right(i, infopt.Stage.NORMALIZE) for i in range(24 - len(defaults))]
    passes = list(infopt.default_passes(add=fill))
    stages = [p.stage for p in passes]
    type(wrong).stage = stages[min(where, len(stages) - 1)]
    passes.insert(where, wrong)
    assert len(passes) == 25
    return tuple(passes)


@pytest.mark.parametrize("where", [0, 3, 9, 15, 24])
@pytest.mark.parametrize("kind", [OneWrong, WrongRule])
def test_names_the_wrong_pass_in_a_pipeline_of_25(net, kind, where: int) -> None:
    x = torch.randn(4, 8)
    found = bisect(many(kind(), where), net, (x,), (torch.randn(4, 8),))
    assert found is not None and (found.pass_name, found.position) == (kind.name, where)
    assert found.site is not None and "24]" in found.site and found.sites >= 2
    assert "times what rounding explains" in found.error and "max" in found.error
    assert ("sub" if kind is OneWrong else "sigmoid") in found.change
    text = str(found)
    assert f"pass {kind.name} (number {where + 1}) promises Exact()" in text
    assert f"site {found.number} of {found.sites}" in text


def test_several_sizes_of_a_dynamic_model(net) -> None:
    """The wrong site shows only in the second sample, of another size."""

    class WrongTail(Pass):
        """cos(x) -> cos(x) with all rows from the fourth on zero"""

        name = "wrong-tail"

        def run(self, graph, ctx):
            o, changes = ctx.builder, {}
            for n in graph.nodes():
                if n.op.name == "aten.cos.default" and n.shape[-1] == 24:
                    rows = o.arange(n.shape[0], dtype=torch.int64)
                    changes[n] = o.mul(n, o.unsqueeze(o.lt(rows, 4), 1))
            return ctx.exchange(graph, changes)

    rows = torch.export.Dim("rows", min=1, max=64)
    passes = [WrongTail(), *infopt.default_passes()]
    small, large = {"x": torch.randn(3, 8)}, {"x": torch.randn(9, 8)}
    shapes = {"x": {0: rows}}
    assert bisect(passes, net, small, dynamic_shapes=shapes) is None
    found = bisect(passes, net, small, large, dynamic_shapes=shapes)
    assert found is not None and found.pass_name == "wrong-tail" and "aten.cos" in found.site


def test_right_passes_are_left_alone(net) -> None:
    assert (
        bisect(infopt.default_passes(add=[right(1, infopt.Stage.FUSE)]), net, (torch.randn(4, 8),))
        is None
    )


def test_a_wrong_exact_pass_hidden_by_a_later_lossy_one() -> None:
    class Slight(Rule):
        """relu(x) -> relu(x) 1.001"""

        name, always = "slight", True

        def pattern(self, o, x):
            return o.relu(x)

        def legal(self, m, ctx):
            return "done" if any("mul" in u.op.name for u in m.graph.users(m.root)) else None

        def rewrite(self, o, m):
            return o.mul(m.root, 1.001)

    @dataclass(frozen=True)
    class Lossy(Slight):
        """sigmoid(x) -> sigmoid(x) 1.001"""

        name, accuracy = "lossy", infopt.Close(rtol=0.1, atol=0.1)

        def pattern(self, o, x):
            return o.sigmoid(x)

    graph = graph_of(lambda o, x: o.sigmoid(o.relu(x)), [torch.randn(6)])
    found = bisect([Slight(), Lossy()], graph, (torch.randn(6),))
    assert found is not None and found.pass_name == "slight"
    assert bisect([Lossy()], graph, (torch.randn(6),)) is None


def test_a_pass_that_raises_is_named_with_its_site() -> None:
    class Illegal(Pass):
        """neg(x) -> x y, where y is an input nobody declared"""

        name = "illegal"

        def run(self, graph, ctx):
            o = ctx.builder
            changes = {}
            for n in graph.nodes():
                if n.op.name == "aten.neg.default":
                    wide = n.shape[-1] == 3
                    changes[n] = o.mul(n.args[0], o.input("nobody", n.type) if wide else -1.0)
            return ctx.exchange(graph, changes)

    def build(o, x, y):
        return o.neg(o.neg(x)), o.neg(y)

    graph = graph_of(build, [torch.randn(5), torch.randn(3)])
    found = bisect(
        [right(0, infopt.Stage.NORMALIZE), Illegal()], graph, (torch.randn(5), torch.randn(3))
    )
    assert found is not None and found.pass_name == "illegal" and "IllegalGraph" in found.error
    assert found.site is not None and "f32[3]" in found.site


def test_an_fx_function_is_one_piece() -> None:
    def halve(module):
        for node in module.graph.nodes:
            if node.target is torch.ops.aten.relu.default:
                node.target = torch.ops.aten.sigmoid.default

    graph = graph_of(lambda o, x: o.relu(x), [torch.randn(6)])
    found = bisect([infopt.FxPass(halve)], graph, (torch.randn(6),))
    assert found is not None and found.pass_name == "fx-halve" and found.site is None
    assert "aten.sigmoid.default" in found.change and "cannot be told apart" in str(found)


def test_samples_are_needed() -> None:
    with pytest.raises(ValueError, match="at least one tuple of example inputs"):
        bisect([], graph_of(lambda o, x: o.relu(x), [torch.randn(2)]))


@pytest.mark.parametrize("wrong_from", range(1, 9))
def test_first(wrong_from: int) -> None:
    asked = []
    assert _first(lambda n: asked.append(n) or n >= wrong_from, 8) == wrong_from
    assert len(asked) <= 3
