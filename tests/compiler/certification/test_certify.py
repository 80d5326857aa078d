"""Certification: right passes go through, each kind of wrong one comes with a counterexample."""

from __future__ import annotations

import itertools
import re

import pytest
import torch

import infopt
from infopt.compiler.certification.certify import NotCertified
from infopt.compiler.certification.gallery import GALLERY
from infopt.compiler.certification.mined_numbers import mined_sizes
from infopt.compiler.certification.pattern_programs import programs_of
from infopt.compiler.certification.programs import Case, cases_of, inputs_for
from infopt.compiler.testing import Program, certify


class ScaledSum(infopt.Rule):
    """x s + y s -> (x + y) s"""

    name, always = "scaled-sum", True

    def pattern(self, o, x, y):
        return o.add(o.mul(x, o.any("s")), o.mul(y, o.any("s")))

    def legal(self, m, ctx):
        return None if m.x.type.is_float and m.y.type.is_float else "not floating point"

    def rewrite(self, o, x, y, s):
        return o.mul(o.add(x, y), s)


class ScaledSumOfBools(ScaledSum):
    """Forgets that True + True is True."""

    name = "scaled-sum-of-bools"

    def legal(self, m, ctx):
        return None


class LinearOfSum(infopt.Rule):
    """linear(x, w) + linear(y, w) -> linear(x + y, w)"""

    name, always = "linear-of-sum", True
    forgets = 1.0

    def pattern(self, o, x, y, w):
        return o.add(o.linear(x, w), o.linear(y, w))

    def legal(self, m, ctx):
        floats = m.x.type.is_float and m.x.dtype == m.y.dtype
        return None if floats and m.x.shape == m.y.shape else "other types"

    def rewrite(self, o, x, y, w):
        y = y if self.forgets == 1.0 else o.mul(y, self.forgets)
        return o.linear(o.add(x, y), w)


class NearlyLinear(LinearOfSum):
    """Wrong by less than the tolerance of any test in rounding arithmetic."""

    name, forgets = "nearly-linear", 1.000002
    accuracy = infopt.Exact()


class WrongWhereWide(LinearOfSum):
    name = "wrong-where-wide"

    def rewrite(self, o, x, y, w):
        wide = x.shape[-1] == 40
        return o.linear(o.sub(x, y) if wide else o.add(x, y), w)


class OnlyWhereOpen(LinearOfSum):
    """Believes that a size it does not know is 3."""

    name = "only-where-open"

    def rewrite(self, o, x, y, w):
        size = x.shape[-1]
        half = 1.0 if isinstance(size, int) else 0.0
        return o.linear(o.add(x, y if half else o.mul(y, 2.0)), w)


def test_a_right_rule() -> None:
    told = certify(ScaledSum(), draws=0)
    assert told.applied > 10 and told.exact == told.applied <= told.graphs
    assert not told.inexact and "not floating point" in told.declined
    assert str(told).startswith(f"scaled-sum: applied to {told.applied} of {told.graphs} generated")
    assert certify(LinearOfSum(), draws=0).exact > 10


@pytest.mark.parametrize(
    "wrong, says",
    [
        (ScaledSumOfBools, r"promises Exact\(\), but result 0"),
        (NearlyLinear, "is another function: over exact arithmetic result 0 differs"),
        (WrongWhereWide, r"promises Exact\(\), but result 0"),
        (OnlyWhereOpen, r"promises Exact\(\), but result 0"),
    ],
)
def test_a_wrong_rule_comes_with_a_counterexample(wrong: type[infopt.Rule], says: str) -> None:
    with pytest.raises(NotCertified) as caught:
        certify(wrong())
    text = str(caught.value)
    assert re.search(f"pass {wrong.name} ({says})", text)
    for part in ("counterexample, the graph before:", "and after:", "the change:", "x0 = "):
        assert part in text


def test_a_counterexample_is_small() -> None:
    with pytest.raises(NotCertified) as caught:
        certify(NearlyLinear(), draws=2)
    assert "x0 = float32[1, 1] strides (1, 1) [[1.5409960746765137]]" in str(caught.value)


def test_a_name_in_a_pattern_is_one_value() -> None:
    def build(o, x, y):
        return o.add(o.mul(x, 2.0), o.mul(y, 3.0))

    program = Program(build, (("n",), ("n",)))
    told = certify(ScaledSum(), [program], draws=0)
    assert any("s is " in reason for reason in told.declined)


class Counts(infopt.Pass):
    """x -> x + (how often it ran)"""

    name, runs = "counts", itertools.count()

    def run(self, graph, ctx):
        old = [n for n in graph.nodes() if n.op.name == "aten.relu.default"]
        return ctx.exchange(graph, {n: ctx.builder.add(n.args[0], next(self.runs)) for n in old})


class Grows(infopt.Pass):
    """relu(x) -> relu(relu(x))"""

    name = "grows"

    def run(self, graph, ctx):
        old = [n for n in graph.nodes() if n.op.name == "aten.relu.default"]
        return ctx.exchange(graph, {n: ctx.builder.relu(n) for n in old})


class Crashes(infopt.Pass):
    """Expects a program of another kind."""

    name = "crashes"

    def run(self, graph, ctx):
        raise KeyError("no linear here")


class Nothing(infopt.Pass):
    """Leaves every program as it is."""

    name = "nothing"

    def run(self, graph, ctx):
        return graph


