"""The page: complete, self-contained, escaped, of modest size."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

import infopt
from infopt.compiler.page import _diff
from infopt.compiler.report import PassReport, Report, Site
from infopt.compiler.roofline import points_of, roofline
from infopt.compiler.target import Target

VOID = {"meta", "br"}


class Reader(HTMLParser):
    """Checks that elements close in order; collects tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(file: Path) -> Reader:
    reader = Reader()
    reader.feed(file.read_text(encoding="utf-8"))
    assert not reader.open
    return reader


class Renamed(infopt.Rule):
    """relu(x) -> clamp_min(x, 0)"""

    name, stage = "relu-to-clamp", infopt.Stage.COMPRESS

    def pattern(self, o, x):
        return o.relu(x)

    def legal(self, m, ctx):
        return None if m.x.shape[-1] > 16 else "narrower than <16> & so left"

    def gain(self, m, ctx):
        return 3e-6

    def rewrite(self, o, x):
        return o.clamp_min(x, 0.0)


@pytest.fixture(scope="module")
def compiled():
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 12), nn.ReLU(), nn.Hardswish())
    passes = infopt.default_passes(add=[Renamed()])
    return infopt.compile(net.eval(), (torch.randn(4, 8),), passes=passes)


def test_everything_is_on_it(compiled, tmp_path: Path) -> None:
    reader = read(compiled.report.html(tmp_path / "page.html", title="My <model>"))
    text = " ".join(reader.text)
    for entry in compiled.report.passes:
        assert entry.name in text
    assert "My <model>" in text and "narrower than <16> & so left" in text
    assert "predicted gain 3 µs" in text and "promises Exact()" in text
    assert re.search(r"\+%\+0 f32\[4, 32\] = aten\.clamp_min", text)
    assert "Roofline" in text and "Fallbacks" in text and "Kernels" in text and "memory" in text
    assert compiled.report.find("relu-to-clamp").key[:16] in text
    assert sum(tag == "details" for tag, _ in reader.tags) == len(compiled.report.passes) + 1
    assert "The final graph" in text and "return %" in text


def test_measured_times_of_kernels(compiled, tmp_path: Path) -> None:
    times = compiled.profile(torch.randn(4, 8))
    assert times and all(t >= 0 for t in times.values()) and compiled.report.times == times
    assert compiled.report.to_json()["times"] == times
    text = " ".join(read(compiled.report.html(tmp_path / "page.html")).text)
    assert "measured per call" in text and all(kernel in text for kernel in times)


def test_programs_whose_graphs_are_gone_say_so(compiled, tmp_path: Path) -> None:
    report = replace(compiled.report, history=[])
    text = " ".join(read(report.html(tmp_path / "page.html")).text)
    assert "kept for the newest programs only" in text and "What changed" not in text


def test_nothing_comes_from_elsewhere(compiled, tmp_path: Path) -> None:
    file = compiled.report.html(tmp_path / "page.html")
    reader = read(file)
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "img", "iframe", "object"}
    for _, attributes in reader.tags:
        assert not {"src", "href", "onclick", "onload"} & set(attributes)
    text = file.read_text(encoding="utf-8")
    assert "http://" not in text and "https://" not in text and "url(" not in text
    assert "prefers-color-scheme: dark" in text and "default-src" in text
    assert len(text) < 60_000


def test_what_a_model_says_stays_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    entry = PassReport(evil, evil, evil, sites=[Site(evil, False, evil)], error=evil)
    report = Report([entry], {evil: evil}, evil, kernels={evil: 1}, target=evil, notes=[evil])
    file = report.html(tmp_path / "page.html", title=evil)
    assert "<script" not in file.read_text(encoding="utf-8")
    assert "".join(read(file).text).count(evil) >= 9


def test_explain_writes_pages_for_torch_compile(tmp_path: Path) -> None:
    torch._dynamo.reset()
    net = nn.Sequential(nn.Linear(8, 4), nn.ReLU()).eval()
    fast = torch.compile(net, backend="infopt", dynamic=False)
    with torch.no_grad():
        fast(torch.randn(2, 8))
        fast(torch.randn(3, 8))
    infopt.explain(fast, html=tmp_path / "page.html")
    text = " ".join(read(tmp_path / "page.html").text)
    assert "Program 2 of 2" in text


def test_long_differences_are_cut(tmp_path: Path) -> None:
    class Deep(nn.Module):
        def forward(self, x):
            for _ in range(300):
                x = torch.sin(torch.relu(x))
            return x

    class All(Renamed):
        name = "all-relu"

        def legal(self, m, ctx):
            return None

    deep = infopt.compile(Deep().eval(), (torch.randn(4),), passes=[All()])
    text = " ".join(read(deep.report.html(tmp_path / "page.html")).text)
    assert "more lines; INFOPT_DUMP writes all of them" in text


def test_a_difference_is_shown_line_by_line() -> None:
    told = _diff("head <1>\n@@ 1\n-old\n\n+new")
    assert told == (
        '<p>head &lt;1&gt;</p><pre><span class="hunk">@@ 1</span><span class="del">-old</span>'
        '<span class=""> </span><span class="add">+new</span></pre>'
    )


def test_points_lie_on_or_under_the_roof(compiled) -> None:
    target = Target.parse("cpu:avx2,cores=2")
    points = points_of(compiled.graph, target)
    assert points and sum(p.seconds for p in points) > 0
    assert [p.seconds for p in points] == sorted((p.seconds for p in points), reverse=True)
    for p in points:
        assert p.gflops <= min(target.peak_of(p.dtype), p.intensity * target.bandwidth) * 1.0001
        assert p.bound in ("compute", "memory", "start")
    drawing = roofline(points, target)
    assert drawing.count("<circle") == len(points)
    for x, y in re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', drawing):
        assert 0 <= float(x) <= 720 and 0 <= float(y) <= 380
    assert roofline([], target) == ""
