"""What people read: pages, reports, explanations, graphs as text, against what they were before.

Every text is of a report with all its fields set, for a fixed machine. After a change that is
meant, write the files again and read what changed in them:

    python -m tests.compiler.test_displays
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from infopt.compiler.certification.gallery import GALLERY
from infopt.compiler.certification.programs import Case, graph_for
from infopt.compiler.dump import diff, text
from infopt.compiler.graph import Graph, Stage
from infopt.compiler.page import page
from infopt.compiler.pipeline import PassContext, Pipeline
from infopt.compiler.report import FrontierPoint, PassReport, Report, Site, explanation
from infopt.compiler.settings import Settings
from infopt.compiler.target import Target
from infopt.compiler.tracing.export import export
from infopt.passes.pipelines import default_passes
from infopt.runtime.structure import Leaf

KEPT = Path(__file__).with_name("displays")
TORCH = torch.__version__.partition("+")[0]  # it writes the graphs
MACHINE = Target.parse("cpu:avx2,cores=2")


class Block(torch.nn.Module):
    """Attention, a norm, a gated product, a sum, integers, two dtypes, a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = torch.nn.Linear(32, 96), torch.nn.Linear(32, 32)
        self.wide, self.norm = torch.nn.Linear(32, 512), torch.nn.LayerNorm(32)
        self.register_buffer("scale", torch.full((32,), 0.5))
        self.convolution = torch.nn.Conv2d(1, 4, 3)

    def forward(self, x, ids):
        q, k, v = self.qkv(x).view(2, -1, 3, 4, 8).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        y = self.norm(x + self.out(y)) * torch.sqrt(self.scale + 1)
        z = F.gelu(self.wide(y)).to(torch.bfloat16).sum(-1)
        image = self.convolution(y[:, None]).relu()
        return y, z, torch.softmax(y @ y.transpose(1, 2), -1), ids + 1 > 3, image


def traced() -> Graph:
    rows = torch.export.Dim("rows", min=4, max=64)
    args = torch.zeros(2, 9, 32), torch.zeros(5, dtype=torch.int64)
    return export(Block().eval(), args, {}, ({1: rows}, None), Leaf).graph


def report_of_all() -> Report:
    """A report with every field set; times and content keys are not of this run."""
    report = Report(target="a machine")
    passes = default_passes()
    graph = Pipeline(passes).run(traced(), PassContext(MACHINE, (), report, Settings()))
    for number, entry in enumerate(report.passes):
        entry.milliseconds, entry.key = number + 0.25, f"{number:02d}" * 16
    first = report.passes[0]
    first.error, first.measured, first.noise = "rms 1e-7", 2.5e-6, 0.5e-6
    sites = [Site("%1 aten.relu", True, gain=1e-6), Site("%2 aten.relu", True, gain=2e-6)]
    sites += [Site("here", False, "too <small>"), Site("%7 there", False, "no gain", 0.0)]
    report.passes.append(PassReport("users", "FUSE", "Close(1, 2)", 9, 9, sites, key="ab" * 32))
    report.passes.append(PassReport("idle", "LAYOUT", "Exact()", 9, 9))
    report.fallbacks = {"aten.b": "2 times: no kernel", "aten.a": "once: complex"}
    report.memory = {"weights": 3 << 20, "arena": 700, "more": 5 << 30, "some": 2048}
    report.phases = {"trace": 1.25, "passes": 0.0125, "lower": 12.5e-6, "build": 0.125e-6}
    report.native_nodes, report.aten_nodes = 17, 3
    report.kernels = {"linear": 3, "pointwise": 7}
    report.notes = ["a note", "another"]
    report.times = {"linear": 3e-3, "pointwise": 1e-3}
    report.frontier = [
        FrontierPoint(0.01, 0.0125, 0.002, 5 << 20, {"int8": 3, "none": 1}),
        FrontierPoint(0.02, None, None, 3 << 20, {"int4": 4}),
    ]
    report.machine, report.graph = MACHINE, graph
    return report


def declined() -> Report:
    return Report(declined="it is <complex>", target="b")


def gallery() -> str:
    """The programs that passes without a pattern are certified with."""
    told = []
    for program in GALLERY:
        sizes = {name: 3 + i for i, name in enumerate(program.names)}
        case = Case(sizes, torch.float32, ("dense",) * len(program.shapes), "normal", 0)
        told.append(f"{program.name}\n{text(graph_for(program, case, Stage.NORMALIZE))}\n")
    return "\n".join(told)


def displays() -> dict[str, str]:
    """File name -> text."""
    report = report_of_all()
    before, after = report.history[0].before, report.history[-1].after
    short = replace(report, history=[], graph=None, fallbacks={}, native_nodes=1, aten_nodes=0)
    return {
        "page.html": page([report], "One <page>"),
        "two.html": page([short, declined()], "Two"),
        "report.txt": f"{report}\n\n{short}\n\n{declined()}\n\n{Report()}\n",
        "report.json": report.json() + "\n",
        "explanations.txt": "\n".join(map(explanation, report.passes)) + "\n",
        "gallery.txt": gallery(),
        "graphs.txt": f"{text(before)}\n\n{text(after)}\n",
        "differences.txt": f"{diff(before, after)}\n{diff(after, before)}\n{diff(after, after)}\n",
    }


def test_as_before() -> None:
    version = (KEPT / "torch.txt").read_text().strip()
    if version != TORCH:
        pytest.skip(f"written with torch {version}, here is {TORCH}")
    found = displays()
    assert sorted([*found, "torch.txt"]) == sorted(p.name for p in KEPT.iterdir())
    for name, content in found.items():
        expected = (KEPT / name).read_text(encoding="utf-8")
        assert content.replace("><", ">\n<") == expected.replace("><", ">\n<"), name


if __name__ == "__main__":
    KEPT.mkdir(exist_ok=True)
    for name, content in {**displays(), "torch.txt": f"{TORCH}\n"}.items():
        (KEPT / name).write_text(content, encoding="utf-8")