class OtherType(infopt.Pass):
    """relu(x) -> f64(relu(x))"""

    name = "other-type"

    def run(self, graph, ctx):
        old = [n for n in graph.nodes() if n.op.name == "aten.relu.default"]
        cast = [ctx.builder.call("aten.to.dtype", n, torch.float64) for n in old]
        return ctx.exchange(graph, dict(zip(old, cast, strict=True)))


RELU = Program(lambda o, x: o.relu(x), (("n", "m"),), drawn=(torch.float32,), name="relu")


@pytest.mark.parametrize(
    "wrong, says",
    [
        (Counts, "makes another graph of the same one in a second run"),
        (Grows, "is not idempotent: it changes its own result"),
        (Crashes, "raised KeyError: 'no linear here'"),
        (OtherType, "failed: after other-type: "),
    ],
)
def test_what_else_may_be_wrong(wrong: type[infopt.Pass], says: str) -> None:
    with pytest.raises(NotCertified, match=f"pass {wrong.name} {says}"):
        certify(wrong(), [RELU], draws=0)


def test_programs_that_are_none_at_the_stage_of_the_pass_are_left_out() -> None:
    class Late(Nothing):
        name, stage = "late", infopt.Stage.FUSE

    program = Program(lambda o, x: o.mT(x), (("n", "m"),), name="not canonical")
    assert certify(Nothing(), [program], draws=0, strict=False).graphs
    assert not certify(Late(), [program], draws=0, strict=False).graphs


def test_a_pass_that_applies_nowhere() -> None:
    with pytest.raises(NotCertified, match="nothing applied to none of 4 generated graphs"):
        certify(Nothing(), [RELU], draws=0)
    assert certify(Nothing(), [RELU], draws=0, strict=False).applied == 0
    told = certify(Crashes(), [RELU], draws=0, strict=False)
    assert told.failed == {"raised KeyError: 'no linear here'": 4}


def test_infinities_only_where_asked_for() -> None:
    class Halved(infopt.Rule):
        """x - x / 2 -> x / 2: not where x is infinite"""

        name, always = "halved", True

        def pattern(self, o, x):
            return o.sub(x, o.mul(x, 0.5))

        def rewrite(self, o, x):
            return o.mul(x, 0.5)

    assert certify(Halved(), draws=0).exact
    with pytest.raises(NotCertified, match="NaN in other places"):
        certify(Halved(), draws=0, special=True)


def test_lossy_passes_are_held_to_their_own_accuracy() -> None:
    class Coarse(infopt.Rule):
        """gelu(x) -> gelu(x, "tanh")"""

        name, accuracy = "coarse", infopt.Close(rtol=5e-3, atol=5e-3)

        def pattern(self, o, x):
            return o.gelu(x)

        def gain(self, m, ctx):
            return 1e-6

        def rewrite(self, o, x):
            return o.gelu(x, approximate="tanh")

    class TooCoarse(Coarse):
        name, accuracy = "too-coarse", infopt.Close(rtol=1e-6, atol=1e-6)

    told = certify(Coarse(), draws=0)
    assert told.applied and not told.exact and not told.inexact
    with pytest.raises(NotCertified, match=r"promises Close\(rtol=1e-06"):
        certify(TooCoarse(), draws=0)


def test_programs_of_a_pattern() -> None:
    found = programs_of(LinearOfSum(), {}, 0)
    assert {p.shapes for p in found} >= {(("a", "b"), ("c", "b"), ("a", "b"))}
    assert len({p.name for p in found}) == len(found)
    assert {t for p in found for t in p.drawn} >= {torch.float32, torch.bfloat16, torch.int64}

    class Gathers(infopt.Rule):
        name = "gathers"

        def pattern(self, o, table, ids):
            return o.embedding(table, ids)

    shapes = [(p.shapes, p.dtypes) for p in programs_of(Gathers(), {}, 0)]
    assert ((("a", "b"), ("c",)), (None, torch.int64)) in [(s, d) for s, d in shapes]


def test_the_boundaries_of_legality_are_drawn() -> None:
    class Wide(ScaledSum):
        name = "wide"

        def legal(self, m, ctx):
            return None if m.x.shape[-1] > 32 else "narrow"

    assert mined_sizes(Wide()) == (31, 32, 33)
    sizes = {c.sizes["n"] for c in cases_of(RELU, 0, 0, mined_sizes(Wide()))}
    assert sizes >= {1, 3, 31, 32, 33}


def test_cases_are_the_same_every_time() -> None:
    program = Program(RELU.build, (("n", "m"), ("m",)), (None, torch.int64), name="two")
    first, second = (list(cases_of(program, 12, 3, special=True)) for _ in range(2))
    assert first == second and first != list(cases_of(program, 12, 4, special=True))
    assert any(c.dynamic for c in first) and any(c.values == "special" for c in first)
    for case in first:
        x, ids = inputs_for(program, case)
        assert list(x.shape) == [case.sizes["n"], case.sizes["m"]] and x.dtype == case.dtype
        assert ids.dtype == torch.int64 and bool((ids >= 0).all())
        same = inputs_for(program, case)
        assert torch.equal(torch.nan_to_num(x), torch.nan_to_num(same[0]))
    special = Case({"n": 30, "m": 30}, torch.float32, ("dense",) * 2, "special", 0)
    values = inputs_for(program, special)[0]
    assert values.isnan().any() and values.isposinf().any() and values.isneginf().any()


def test_the_gallery_has_no_empty_program() -> None:
    told = certify(Nothing(), GALLERY, draws=0, strict=False)
    assert told.graphs == sum(len(list(cases_of(p, 0, 0))) for p in GALLERY)
