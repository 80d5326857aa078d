"""infopt.compile: calls, structures, dynamic sizes, options, declines, artifacts."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import Dim

import infopt
from infopt.compiler.errors import BadOption, FallbackRefused
from infopt.runtime.errors import InputMismatch


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x, scale=2.0, *, mask=None):
        hidden = nn.functional.gelu(self.first(x))
        if mask is not None:
            hidden = hidden * mask.unsqueeze(-1)
        return {"y": self.second(hidden) * scale, "hidden": (hidden, x)}


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def test_structure_values_and_aliases_are_those_of_the_model(net):
    x = torch.randn(3, 8)
    compiled = infopt.compile(net, (x,))
    got, want = compiled(x), net(x)
    assert list(got) == list(want) and isinstance(got["hidden"], tuple)
    torch.testing.assert_close(got["y"], want["y"])
    assert got["hidden"][1] is x


def test_arguments_by_name_constants_and_mistakes(net):
    x, mask = torch.randn(3, 8), torch.ones(3)
    compiled = infopt.compile(net, (x,), {"mask": mask})
    torch.testing.assert_close(compiled(x=x, mask=mask)["y"], net(x, mask=mask)["y"])
    with pytest.raises(InputMismatch, match="mask"):
        compiled(x)
    with pytest.raises(InputMismatch, match="unknown argument 'colour'"):
        compiled(x, mask=mask, colour=1)
    with pytest.raises(InputMismatch, match="8"):
        compiled(torch.randn(3, 9), mask=mask)
    with pytest.raises(InputMismatch, match="float32"):
        compiled(x.double(), mask=mask)
    scaled = infopt.compile(net, (x, 3.0))
    torch.testing.assert_close(scaled(x, 3.0)["y"], net(x, 3.0)["y"])
    with pytest.raises(InputMismatch, match="part of the program"):
        scaled(x, 4.0)


def test_dynamic_sizes_down_to_one(net):
    shapes = {"x": {0: Dim("batch", min=1, max=64)}}
    compiled = infopt.compile(net, (torch.randn(5, 8),), dynamic_shapes=shapes)
    for size in (1, 2, 17, 64):
        x = torch.randn(size, 8)
        torch.testing.assert_close(compiled(x)["y"], net(x)["y"])
    with pytest.raises(InputMismatch, match="65"):
        compiled(torch.randn(65, 8))


def test_a_size_of_one_is_refused_where_the_program_differs_there():
    class Squeeze(nn.Module):
        def forward(self, x):
            return x.squeeze(0) + 1

    shapes = {"x": {0: Dim("batch", min=1)}}
    compiled = infopt.compile(Squeeze(), (torch.randn(5, 8),), dynamic_shapes=shapes)
    assert compiled(torch.zeros(2, 8)).shape == (2, 8)
    with pytest.raises(InputMismatch, match="found 1"):
        compiled(torch.zeros(1, 8))


def test_functions_and_exported_programs_compile_too(net):
    x = torch.randn(3, 8)
    compiled = infopt.compile(lambda a, b: (a @ b.T).relu(), (x, x))
    torch.testing.assert_close(compiled(x, x), (x @ x.T).relu())
    program = torch.export.export(net, (x,))
    torch.testing.assert_close(infopt.compile(program)(x)["y"], net(x)["y"])


def test_buffers_that_the_model_writes_are_written():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x):
            self.count += 1
            return x * self.count

    reference, x = Counter(), torch.ones(2)
    compiled = infopt.compile(Counter(), (x,))
    for _ in range(3):
        assert torch.equal(compiled(x), reference(x))


def test_what_cannot_be_traced_runs_as_torch_runs_it(net):
    class Branch(nn.Module):
        def forward(self, x):
            return x + 1 if x.sum() > 0 else x - 1

    x = torch.ones(3)
    compiled = infopt.compile(Branch(), (x,))
    assert torch.equal(compiled(x), x + 1) and torch.equal(compiled(-x), -x - 1)
    assert "torch.export could not trace it" in compiled.report.declined
    assert repr(compiled) == f"<infopt.AsTorch: {compiled.report.declined}>"
    assert repr(infopt.compile(net, (torch.randn(3, 8),))).startswith("<infopt.Compiled for ")
    with pytest.raises(FallbackRefused, match="could not trace"):
        infopt.compile(Branch(), (x,), strict=True)
    with pytest.raises(FallbackRefused, match="nothing to save"):
        compiled.save("nowhere")
    net.train()
    trained = infopt.compile(net, (torch.randn(3, 8),))
    assert "training mode" in trained.report.declined


def test_options_are_checked(net):
    x = torch.randn(3, 8)
    with pytest.raises(BadOption, match="unknown option colour; known options are compute"):
        infopt.compile(net, (x,), colour=1)
    for bad in ({"compute": "fp8"}, {"tune": 3}, {"threads": 0}, {"strict": 1}, {"max_error": 2}):
        with pytest.raises(BadOption, match=next(iter(bad))):
            infopt.compile(net, (x,), **bad)
    with pytest.raises(BadOption, match="expected a tuple of example inputs"):
        infopt.compile(net, x)
    with pytest.raises(BadOption):
        infopt.compile(net, (x,), target="cpu:pentium")


def test_the_report_is_text_and_json(net):
    compiled = infopt.compile(net, (torch.randn(3, 8),))
    data = json.loads(compiled.report.json())
    assert {p["name"] for p in data["passes"]} >= {"canonicalize"}
    assert "operations" in str(compiled.report)
    assert "canonicalize" in infopt.explain(compiled, "canonicalize")
    with pytest.raises(KeyError, match="no pass 'colour' ran"):
        infopt.explain(compiled, "colour")


@dataclass
class Result:
    y: torch.Tensor
    n: int


def test_an_artifact_runs_in_a_process_without_the_compiler(net, tmp_path: Path):
    shapes = {"x": {0: Dim("batch", min=1)}, "mask": {0: Dim("batch", min=1)}}
    x, mask = torch.randn(5, 8), torch.ones(5)
    compiled = infopt.compile(net, (x,), {"mask": mask}, dynamic_shapes=shapes)
    path = compiled.save(tmp_path / "net", targets=["cpu:scalar"])
    with pytest.raises(FileExistsError):
        compiled.save(path)
    torch.save({"x": x[:2], "y": net(x[:2], mask=mask[:2])["y"]}, tmp_path / "case.pt")
    program = f"""
import sys, torch, infopt
loaded = infopt.load({str(path)!r})
case = torch.load({str(tmp_path / "case.pt")!r})
found = loaded(case["x"], mask=torch.ones(2))
torch.testing.assert_close(found["y"], case["y"])
not_needed = ("infopt.compiler", "infopt.codegen", "transformers")
heavy = [m for m in sys.modules if m.startswith(not_needed)]
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)


def test_max_error_is_measured_end_to_end(net):
    x = torch.randn(20, 8)
    compiled = infopt.compile(net, (x,), compute="bf16", max_error=0.05)
    assert "end to end: relative RMS error" in str(compiled.report)
    with pytest.raises(infopt.ContractBroken, match="max_error=1e-06"):
        infopt.compile(net, (x,), compute="bf16", max_error=1e-6)


def test_explain_of_one_pass_says_what_torch_runs() -> None:
    class Branches(nn.Module):
        def forward(self, x):
            return x + 1 if x.sum() > 0 else x - 1

    told = infopt.explain(infopt.compile(Branches().eval(), (torch.ones(3),)), "fold-constants")
    assert told.startswith("runs as torch runs it: ")
