"""torch.vmap inside a compiled program."""

from __future__ import annotations

import pytest
import torch
from torch.func import vmap

from infopt.compiler.dynamo import reports_of
from tests.conformance import harness


def reduced_and_multiplied(a, b):
    a, b = a * 2, b + 1
    y = vmap(lambda p, q: (p * q + p.sum(), torch.mm(p, q.t())), in_dims=(0, 1))(a, b)
    return y[0] + 1, y[1]


def nested(a, b):
    b = b.transpose(0, 1)
    return vmap(vmap(lambda p, q: p * q + 1, (0, None)), (None, 0), out_dims=1)(a, b)


def views(a, b):
    return vmap(lambda x: x[1:].t())(a), b + 1


def written(a, b):
    vmap(lambda x: x.mul_(2))(a)
    return a + 1, b


PROGRAMS = [reduced_and_multiplied, nested, views, written]


@pytest.mark.parametrize("program", PROGRAMS)
def test_batched_programs_are_compiled(program) -> None:
    calls = [(torch.randn(n, 3, 4), torch.randn(3, n, 4)) for n in (5, 7)]
    harness.check(program, *calls, dynamic=True)
    torch._dynamo.reset()
    run = torch.compile(program, backend="infopt", dynamic=True)
    run(*calls[0])
    (report,) = reports_of(run)
    assert not report.declined


def test_what_is_not_vmap_or_holds_a_constant_is_torchs() -> None:
    def constant(a):
        return vmap(lambda x: x * torch.tensor([1.0, 2.0]))(a)

    def derivative(a):
        return torch.func.jvp(torch.sin, (a,), (a + 1,))

    for program, reason in ((constant, "over a constant"), (derivative, "function transform")):
        harness.check(program, (torch.randn(3, 2),))
        run = torch.compile(program, backend="infopt")
        run(torch.randn(3, 2))
        assert any(reason in report.declined for report in reports_of(run))
