"""fuse-activation: rewrites, declines, accuracy, idempotence, gain."""

import math

import pytest
import torch

from infopt.compiler.cost import graph_seconds
from infopt.compiler.target import Target
from infopt.compiler.testing import check_pass, graph_of, run_pass
from infopt.passes.fuse_activation import FuseActivation

X = torch.randn(3, 50) * 3
ROOT = math.sqrt(2 / math.pi)


def tanh_gelu(o, x, coefficient=0.044715, root=ROOT, power=3.0):
    inner = o.mul(o.add(x, o.mul(o.pow(x, power), coefficient)), root)
    return o.mul(o.mul(x, 0.5), o.add(o.tanh(inner), 1.0))


def factored(o, x):
    inner = o.mul(o.mul(x, 0.79788456), o.add(o.mul(o.mul(x, 0.044715), x), 1))
    return o.mul(o.mul(x, 0.5), o.add(o.tanh(inner), 1.0))


CASES = {
    "tanh": (tanh_gelu, lambda o, x: o.gelu(x, approximate="tanh")),
    "tanh, factored": (factored, lambda o, x: o.gelu(x, approximate="tanh")),
    "erf": (
        lambda o, x: o.mul(o.mul(x, 0.5), o.add(o.erf(o.div(x, math.sqrt(2))), 1.0)),
        lambda o, x: o.gelu(x),
    ),
    "erf, half at the end": (
        lambda o, x: o.mul(o.mul(x, o.add(o.erf(o.mul(x, math.sqrt(0.5))), 1.0)), 0.5),
        lambda o, x: o.gelu(x),
    ),
    "silu": (lambda o, x: o.mul(o.sigmoid(x), x), lambda o, x: o.silu(x)),
}


@pytest.mark.parametrize("case", CASES)
def test_rewrites(case: str) -> None:
    assert len(check_pass(FuseActivation(), *CASES[case], [X]).applied) == 1


DECLINED = {
    "coefficient is 0.05": lambda o, x: tanh_gelu(o, x, coefficient=0.05),
    "inner is 0.8": lambda o, x: tanh_gelu(o, x, root=0.8),
    "power is 2.0": lambda o, x: tanh_gelu(o, x, power=2.0),
    "x is two different values": lambda o, x: o.mul(o.sigmoid(x), o.sin(x)),
    "also": lambda o, x: (o.mul(x, o.sigmoid(x)), o.sigmoid(x)),
}


@pytest.mark.parametrize("reason", DECLINED)
def test_declines(reason: str) -> None:
    graph = graph_of(DECLINED[reason], [X], FuseActivation())
    result, report = run_pass(FuseActivation(), graph)
    assert result is graph
    assert any(reason in s.reason for s in report.declined), report.declined


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accuracy(dtype: torch.dtype) -> None:
    for build, _ in CASES.values():
        graph = graph_of(build, [X.to(dtype)], FuseActivation())
        _, report = run_pass(FuseActivation(), graph, [(X.to(dtype),)])
        assert report.applied


def test_idempotent() -> None:
    for build, _ in CASES.values():
        once, _ = run_pass(FuseActivation(), graph_of(build, [X], FuseActivation()))
        assert run_pass(FuseActivation(), once)[0] is once


def test_gain() -> None:
    graph = graph_of(tanh_gelu, [X], FuseActivation())
    result, report = run_pass(FuseActivation(), graph)
    assert report.gain > 0
    target = Target.detect()
    assert graph_seconds(result, target) < graph_seconds(graph, target)


def test_eight_digits_are_another_number_in_float64() -> None:
    x = X.double()
    _, report = run_pass(FuseActivation(), graph_of(factored, [x], FuseActivation()))
    assert not report.applied and "inner is 0.79788456" in report.declined[0].reason
    check_pass(FuseActivation(), *CASES["tanh"], [x])


def forms(o, x, half=0.5, one=1.0, inner=None, coefficient=0.044715, power=3.0, scale=1.0):
    """Every way of writing a gelu that is known, from its numbers."""
    root, two = inner or ROOT, math.sqrt(2) * scale
    cube = o.mul(o.pow(x, power), coefficient)
    by_tanh = o.add(o.tanh(o.mul(o.add(x, cube), root)), one)
    by_division = o.add(o.erf(o.div(x, two)), one)
    by_product = o.add(o.erf(o.mul(x, 1 / two)), one)
    halved = o.mul(x, half)
    return {
        "tanh": o.mul(halved, by_tanh),
        "tanh, half at the end": o.mul(o.mul(x, by_tanh), half),
        "erf of a quotient": o.mul(halved, by_division),
        "erf of a product": o.mul(halved, by_product),
        "erf of a quotient, half at the end": o.mul(o.mul(x, by_division), half),
        "erf of a product, half at the end": o.mul(o.mul(x, by_product), half),
    }


FORMS = ("tanh", "tanh, half at the end", "erf of a quotient", "erf of a product",
         "erf of a quotient, half at the end", "erf of a product, half at the end")  # fmt: skip
TANH = {"inner": 0.7, "coefficient": 0.04, "power": 2.0}


@pytest.mark.parametrize("form", FORMS)
def test_every_number_of_every_form_counts(form: str) -> None:
    def applied(**numbers: float) -> bool:
        graph = graph_of(lambda o, x: forms(o, x, **numbers)[form], [X], FuseActivation())
        return bool(run_pass(FuseActivation(), graph)[1].applied)

    assert applied()
    assert not applied(half=0.25) and not applied(one=2.0)
    for name, value in TANH.items():
        assert applied(**{name: value}) is ("tanh" not in form)
    assert applied(scale=2.0) is ("tanh" in form)


@pytest.mark.parametrize("place", range(5))
def test_every_number_of_the_factored_form_counts(place: int) -> None:
    def build(o, x):
        half, inner, coefficient, inside, outside = (
            n * 1.5 if i == place else n for i, n in enumerate((0.5, ROOT, 0.044715, 1.0, 1.0))
        )
        factor = o.add(o.mul(o.mul(x, coefficient), x), inside)
        return o.mul(o.mul(x, half), o.add(o.tanh(o.mul(o.mul(x, inner), factor)), outside))

    _, report = run_pass(FuseActivation(), graph_of(build, [X], FuseActivation()))
    assert not report.applied


def test_whole_numbers_are_left() -> None:
    x = torch.arange(6)
    graph = graph_of(lambda o, x: o.mul(o.sigmoid(x), x), [x], FuseActivation())
    result, report = run_pass(FuseActivation(), graph)
    assert result is graph and report.declined[0].reason == "x is i64[6]"
