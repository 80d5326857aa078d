"""Patterns, reasons, gains and the exchange of nodes."""

from __future__ import annotations

import pytest
import torch

from infopt.compiler.errors import ContractBroken, PatternError
from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder
from infopt.compiler.interpret import interpret
from infopt.compiler.pipeline import PassContext
from infopt.compiler.rewrite import PatternBuilder, Rule, Var, exchange, match
from infopt.compiler.target import Target
from infopt.compiler.testing import graph_of, run_pass
from infopt.compiler.types import TensorType


def ctx() -> PassContext:
    return PassContext(Target.parse("cpu:avx512"))


class DoubleToMul(Rule):
    """x + x -> x * 2"""

    name = "double-to-mul"
    always = True

    def pattern(self, o, x):
        return o.add(x, x)

    def rewrite(self, o, x):
        return o.mul(x, 2)


def test_same_variable_must_be_the_same_value():
    x = torch.randn(3)
    found, report = run_pass(DoubleToMul(), graph_of(lambda o, a: o.add(a, a), [x]))
    assert found.outputs[0].op.name == "aten.mul.Scalar"
    found, report = run_pass(DoubleToMul(), graph_of(lambda o, a, b: o.add(a, b), [x, x]))
    assert found.outputs[0].op.name == "aten.add.Tensor"
    assert "two different values" in report.declined[0].reason


def test_attributes_match_exactly_and_defaults_too():
    o, x = Builder(), None
    x = o.input("x", TensorType.dense((4, 4), torch.float32))
    gelu = Graph((x,), (o.gelu(x, approximate="tanh"),))
    pattern = PatternBuilder()
    missed = match(pattern.gelu(Var("x")), gelu, gelu.outputs[0])
    assert missed.reason == "aten.gelu.default: approximate is 'tanh', expected 'none'"
    assert not match(pattern.gelu(Var("x"), approximate="tanh"), gelu, gelu.outputs[0]).reason
    remembered = match(
        pattern.gelu(Var("x"), approximate=pattern.any("how")), gelu, gelu.outputs[0]
    )
    assert remembered.how == "tanh"


def test_one_and_true_and_one_point_zero_are_different_constants():
    o = Builder()
    x = o.input("x", TensorType.dense((4,), torch.float32))
    graph = Graph((x,), (o.add(x, 1),))
    assert match(PatternBuilder().add(Var("x"), 1.0), graph, graph.outputs[0]).reason
    assert not match(PatternBuilder().add(Var("x"), 1), graph, graph.outputs[0]).reason
    assert o.add(x, 0.0) is not o.add(x, -0.0)


def test_commutative_operands_match_in_both_orders():
    class AddOfMul(Rule):
        name, always = "add-of-mul", True

        def pattern(self, o, a, b, c):
            return o.add(o.mul(a, b), c)

        def rewrite(self, o, a, b, c):
            return o.addcmul(c, a, b)

    x = torch.randn(3)
    for build in (lambda o, a, b: o.add(o.mul(a, b), b), lambda o, a, b: o.add(b, o.mul(a, b))):
        graph = graph_of(build, [x, x])
        found, _ = run_pass(AddOfMul(), graph, [(torch.randn(3), torch.randn(3))])
        assert found.outputs[0].op.name == "aten.addcmul.default"


class ReluRelu(Rule):
    """relu(relu(x)) -> relu(x)"""

    name, always = "relu-relu", True

    def pattern(self, o, x):
        return o.relu(o.relu(x))

    def rewrite(self, o, x):
        return o.relu(x)


def test_chains_shrink_to_one():
    def build(o, x):
        for _ in range(7):
            x = o.relu(x)
        return x

    found, report = run_pass(ReluRelu(), graph_of(build, [torch.randn(3)]))
    assert len(found.nodes()) == 2
    assert len(report.applied) >= 3


