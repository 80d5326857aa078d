"""Reductions on a GPU: every kind, layout and dtype, as close to torch as its own kernels are."""

import pytest
import torch

pytest.importorskip("triton")
from infopt.codegen.load_gpu import compiled_kernels
from infopt.runtime.plan import AtenStep
from tests.codegen.traced import compare
from tests.gpu.interpreted import check, lowered_of, program_of

KINDS = {
    "sum": lambda x: x.sum(-1),
    "mean": lambda x: x.mean((0, 2), keepdim=True),
    "amax": lambda x: x.amax(1),
    "amin": lambda x: x.amin((0, 1)),
    "norm": lambda x: torch.linalg.vector_norm(x, dim=-1, keepdim=True),
    "all of it": lambda x: x.sum() + x.mean(),
    "any": lambda x: (x > 2).any(-1),
    "all": lambda x: (x > -2).all(0),
    "count": lambda x: (x > 0).sum(1),
}


def launched(made):
    assert not any(isinstance(s, AtenStep) for s in made.plan.steps), made.plan.steps
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind, dtype):
    close = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float64: 1e-12}[dtype]
    launched(check(KINDS[kind], torch.randn(5, 67, 33).to(dtype), close=(close, close)))


def test_layouts():
    x = torch.randn(6, 10, 14, 3)
    launched(check(lambda x: x.permute(2, 0, 3, 1).sum((1, 3)), x, close=(1e-5, 1e-5)))
    launched(check(lambda x: x[:, ::2, 1:].mean(2), x, close=(1e-5, 1e-5)))
    launched(check(lambda x: x.transpose(0, 2).amax((0, 2)), x))


def test_integers():
    x = torch.randint(-1000, 1000, (7, 300))
    launched(check(lambda x: (x.sum(1), x.amax(0), x.amin(1), x.bool().sum(0)), x))
    launched(check(lambda x: (x.sum(1), x.amax(1)), x.to(torch.int8)))


def test_nan_and_infinities():
    x = torch.randn(4, 70)
    x[0, 3], x[1, 5], x[2, 66] = float("nan"), float("inf"), -float("inf")
    launched(check(lambda x: (x.amax(1), x.amin(1), x.sum(1)), x, close=(1e-5, 1e-5)))


def test_sizes_that_vary():
    f = lambda x: (x.mean(-1), x.sum(0))  # noqa: E731
    made = launched(program_of(f, (torch.randn(9, 11),), dynamic=True))
    for shape in ((2, 3), (70, 300), (3, 1000)):
        compare(made, f, (torch.randn(shape),), close=(1e-5, 1e-5))


def test_one_long_sum_is_left_to_torch():
    made = lowered_of(lambda x: x.sum(), (torch.empty(1 << 17),))
    assert "one program would read them all" in made.report.reasons["aten.sum.default"]


@pytest.mark.parametrize("level", ["sm90", "gfx942"])
def test_machine_code_without_spills(level):
    from dataclasses import replace

    made = lowered_of(lambda x: (x.sum(-1), x.amax(0), x.mean()), (torch.randn(70, 40),), True)
    plan, code = compiled_kernels(replace(made, level=level))
    assert len(code) == 2 and all(k.spills == 0 for k in plan.kernels), plan.kernels
