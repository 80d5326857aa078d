"""What a build keeps: the report's counts, the target as asked for, measured errors, times."""

from __future__ import annotations

import pytest
import torch

import infopt
from infopt.compiler.compiled import Built, _check_program, build
from infopt.compiler.errors import ContractBroken
from infopt.compiler.options import Options
from infopt.compiler.report import Report
from infopt.compiler.target import Target
from infopt.compiler.tracing.export import export
from infopt.runtime.structure import Leaf

X = torch.randn(3, 8)


class Net(torch.nn.Module):
    """One operator that torch runs between two regions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.renorm(x.sin(), 2, 0, 1.0) + 1


def built(report: Report, **options: object) -> Built:
    graph = export(Net(), (X,), {}, None, Leaf).graph
    return build(graph, Options(**options), Target.parse("native"), report, [(X,)])  # type: ignore[arg-type]


def test_the_report_counts() -> None:
    report = Report()
    made = built(report)
    assert (report.native_nodes, report.aten_nodes) == (2, 1)
    assert list(report.fallbacks) == ["aten.renorm.default"] and sum(report.kernels.values()) == 2
    assert set(report.phases) >= {"passes", "lower", "build"}
    assert all(0 <= seconds < 600 for seconds in report.phases.values())
    assert report.target == Target.parse("native").name
    assert not report.notes and not made.batch_invariant and made.report is report
    torch.testing.assert_close(infopt.compile(Net(), (X,))(X), Net()(X))


def test_batch_invariance_is_the_target_s_and_says_what_it_does_not_cover() -> None:
    report = Report()
    assert built(report, batch_invariant=True).batch_invariant
    (note,) = report.notes
    assert note == "batch_invariant does not cover what torch runs: aten.renorm.default"


def test_memory_is_counted() -> None:
    layer = torch.nn.Linear(8, 16).eval()
    report = infopt.compile(layer, (X,)).report
    assert report.memory["weights"] >= 4 * (8 * 16 + 16)
    assert report.memory["arena"] >= 0


def test_the_program_is_checked_against_its_graph(monkeypatch) -> None:
    monkeypatch.setenv("INFOPT_CHECK", "2")
    report = Report()
    made = built(report)
    assert report.native_nodes == 2

    def off_by_one(inputs):
        return [t + 1 for t in made.program(inputs)]

    with pytest.raises(ContractBroken, match=r"the program's result 0 .*: a kernel is wrong"):
        _check_program(made.graph, off_by_one, [(X,)])
    _check_program(made.graph, made.program, [(X,)])