def test_values_read_elsewhere_stop_a_match_with_a_reason():
    class MulAdd(Rule):
        name = "mul-add"

        def pattern(self, o, x, y):
            return o.add(o.mul(x, y), x)

        def gain(self, m, ctx):
            return 1.0

        def rewrite(self, o, x, y):
            return o.mul(x, o.add(y, 1.0))

    def build(o, x, y):
        product = o.mul(x, y)
        return o.add(product, x), o.relu(product)

    x = torch.randn(3)
    _, report = run_pass(MulAdd(), graph_of(build, [x, x]))
    assert "is also read by" in report.declined[0].reason
    _, report = run_pass(
        MulAdd(), graph_of(lambda o, x, y: (o.add(o.mul(x, y), x), o.mul(x, y)), [x, x])
    )
    assert "is also a result" in report.declined[0].reason


def test_gain_of_the_cost_model_decides():
    class Split(Rule):
        """relu(x) -> relu(relu(x)): costs more"""

        name = "split"

        def pattern(self, o, x):
            return o.relu(x)

        def rewrite(self, o, x):
            return o.relu(o.relu(o.relu(x)))

    found, report = run_pass(Split(), graph_of(lambda o, x: o.relu(x), [torch.randn(64, 64)]))
    assert len(found.nodes()) == 2
    assert report.declined[0].reason.startswith("does not pay on")
    assert report.declined[0].gain < 0


def test_a_replacement_may_wrap_what_it_replaces():
    class Wrap(Rule):
        name, always = "wrap", True

        def pattern(self, o, x):
            return o.relu(x)

        def legal(self, m, ctx):
            wrapped = any(u.op.name == "aten.abs.default" for u in m.graph.users(m.root))
            return "already wrapped" if wrapped else None

        def rewrite(self, o, x, m):
            return o.abs(m.root)

    found, _ = run_pass(Wrap(), graph_of(lambda o, x: o.add(o.relu(x), 1.0), [torch.randn(3)]))
    assert [n.op.name.split(".")[1] for n in found.nodes()[1:]] == ["relu", "abs", "add"]


def test_exchange_infers_types_above_a_change_anew():
    o = Builder()
    x = o.input("x", TensorType.dense((4, 6), torch.float32))
    transposed = o.permute(x, [1, 0])
    graph = Graph((x,), (o.relu(transposed),))
    dense = o.clone(transposed, memory_format=torch.contiguous_format)
    changed = exchange(graph, {transposed: dense}, o)
    assert changed.outputs[0].tensor_type.strides == (4, 1)
    value = torch.randn(4, 6)
    assert torch.equal(interpret(changed, [value])[0], interpret(graph, [value])[0])


def test_what_a_replacement_reads_twice_is_moved_once():
    o = Builder()
    x = o.input("x", TensorType.dense((3,), torch.float32))
    first, second = o.relu(x), o.neg(x)
    shared = second
    for _ in range(64):  # two paths at each level: 2 to the 64 without sharing
        shared = o.maximum(shared, shared)
    changed = exchange(Graph((x,), (second, first)), {second: shared, first: shared}, o)
    assert len(list(changed.nodes())) < 140
    value = torch.randn(3)
    assert torch.equal(interpret(changed, [value])[1], -value)


def test_a_rewrite_that_changes_the_type_is_an_error():
    class Halve(Rule):
        name, always = "halve", True

        def pattern(self, o, x):
            return o.relu(x)

        def rewrite(self, o, x):
            return o.to(x, torch.float16)

    with pytest.raises(ContractBroken, match=r"halve.rewrite gives f16\[3\], expected f32\[3\]"):
        run_pass(Halve(), graph_of(lambda o, x: o.relu(x), [torch.randn(3)]))


def test_a_rule_that_never_rests_is_an_error():
    class Swing(Rule):
        name, always = "swing", True

        def pattern(self, o, x):
            return [o.relu(x), o.abs(x)]

        def rewrite(self, o, x, m):
            return o.abs(x) if "relu" in m.root.op.name else o.relu(x)

    with pytest.raises(ContractBroken, match="still matches its own result"):
        run_pass(Swing(), graph_of(lambda o, x: o.relu(x), [torch.rand(3)]))


