"""The contract: order, stages, names, accuracy, cache keys, dumps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from infopt.compiler.accuracy import Close
from infopt.compiler.errors import ContractBroken, IllegalGraph, IllegalTrace
from infopt.compiler.graph import Graph, Stage
from infopt.compiler.pipeline import Pass, PassContext, Pipeline
from infopt.compiler.report import Report, explanation
from infopt.compiler.rewrite import Rule, exchange
from infopt.compiler.settings import Settings
from infopt.compiler.target import Target
from infopt.compiler.testing import graph_of, run_pass


@dataclass(frozen=True)
class Nothing(Pass):
    """Does nothing, at a strength."""

    strength: int = 1
    name = "nothing"

    def run(self, graph, ctx):
        return graph


@dataclass(frozen=True)
class Late(Pass):
    name, stage, after = "late", Stage.FUSE, ("nothing",)

    def run(self, graph, ctx):
        return graph


class Wrong(Rule):
    """relu(x) -> relu(x) * 1.01: far outside of exact"""

    name, always = "wrong", True

    def pattern(self, o, x):
        return o.relu(x)

    def legal(self, m, ctx):
        users = m.graph.users(m.root)
        return "already wrong" if any("mul" in u.op.name for u in users) else None

    def rewrite(self, o, x, m):
        return o.mul(m.root, 1.01)


def relu_graph() -> Graph:
    return graph_of(lambda o, x: o.relu(x), [torch.randn(3)])


def context(**settings) -> PassContext:
    target = Target.parse("cpu:avx2")
    return PassContext(target, ((torch.randn(3).abs(),),), Report(), Settings(**settings))


def test_stages_never_decrease():
    with pytest.raises(ContractBroken, match="comes after stage FUSE"):
        Pipeline([Nothing(), Late(), Nothing()])


def test_after_is_checked_not_solved():
    with pytest.raises(ContractBroken, match="late must come after nothing"):
        Pipeline([Late()])


def test_names():
    with pytest.raises(ContractBroken, match="expected kebab-case"):
        type("Bad", (Pass,), {"name": "Not_Kebab"})
    with pytest.raises(ContractBroken, match="has no name"):
        Pipeline([type("Anonymous", (Pass,), {})()])
    with pytest.raises(ContractBroken, match="wrap an fx function in FxPass"):
        Pipeline([print])  # type: ignore[list-item]
    with pytest.raises(ContractBroken, match="two different passes are called 'nothing'"):
        Pipeline([Nothing(), type("Other", (Pass,), {"name": "nothing"})()])


def test_a_wrong_exact_pass_is_caught_where_checking_is_on():
    with pytest.raises(ContractBroken, match="pass wrong promises Exact"):
        Pipeline([Wrong()]).run(relu_graph(), context(check=1))
    Pipeline([Wrong()]).run(relu_graph(), context(check=0))


def test_a_lossy_pass_is_always_measured():
    class Lossy(Wrong):
        name, accuracy = "lossy", Close(rtol=0.02, atol=0)

    class TooLossy(Wrong):
        name, accuracy = "too-lossy", Close(rtol=0.001, atol=0)

    ctx = context(check=0)
    Pipeline([Lossy()]).run(relu_graph(), ctx)
    assert "0.01" in ctx.report.find("lossy").error or "rms" in ctx.report.find("lossy").error
    with pytest.raises(ContractBroken, match="too-lossy"):
        Pipeline([TooLossy()]).run(relu_graph(), context(check=0))


def test_the_verifier_sees_every_result():
    class DropsOutput(Pass):
        name = "drops-output"

        def run(self, graph, ctx):
            return Graph(graph.inputs, (), stage=graph.stage)

    with pytest.raises((IllegalGraph, ContractBroken), match="drops-output"):
        Pipeline([DropsOutput()]).run(relu_graph(), context())


def test_a_trace_that_breaks_the_rules_is_told_apart_from_a_pass():
    graph = relu_graph()
    with pytest.raises(IllegalTrace, match="trace"):
        Pipeline([]).run(replace(graph, inputs=()), context())


def test_keys_follow_source_and_options():
    assert Nothing().key == Nothing().key
    assert Nothing(1).key != Nothing(2).key
    assert Nothing().key != Late().key


def test_skip_and_dump(tmp_path: Path):
    ctx = context(check=0, skip=frozenset({"wrong"}))
    start = relu_graph()
    assert Pipeline([Wrong()]).run(start, ctx) is start
    assert "skipped by INFOPT_SKIP" in ctx.report.notes[0]
    Pipeline([Wrong()]).run(start, context(check=0, dump=tmp_path))
    assert "aten.mul.Scalar" in (tmp_path / "00_wrong.txt").read_text()
    assert "+" in (tmp_path / "00_wrong.diff").read_text()


def test_the_report_says_where_and_why():
    found, report = run_pass(Nothing(), relu_graph())
    assert explanation(report).endswith("found nothing to do")

    class Once(Wrong):
        name, accuracy = "once", Close(0.02, 0)

    found, report = run_pass(Once(), relu_graph())
    assert report.sites[0].applied
    again, report = run_pass(Once(), found)
    assert again is found
    assert "declined: already wrong" in explanation(report)


def test_whole_graph_passes_use_exchange():
    class ReluToClamp(Pass):
        name = "relu-to-clamp"

        def run(self, graph, ctx):
            o = ctx.builder
            old = [n for n in graph.nodes() if n.op.name == "aten.relu.default"]
            return exchange(graph, {n: o.clamp_min(n.args[0], 0) for n in old}, o)

    found, _ = run_pass(ReluToClamp(), relu_graph(), [(torch.randn(3),)])
    assert found.outputs[0].op.name == "aten.clamp_min.default"