def test_bad_patterns_are_named():
    class Empty(Rule):
        name = "empty"

        def pattern(self, o, x):
            return x

        def rewrite(self, o, x):
            return x

    with pytest.raises(PatternError, match="must return op calls"):
        run_pass(Empty(), graph_of(lambda o, x: o.relu(x), [torch.randn(3)]))
    with pytest.raises(PatternError, match="no form of 'gelu'"):
        PatternBuilder().gelu(Var("x"), colour="red")


class SumOfScaled(Rule):
    """x s + y s -> (x + y) s"""

    name, always = "sum-of-scaled", True

    def pattern(self, o, x, y):
        return o.add(o.mul(x, o.any("s")), o.mul(y, o.any("s")))

    def rewrite(self, o, x, y, s):
        return o.mul(o.add(x, y), s)


@pytest.mark.parametrize(
    "a, b, applies",
    [(2.0, 2.0, True), (1, 1.0, True), (2.0, 3.0, False), (0.0, -0.0, False), (True, 1, False)],
)
def test_a_name_that_stands_twice_is_one_value(a, b, applies) -> None:
    x = torch.randn(3)
    graph = graph_of(lambda o, x, y: o.add(o.mul(x, a), o.mul(y, b)), [x, x + 1])
    _, report = run_pass(SumOfScaled(), graph)
    assert bool(report.applied) == applies
    if not applies:
        assert f"s is {a!r} and {b!r}" in report.declined[0].reason


class OneOfTwo(Rule):
    """relu(relu(x)) -> relu(x)"""

    name, always = "one-of-two", True

    def pattern(self, o, x):
        return o.relu(o.relu(x))

    def rewrite(self, o, x):
        return o.relu(x)


def test_matches_of_one_sweep_do_not_overlap() -> None:
    def chain(o, x):
        for _ in range(4):
            x = o.relu(x)
        return x

    graph = graph_of(chain, [torch.randn(3)])
    result, report = run_pass(OneOfTwo(), graph)
    assert [n.op.name for n in result.nodes()] == ["input", "aten.relu.default"]
    assert len(report.applied) == 3  # two pairs, then the pair of what they became


class MeanOfPair(Rule):
    """(x + y) / 2 -> (x + y) * 0.5"""

    name, always = "mean-of-pair", True

    def pattern(self, o, x, y):
        return o.div(o.add(x, y), 2.0)

    def rewrite(self, o, x, y):
        return o.mul(o.add(x, y), 0.5)


@pytest.mark.parametrize(
    "build, reason",
    [
        (lambda o, x: o.div(o.mul(x, x), 2.0), ""),  # another program: only its root fits
        (lambda o, x: o.div(o.add(x, x), 3.0), ""),
        (
            lambda o, x: o.div(o.add(x, o.sin(x), alpha=2), 2.0),
            "aten.add.Tensor: alpha is 2, expected 1",
        ),
        (lambda o, x: (o.div(s := o.add(x, x), 2.0), s), "is also a result"),
        (lambda o, x: (o.div(s := o.add(x, x), 2.0), o.sin(s)), "is also read by"),
    ],
)
def test_reasons_why_a_pattern_does_not_fit(build, reason) -> None:
    graph = graph_of(build, [torch.randn(3)])
    result, report = run_pass(MeanOfPair(), graph)
    assert result is graph
    found = [s.reason for s in report.declined]
    assert any(reason in r for r in found) if reason else not found


def test_sums_fit_in_either_order_unless_scaled() -> None:
    class Scaled(Rule):
        name, always = "scaled", True

        def pattern(self, o, x, y):
            return o.add(o.neg(x), y)

        def rewrite(self, o, x, y):
            return o.sub(y, x)

    for build, count in (
        (lambda o, x, y: o.add(o.neg(x), y), 1),
        (lambda o, x, y: o.add(y, o.neg(x)), 1),
        (lambda o, x, y: o.add(y, o.neg(x), alpha=2), 0),
    ):
        x = torch.randn(3)
        _, report = run_pass(Scaled(), graph_of(build, [x, x + 1]), [(x, x + 1)])
        assert len(report.applied) == count


def test_a_factor_that_may_be_any_keeps_its_operand() -> None:
    class AnyScale(Rule):
        """neg(x) + a y -> a y - x, whatever a is"""

        name, always = "any-scale", True

        def pattern(self, o, x, y):
            return o.add(o.neg(x), y, alpha=o.any("scale"))

        def rewrite(self, o, x, y, scale):
            return o.sub(o.mul(y, scale), x)

    for build, count in (
        (lambda o, x, y: o.add(o.neg(x), y, alpha=2), 1),
        (lambda o, x, y: o.add(y, o.neg(x)), 1),
        (lambda o, x, y: o.add(y, o.neg(x), alpha=2), 0),
    ):
        x = torch.randn(3)
        _, report = run_pass(AnyScale(), graph_of(build, [x, x + 1]), [(x, x + 1)])
        assert len(report.applied) == count


class JoinToDouble(Rule):
    """cat([x, x]) -> repeat(x)"""

    name, always = "join-to-double", True

    def pattern(self, o, x):
        return o.cat([x, x], o.any("dim"))

    def rewrite(self, o, x, dim):
        return o.repeat(x, [2 if i == dim % x.tensor_type.rank else 1 for i in range(2)])


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda o, a, b: o.cat([a, a], 1), ""),
        (lambda o, a, b: o.cat([a, a, a], 1), "a list of another length"),
        (lambda o, a, b: o.cat([a], 1), "a list of another length"),
        (lambda o, a, b: o.cat([a, b], 1), "x is two different values"),
    ],
)
def test_lists_of_tensors_match_one_by_one(build, reason) -> None:
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    graph = graph_of(build, [a, b])
    found, report = run_pass(JoinToDouble(), graph)
    names = [n.op.name for n in found.nodes() if n.args]
    assert names == ["aten.cat.default" if reason else "aten.repeat.default"]
    assert [s.reason for s in report.declined] == ([reason] if reason else [])
    torch.testing.assert_close(interpret(found, [a, b]), interpret(graph, [a, b]))


def test_a_rule_defines_pattern_and_rewrite() -> None:
    class Nothing(Rule):
        name = "nothing"

    class Half(DoubleToMul):
        name = "half"
        rewrite = Rule.rewrite

    graph = graph_of(lambda o, x: o.add(x, x), [torch.randn(3)])
    with pytest.raises(NotImplementedError, match="Nothing must define pattern"):
        run_pass(Nothing(), graph)
    with pytest.raises((NotImplementedError, PatternError)):
        run_pass(Half(), graph)


def test_what_a_rewrite_returns_is_checked() -> None:
    class NotANode(DoubleToMul):
        name = "not-a-node"

        def rewrite(self, o, x):
            return 3

    class Unknown(DoubleToMul):
        name = "unknown"

        def rewrite(self, o, x, scale):
            return x

    class Refused(DoubleToMul):
        name = "refused"

        def rewrite(self, o, x):
            return o.mm(x, x)

    class Itself(DoubleToMul):
        name = "itself"

        def rewrite(self, o, x):
            return o.add(x, x)

    graph = graph_of(lambda o, x: o.add(x, x), [torch.randn(3)])
    with pytest.raises(ContractBroken, match="rewrite must return a node, found 3"):
        run_pass(NotANode(), graph)
    with pytest.raises(
        PatternError, match=r"rewrite asks for \['scale'\], the pattern has \['x'\]"
    ):
        run_pass(Unknown(), graph)
    found, report = run_pass(Refused(), graph)
    assert found is graph and "aten.mm.default" in report.declined[0].reason
    found, report = run_pass(Itself(), graph)
    assert found is graph and not report.sites


def test_a_match_knows_its_variables_only() -> None:
    graph = graph_of(lambda o, x: o.add(x, x), [torch.randn(3)])
    found = match(PatternBuilder().add(Var("x"), Var("x")), graph, graph.outputs[0])
    assert found.x is graph.inputs[0]
    with pytest.raises(AttributeError, match="the pattern has no variable 'y'"):
        _ = found.y
